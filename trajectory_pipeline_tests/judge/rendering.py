"""Rendering as most tests want it: without redaction, and in one window."""

from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, render_transcript
from trajectory_pipeline_tests.judge.documents import Document

NO_LIMIT = 10_000_000
"""Bytes of a window that every transcript of the tests fits in."""


def render(*documents: Document, limit: int = NO_LIMIT) -> RenderedTranscript:
    """Render documents in windows of at most ``limit`` bytes."""
    return render_transcript(documents, limit, str)
