"""Renders what a judge is shown of one task, from values that can be sent to another process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.transcript.context import (
    ContextLimits,
    RenderedContext,
    StoredDocument,
    TaskContext,
    parsed,
    render_context,
)
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, render_transcript


class Rendered(NamedTuple):
    """What is shown of a task, and of its context."""

    transcript: RenderedTranscript
    context: RenderedContext


@dataclass(frozen=True)
class Rendering:
    """What is to be rendered, and how.

    Attributes:
        documents: of the runs of the task, the earliest first, the judged one last.
        redactor: without a deadline, which begins with the rendering.
        prompt_bytes: most UTF-8 bytes of one prompt, without its rules.
        seconds: that rendering may take.
    """

    documents: Sequence[StoredDocument]
    context: TaskContext
    redactor: Redactor
    instructions_tokens: int
    earlier_turns_tokens: int
    prompt_bytes: int
    seconds: float

    def render(self) -> Rendered:
        """Return what is shown.

        Raises:
            RedactionTimeoutError: it took longer than ``seconds``.
        """
        redact = replace(self.redactor, deadline=time.monotonic() + self.seconds)
        limits = ContextLimits(self.instructions_tokens, self.earlier_turns_tokens, self.prompt_bytes)
        context = render_context(self.context, limits, redact)
        room = max(self.prompt_bytes - len(context.text.encode()), 0)
        return Rendered(render_transcript([parsed(one) for one in self.documents], room, redact), context)
