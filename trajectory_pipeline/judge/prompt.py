"""The prompt: rules, rubric, and the frame around a transcript.

The rules come first and never change within a policy, so that a provider's prefix cache serves them, whether a prompt
shows a whole transcript or a part. The texts are files in ``prompts/``, which a policy can replace (``prompt_files``).
They say what the schema cannot: every field, its limits, and how evidence is weighed. The schema itself is sent without
descriptions.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from pydantic import BaseModel

from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.judge.client.response_format import schema_text
from trajectory_pipeline.judge.response_schema import RESPONSE_SCHEMA_VERSION, JudgeResponse, PartFindings

BUILT_IN_FOLDER = Path(__file__).parent / "prompts"
Chat = list[dict[str, str]]


def text_digest(*texts: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class JudgePrompt:
    """The texts that a judge is sent besides a trajectory, and the answer that it must give.

    Attributes:
        rules: what is judged, and how a transcript is read; the first message, with the rubric.
        rubric: what each field of the answer means.
        whole: the question about a whole transcript.
        part: the question about a part of a long one.
        excerpts: the question about what the parts were found to show.
        answer_type: of the answer to ``whole`` and ``excerpts``; that to ``part`` is always ``PartFindings``.
        answer_version: changes with the answer type.
    """

    rules: str
    rubric: str
    whole: str
    part: str
    excerpts: str
    answer_type: type[JudgeResponse] = field(default=JudgeResponse, compare=False)
    answer_version: str = RESPONSE_SCHEMA_VERSION

    @cached_property
    def version(self) -> str:
        """Changes with the rules and the questions."""
        return text_digest(self.rules, self.whole, self.part, self.excerpts)

    @cached_property
    def rubric_version(self) -> str:
        """Changes with the rubric."""
        return text_digest(self.rubric)

    def messages(self, transcript: str, marker: str | None = None, *, context: str = "") -> Chat:
        """Return the chat that asks for a verdict on a transcript, between lines with a marker (default: a random one).

        The context stands before it, as it is: see ``transcript.context``.
        """
        return self._messages(transcript, self.whole, marker, context)

    def window_messages(self, transcript: str, marker: str | None = None, *, context: str = "") -> Chat:
        """Return the chat that asks for the findings of one part of a transcript; see ``messages``."""
        return self._messages(transcript, self.part, marker, context)

    def summary_messages(self, transcript: str, marker: str | None = None, *, context: str = "") -> Chat:
        """Return the chat that asks for a verdict on what the parts were found to show; see ``messages``."""
        return self._messages(transcript, self.excerpts, marker, context)

    def _messages(self, transcript: str, task: str, marker: str | None, context: str) -> Chat:
        marker = marker or secrets.token_hex(16)
        shown = f"{context}<<<TRANSCRIPT {marker}\n{transcript}\nTRANSCRIPT {marker}>>>"
        return [
            {"role": "system", "content": f"{self.rules}\n\n{self.rubric}"},
            {"role": "user", "content": f"{shown}\n\n{task}"},
        ]

    @cached_property
    def overhead_bytes(self) -> int:
        """UTF-8 bytes of the longest prompt without its transcript: rules, frame and schema."""
        marker = "0" * 32
        frames = (
            prompt_text(self.messages("", marker), self.answer_type),
            prompt_text(self.summary_messages("", marker), self.answer_type),
            prompt_text(self.window_messages("", marker), PartFindings),
        )
        return max(len(frame.encode()) for frame in frames)

    @property
    def overhead_tokens(self) -> int:
        """Conservative estimate of the tokens of a prompt without its transcript."""
        return estimated_tokens("x" * self.overhead_bytes)


def prompt_text(chat: Chat, answer_type: type[BaseModel]) -> str:
    """Return all text that counts as tokens of a prompt: its messages and the response schema."""
    return "".join(message["content"] for message in chat) + schema_text(answer_type)


@cache
def built_in_prompt() -> JudgePrompt:
    """Return the prompt of every policy that does not bring its own."""
    rules, rubric, whole, part, excerpts = (read_text(BUILT_IN_FOLDER / f"{name}.txt") for name in TEXTS)
    return JudgePrompt(rules, rubric, whole, part, excerpts)


TEXTS = ("rules", "rubric", "whole", "part", "excerpts")
"""The texts of a prompt; each is a file of this name with the ending ``.txt``."""


def read_text(path: Path) -> str:
    """Return a text without the newline at its end."""
    return path.read_text("utf-8").removesuffix("\n")
