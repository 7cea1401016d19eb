"""A trajectory as a page shows it: turns, tools and errors, with the evidence that the verdict cites marked.

A page has so many messages and so much text that a browser shows it at once; a longer run has several.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from trajectory_pipeline.conversion.message_parts import MessagePart, MessagePartKind, message_parts, message_role
from trajectory_pipeline.lossless_json import as_text

Row = Mapping[str, Any]
Redact = Callable[[str], str]
TEMPLATES = Path(__file__).with_name("templates")
"""The folder with the template of a trajectory and its style."""
MESSAGES_OF_A_PAGE = 200
LONGEST_TEXT = 20_000
"""Characters of one text."""
LONGEST_PAGE = 1_000_000
"""Characters of all texts of a page."""


@dataclass(frozen=True)
class Part:
    """One piece of a message, with its title and redacted text."""

    kind: MessagePartKind
    title: str
    body: Markup


@dataclass(frozen=True)
class MessageView:
    """A message: ``cited`` says whether the verdict cites it."""

    message_id: str
    role: str
    deleted: bool
    cited: bool
    parts: list[Part]


@dataclass(frozen=True)
class TurnView:
    """A turn, or the part of it that is on the page; ``error`` is that of its step, after its last message."""

    number: int
    step_id: str | None
    model: str | None
    wrong: bool
    continued: bool
    messages: list[MessageView]
    error: str | None


@dataclass(frozen=True)
class CitationView:
    """A quote that the verdict rests on.

    Attributes:
        problem: why it does not count, if so.
        turn: number of the turn of its message; None where that is another run's, or Postgres does not hold the
            document. ``page`` is where it is.
    """

    message_id: str
    quote: str
    problem: str | None
    turn: int | None
    page: int | None


@dataclass(frozen=True)
class RequirementView:
    """A requirement with its status and evidence."""

    statement: str
    status: str
    evidence: list[CitationView]


@dataclass(frozen=True)
class Page:
    """A page of a run, from 1, of so many; and which of its messages are on it: after ``first``, up to ``last``."""

    number: int
    count: int
    first: int
    last: int
    messages: int

    def of(self, place: int) -> int:
        """Return the page of a message, by how many are before it; of the end: the last page."""
        return min(place // MESSAGES_OF_A_PAGE + 1, self.count)


@dataclass(frozen=True)
class TrajectoryView:
    """All that a page of one trajectory shows. Texts are redacted.

    ``wrong`` is the number of the first turn that went wrong, and the page where it begins; None where none did.
    """

    row: Row
    outcome: Row
    task: str
    page: Page
    turn_count: int
    turns: list[TurnView]
    omitted: str | None
    wrong: tuple[int, int] | None = None
    requirements: list[RequirementView] = field(default_factory=list)
    summary: str = ""
    lesson: str | None = None


def trajectory_view(row: Row, outcome: Row, redact: Redact, page: int = 1) -> TrajectoryView:
    """Return the view of a row of ``trajectory.trajectories`` and its row of ``trajectory.outcomes``.

    Args:
        row: the trajectory, with its document in ``data``.
        outcome: what came of it.
        redact: applied to every text before it is shown.
        page: which page, from 1.

    Raises:
        IndexError: there is no such page; the text says how many there are.
    """
    document = row["data"]
    turns = [] if document is None else document["turns"]
    shown = _page(sum(len(turn["messages"]) for turn in turns), page)
    starts = list(_starts(turns))
    places = {
        message["message_id"]: (number, shown.of(start + place))
        for number, (turn, start) in enumerate(zip(turns, starts, strict=True), start=1)
        for place, message in enumerate(turn["messages"])
    }
    requirements = list(_requirements(outcome, places, redact))
    quotes: dict[str, list[str]] = {}
    for requirement in requirements:
        for citation in requirement.evidence:
            quotes.setdefault(citation.message_id, []).append(citation.quote)
    wrong_step = outcome.get("failed_step_id")
    return TrajectoryView(
        row=row,
        outcome=outcome,
        task=redact(_task(document)),
        page=shown,
        turn_count=len(turns),
        turns=list(_PageOfTurns(shown, quotes, wrong_step, redact).turns(turns, starts)),
        omitted=row["data_omitted_reason"] if document is None else None,
        wrong=next(
            (
                (number, shown.of(start))
                for number, (turn, start) in enumerate(zip(turns, starts, strict=True), start=1)
                if _is(turn, wrong_step)
            ),
            None,
        ),
        requirements=requirements,
        summary=redact(outcome["summary"] or ""),
        lesson=redact(outcome["lesson"]) if outcome["lesson"] else None,
    )


def _page(messages: int, number: int) -> Page:
    count = max(1, -(-messages // MESSAGES_OF_A_PAGE))
    if not 1 <= number <= count:
        raise IndexError(f"The run has {count} {'page' if count == 1 else 'pages'} of messages.")
    first = (number - 1) * MESSAGES_OF_A_PAGE
    return Page(number, count, first, min(first + MESSAGES_OF_A_PAGE, messages), messages)


def _starts(turns: Sequence[Row]) -> Iterator[int]:
    """Yield of each turn how many messages are before it."""
    before = 0
    for turn in turns:
        yield before
        before += len(turn["messages"])


def _is(turn: Row, step_id: str | None) -> bool:
    return step_id is not None and turn["step_id"] == step_id


def highlight(text: str, quotes: Sequence[str]) -> Markup:
    """Return a text as HTML with each quote marked; white space may differ, as where quotes are checked."""
    spans: list[tuple[int, int]] = []
    for quote in quotes:
        words = quote.split()
        if words and (found := re.search(r"\s+".join(map(re.escape, words)), text)):
            spans.append(found.span())
    parts, at = list[str](), 0
    for start, end in sorted(spans):
        if start < at:
            continue
        parts += [escape(text[at:start]), Markup("<mark>"), escape(text[start:end]), Markup("</mark>")]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def _task(document: Row | None) -> str:
    """Return the first message of a person, on one line."""
    for turn in (document or {}).get("turns", ()):
        for message in turn["messages"]:
            texts = (part.text for part in message_parts(message) if part.kind == "text")
            if message["kind"] == "user" and (text := " ".join(" ".join(texts).split())):
                return text
    return ""


def _requirements(outcome: Row, places: Mapping[str, tuple[int, int]], redact: Redact) -> Iterator[RequirementView]:
    for requirement in outcome["requirements"] or ():
        evidence = [
            CitationView(
                citation["message_id"],
                redact(citation["quote"]),
                citation["problem"],
                *places.get(citation["message_id"], (None, None)),
            )
            for citation in requirement["evidence"]
        ]
        yield RequirementView(redact(requirement["statement"]), requirement["status"], evidence)


class _PageOfTurns:
    """Makes the turns of one page, as far as its texts are not too long in all."""

    def __init__(self, page: Page, quotes: Mapping[str, list[str]], wrong_step: str | None, redact: Redact) -> None:
        self._page = page
        self._quotes = quotes
        self._wrong_step = wrong_step
        self._redact = redact
        self._left = LONGEST_PAGE

    def turns(self, turns: Sequence[Row], starts: Sequence[int]) -> Iterator[TurnView]:
        """Yield the turns that have a message on the page, and those without messages that stand there."""
        page = self._page
        for number, (turn, start) in enumerate(zip(turns, starts, strict=True), start=1):
            end = start + len(turn["messages"])
            shown = turn["messages"][max(page.first - start, 0) : max(page.last - start, 0)]
            if not shown and (turn["messages"] or page.of(start) != page.number):
                continue
            error = turn.get("error") if end <= page.last else None
            yield TurnView(
                number=number,
                step_id=turn["step_id"],
                model=turn.get("model"),
                wrong=_is(turn, self._wrong_step),
                continued=bool(shown) and start < page.first,
                messages=[self._message(message) for message in shown],
                error=error and self._redact(f"{as_text(error.get('type'))}: {as_text(error.get('message'))}"),
            )

    def _message(self, message: Row) -> MessageView:
        cited = self._quotes.get(message["message_id"], [])
        parts: list[Part] = []
        everything = list(message_parts(message))
        for place, part in enumerate(everything):
            if self._left <= 0:
                parts.append(Part("other", f"{len(everything) - place} more parts are not shown", Markup()))
                break
            parts.append(self._part(part, cited))
        return MessageView(
            message["message_id"], message_role(message), bool(message["is_deleted"]), bool(cited), parts
        )

    def _part(self, part: MessagePart, cited: Sequence[str]) -> Part:
        # Redacted first: half of a secret is not recognized.
        text, longest = self._redact(part.text), min(LONGEST_TEXT, self._left)
        self._left -= min(len(text), longest)
        rest = f"\n[… {len(text) - longest:,} more characters]" if len(text) > longest else ""
        return Part(part.kind, self._redact(_title(part)), highlight(text[:longest], cited) + rest)


def _title(part: MessagePart) -> str:
    match part.kind:
        case "call":
            return f"calls {part.name}"
        case "return" | "error":
            return f"returns {part.name}"
        case "reasoning":
            return "reasoning, summarized" if part.summarized else "reasoning"
        case _:
            return part.name
