"""What a citation proves: whether it stands where it says, and whether whose words it is may support the claim.

Belongs here: the check of one citation. Does not belong here: what follows for a requirement (``assess``).
"""

from typing import Any

from trajectory_pipeline.judge.response_schema import Citation, RequirementKind
from trajectory_pipeline.judge.transcript.messages import Passage, Source, TranscriptMessage
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript

OWN_WORDS = frozenset[Source]({"agent_text", "agent_speech", "agent_thought", "agent_call"})
"""What an agent says, thinks or asks for: none of it shows that something was done."""
_ANSWERS = frozenset[Source]({"agent_text", "agent_speech"})
_REQUESTERS = frozenset[Source]({"person", "other_agent"})
_SETBACKS = frozenset[Source]({"tool_error", "server_error", "denial"})
"""What shows that something was not done."""
_NEVER = frozenset[Source]({"summary", "system", "unknown"})
"""Written before the work, or by an agent about it, or by nobody knows whom."""


class CitationChecker:
    """The citations of one answer, checked against what was shown."""

    def __init__(self, rendered: RenderedTranscript) -> None:
        self._rendered = rendered
        judged = rendered.blocks[-1].run if rendered.blocks else "-"
        own = [
            block.position
            for block in rendered.blocks
            if block.run == judged and any(passage.source in OWN_WORDS for passage in block.passages)
        ]
        self._first_own_words = min(own, default=None)
        self._stretches: dict[int, list[str]] = {}

    def checked(self, citation: Citation, claim: str, kind: RequirementKind | None = None) -> dict[str, Any]:
        """Return a citation with ``valid``, ``problem`` (None where it is valid), and ``source``: whose words it is.

        Args:
            citation: as the judge gave it.
            claim: ``met``, ``unmet``, ``not_applicable``, ``insufficient_evidence`` or ``failure``.
            kind: of the requirement.
        """
        source, problem = self._problem(citation, claim, kind)
        return {**citation.model_dump(), "source": source, "valid": problem is None, "problem": problem}

    def _problem(
        self, citation: Citation, claim: str, kind: RequirementKind | None
    ) -> tuple[Source | None, str | None]:
        blocks = self._rendered.cited.get(citation.message_id)
        if blocks is None:
            return None, "no message, and no error of a step or run, of this id was shown"
        quote = normalize_text(citation.quote)
        if not quote:
            return None, "the quote is blank"
        if not any(c.isalnum() for c in quote):
            return None, "the quote has no word and no number in it"
        problem: tuple[Source | None, str] = (None, "the quote does not stand there as it was shown")
        for block in blocks:
            for passage in block.passages:
                if self._stands_in(quote, passage):
                    why_not = self._supports(passage, block, quote, claim, kind)
                    if why_not is None:
                        return passage.source, None
                    problem = (passage.source, why_not)
        return problem

    def _stands_in(self, quote: str, passage: Passage) -> bool:
        if id(passage) not in self._stretches:
            self._stretches[id(passage)] = [normalize_text(stretch) for stretch in passage.stretches]
        return any(quote in stretch for stretch in self._stretches[id(passage)])

    def _supports(
        self, passage: Passage, block: TranscriptMessage, quote: str, claim: str, kind: RequirementKind | None
    ) -> str | None:
        """Say why words of this source do not support the claim; None where they do."""
        source = passage.source
        if claim not in ("met", "not_applicable"):
            return None
        if source in _NEVER:
            return f"words of this source ({source}) prove nothing about what was done"
        if source in OWN_WORDS:
            if claim == "met" and kind == "answer" and source in _ANSWERS:
                return None
            return "an agent's own words prove nothing"
        if claim == "not_applicable":
            return None
        if source in _SETBACKS:
            return "an error or a denial does not show that something was done"
        if source == "speech_return" and kind != "answer":
            return "the return of a message to a person shows only that words were sent"
        if source in ("tool_return", "speech_return") and repeats_call_text(quote, passage.call_words):
            return "the tool only repeats what the agent wrote in its call"
        if source in _REQUESTERS and (self._first_own_words is None or block.position < self._first_own_words):
            return "the task's own words prove nothing: they were said before the agent did anything"
        return None


def normalize_text(text: str) -> str:
    """Return a text with its white space normalised."""
    return " ".join(text.split())


def repeats_call_text(quote: str, call_words: str) -> bool:
    """Whether a quote stands in what an agent wrote in a call, be it as JSON text or as the strings in it."""
    if not call_words:
        return False
    plain = call_words.replace("\\n", " ").replace("\\t", " ").replace('\\"', '"').replace("\\\\", "\\")
    return quote in normalize_text(call_words) or quote in normalize_text(plain)
