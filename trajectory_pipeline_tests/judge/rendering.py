"""Rendering as most tests want it: without redaction, and with all the room there is."""

from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, render_transcript
from trajectory_pipeline_tests.judge.documents import Document

ROOM = 10_000_000


def whole(*documents: Document, room: int = ROOM) -> RenderedTranscript:
    """Show documents as they are."""
    return render_transcript(documents, room, str)
