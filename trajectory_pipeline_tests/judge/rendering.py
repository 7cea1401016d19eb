"""Rendering as most tests want it: without redaction, and with all the room there is."""

from trajectory_pipeline.judge.transcript.windows import Rendered, render
from trajectory_pipeline_tests.judge.documents import Document

ROOM = 10_000_000


def whole(*documents: Document, room: int = ROOM) -> Rendered:
    """Show documents as they are."""
    return render(documents, room, str)
