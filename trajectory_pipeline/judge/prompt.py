"""The prompt: rules, rubric, and the frame around a transcript.

The rules come first and never change within a policy, so that a provider's prefix cache serves them, whether a prompt
shows a whole transcript or a part. The texts are files in ``prompts/``. They say what the schema cannot: every field,
its limits, and how evidence is weighed. The schema itself is sent without descriptions.
"""

import hashlib
import secrets
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from trajectory_pipeline.budget.token_estimate import estimated_tokens
from trajectory_pipeline.judge.client.response_format import schema_text
from trajectory_pipeline.judge.response_schema import JudgeResponse, PartFindings

_FOLDER = Path(__file__).parent / "prompts"


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.txt").read_text("utf-8").removesuffix("\n")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


RULES, RUBRIC, _WHOLE, _PART, _EXCERPTS = map(_read, ("rules", "rubric", "whole", "part", "excerpts"))

PROMPT_VERSION = _digest(RULES, _WHOLE, _PART, _EXCERPTS)
"""Changes with the rules and the questions."""
RUBRIC_VERSION = _digest(RUBRIC)
"""Changes with the rubric."""


def messages(transcript: str, marker: str | None = None, *, context: str = "") -> list[dict[str, str]]:
    """Return the chat that asks for a verdict on a transcript, between lines with a marker: by default a random one.

    The context stands before it, as it is: see ``transcript.context``.
    """
    return _messages(transcript, _WHOLE, marker, context)


def window_messages(transcript: str, marker: str | None = None, *, context: str = "") -> list[dict[str, str]]:
    """Return the chat that asks for the findings of one part of a transcript; see ``messages``."""
    return _messages(transcript, _PART, marker, context)


def summary_messages(transcript: str, marker: str | None = None, *, context: str = "") -> list[dict[str, str]]:
    """Return the chat that asks for a verdict on what the parts were found to show; see ``messages``."""
    return _messages(transcript, _EXCERPTS, marker, context)


def _messages(transcript: str, task: str, marker: str | None, context: str) -> list[dict[str, str]]:
    marker = marker or secrets.token_hex(16)
    shown = f"{context}<<<TRANSCRIPT {marker}\n{transcript}\nTRANSCRIPT {marker}>>>"
    return [
        {"role": "system", "content": f"{RULES}\n\n{RUBRIC}"},
        {"role": "user", "content": f"{shown}\n\n{task}"},
    ]


def prompt_text(chat: list[dict[str, str]], answer_type: type[BaseModel]) -> str:
    """Return all text that counts as tokens of a prompt: its messages and the response schema."""
    return "".join(message["content"] for message in chat) + schema_text(answer_type)


@cache
def overhead_bytes() -> int:
    """Return the UTF-8 bytes of the longest prompt without its transcript: rules, frame and schema."""
    marker = "0" * 32
    frames = (
        prompt_text(messages("", marker), JudgeResponse),
        prompt_text(summary_messages("", marker), JudgeResponse),
        prompt_text(window_messages("", marker), PartFindings),
    )
    return max(len(frame.encode()) for frame in frames)


def overhead_tokens() -> int:
    """Return a conservative estimate of the tokens of a prompt without its transcript."""
    return estimated_tokens("x" * overhead_bytes())
