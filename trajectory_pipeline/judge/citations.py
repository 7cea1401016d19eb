"""Checks citations: whether the quote is in the cited message, and whether its source may support the claim."""

import math
import re
from collections.abc import Sequence
from typing import Any

from trajectory_pipeline.judge.echoes import AgentWriting, words
from trajectory_pipeline.judge.response_schema import Citation, RequirementKind
from trajectory_pipeline.judge.transcript.messages import (
    AGENT_SOURCES,
    Passage,
    PassageSource,
    TranscriptMessage,
)
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript

_FEWEST_LETTERS, _FEWEST_WITH_DIGITS = 6, 3
"""Letters of a return that show an action, and characters where some are digits: an ``OK`` may be any tool's."""
_HTTP_SUCCESS = re.compile(r"(?:http)?2[0-9]{2}(?:ok|created|accepted)?")
_ANSWER_SOURCES = frozenset[PassageSource]({"agent_text", "agent_speech"})
_REQUEST_SOURCES = frozenset[PassageSource]({"person", "other_agent"})
_FAILURE_SOURCES = frozenset[PassageSource]({"tool_error", "server_error", "denial"})
"""What shows that something was not done."""
_ECHO = "the tool only repeats what the agent wrote"
_UNUSABLE_SOURCES = frozenset[PassageSource]({"summary", "system", "unknown"})
"""Written before the work, or by an agent about it, or of unknown origin."""


class CitationChecker:
    """The citations of one answer, checked against what was shown."""

    def __init__(self, rendered: RenderedTranscript) -> None:
        self._rendered = rendered
        judged = rendered.messages[-1].run if rendered.messages else "-"
        own = [
            message.number
            for message in rendered.messages
            if message.run == judged and any(passage.source in AGENT_SOURCES for passage in message.passages)
        ]
        self._first_agent_number = min(own, default=math.inf)
        self._quotable_texts: dict[int, list[str]] = {}
        self._writing: AgentWriting | None = None

    def check(self, citation: Citation, claim: str, kind: RequirementKind | None = None) -> dict[str, Any]:
        """Return a citation with ``valid``, ``problem`` (None where it is valid), and ``source``: whose words it is.

        It then has the whole id of its message, where such a message was shown.
        The claim that it is to support is the status of a requirement, or ``failure``.
        """
        messages = self._rendered.by_cited_id.get(citation.message_id, ())
        source, problem = self._find(messages, citation, claim, kind)
        message_id = messages[0].source_id if messages else citation.message_id
        quote = citation.quote
        return {"message_id": message_id, "quote": quote, "source": source, "valid": not problem, "problem": problem}

    def _find(
        self, messages: Sequence[TranscriptMessage], citation: Citation, claim: str, kind: RequirementKind | None
    ) -> tuple[PassageSource | None, str | None]:
        if not messages:
            return None, "no message, and no error of a step or run, of this id was shown"
        quote = normalize_text(citation.quote)
        if not quote:
            return None, "the quote is blank"
        if not any(c.isalnum() for c in quote):
            return None, "the quote has no word and no number in it"
        problem: tuple[PassageSource | None, str] = (None, "the quote does not stand there as it was shown")
        for message in messages:
            for passage in message.passages:
                if id(passage) not in self._quotable_texts:
                    self._quotable_texts[id(passage)] = [normalize_text(text) for text in passage.quotable_texts]
                if any(quote in text for text in self._quotable_texts[id(passage)]):
                    why_not = self._why_unsupported(passage, message, quote, claim, kind)
                    if why_not is None:
                        return passage.source, None
                    problem = (passage.source, why_not)
        return problem

    def _why_unsupported(
        self, passage: Passage, message: TranscriptMessage, quote: str, claim: str, kind: RequirementKind | None
    ) -> str | None:
        """Return why a quote from this source does not support the claim; None where it does."""
        source = passage.source
        if claim not in ("met", "not_applicable"):
            return None
        if source in _UNUSABLE_SOURCES:
            return f"words of this source ({source}) prove nothing about what was done"
        if source in AGENT_SOURCES:
            if claim == "met" and kind == "answer" and source in _ANSWER_SOURCES:
                return None
            return "an agent's own words prove nothing"
        if claim == "not_applicable":
            return None
        if source in _FAILURE_SOURCES:
            return "an error or a denial does not show that something was done"
        if source == "speech_return" and kind != "answer":
            return "the return of a message to a person shows only that words were sent"
        if source == "tool_return" and kind != "answer":
            return self._why_not_shown(passage, message, quote, kind)
        if source in ("tool_return", "speech_return") and _repeats_call_text(quote, passage.call_text):
            return _ECHO
        if source in _REQUEST_SOURCES and message.number < self._first_agent_number:
            return "the task's own words prove nothing: they were said before the agent did anything"
        return None

    def _why_not_shown(
        self, passage: Passage, message: TranscriptMessage, quote: str, kind: RequirementKind | None
    ) -> str | None:
        """Return why a quote from a tool's return does not show an action or a state; None where it does."""
        returned = _without_header(quote, passage)
        if not words(returned) and len(passage.lines) == 1:
            return None  # The tool returned nothing but its status.
        if kind == "action" and _says_too_little(words(returned)):
            return f'"{returned}" may be the return of any tool: it does not show what was done'
        if self._writing is None:
            self._writing = AgentWriting(self._rendered.messages)
        return _ECHO if self._writing.is_echo(returned, passage, message.number) else None


def normalize_text(text: str) -> str:
    """Return a text with each run of white space as one blank."""
    return " ".join(text.split())


def _says_too_little(said: str) -> bool:
    fewest = _FEWEST_WITH_DIGITS if any(c.isdigit() for c in said) else _FEWEST_LETTERS
    return len(said) < fewest or _HTTP_SUCCESS.fullmatch(said) is not None


def _without_header(quote: str, passage: Passage) -> str:
    """Return a quote without what it has of the line that we put before a return."""
    header = normalize_text(passage.lines[0].text)
    if not header.startswith("<- return "):  # a message that is larger than a window lost its beginning
        return quote
    if quote in header:
        return ""
    longest = next((n for n in range(min(len(header), len(quote)), 0, -1) if quote.startswith(header[-n:])), 0)
    return quote[longest:] if longest > len("status=") else quote


def _repeats_call_text(quote: str, call_text: str) -> bool:
    """Whether a quote is in what an agent wrote in a call, as JSON text or as the strings in it."""
    plain = call_text.replace("\\n", " ").replace("\\t", " ").replace('\\"', '"').replace("\\\\", "\\")
    return quote in normalize_text(call_text) or quote in normalize_text(plain)
