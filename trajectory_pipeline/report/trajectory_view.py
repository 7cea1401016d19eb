"""A trajectory as a page shows it: turns, tools and errors, with the evidence that the verdict cites marked."""

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
    """A turn; ``error`` is that of its step."""

    number: int
    step_id: str | None
    model: str | None
    wrong: bool
    messages: list[MessageView]
    error: str | None


@dataclass(frozen=True)
class CitationView:
    """A quote that the verdict rests on; ``problem`` says why it does not count, if so."""

    message_id: str
    quote: str
    problem: str | None


@dataclass(frozen=True)
class RequirementView:
    """A requirement with its status and evidence."""

    statement: str
    status: str
    evidence: list[CitationView]


@dataclass(frozen=True)
class TrajectoryView:
    """All that the page of one trajectory shows. Texts are redacted."""

    row: Row
    outcome: Row
    task: str
    turns: list[TurnView]
    omitted: str | None
    requirements: list[RequirementView] = field(default_factory=list)
    summary: str = ""
    lesson: str | None = None


def trajectory_view(row: Row, outcome: Row, redact: Redact) -> TrajectoryView:
    """Return the view of a row of ``trajectory.trajectories`` and its row of ``trajectory.outcomes``.

    ``redact`` is applied to every text before it is shown.
    """
    requirements = list(_requirements(outcome, redact))
    quotes: dict[str, list[str]] = {}
    for requirement in requirements:
        for citation in requirement.evidence:
            quotes.setdefault(citation.message_id, []).append(citation.quote)
    document = row["data"]
    turns = [] if document is None else list(_turns(document, quotes, outcome.get("failed_step_id"), redact))
    return TrajectoryView(
        row=row,
        outcome=outcome,
        task=redact(_task(document)),
        turns=turns,
        omitted=row["data_omitted_reason"] if document is None else None,
        requirements=requirements,
        summary=redact(outcome["summary"] or ""),
        lesson=redact(outcome["lesson"]) if outcome["lesson"] else None,
    )


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


def _requirements(outcome: Row, redact: Redact) -> Iterator[RequirementView]:
    for requirement in outcome["requirements"] or ():
        evidence = [
            CitationView(citation["message_id"], redact(citation["quote"]), citation["problem"])
            for citation in requirement["evidence"]
        ]
        yield RequirementView(redact(requirement["statement"]), requirement["status"], evidence)


def _turns(
    document: Row, quotes: Mapping[str, list[str]], wrong_step: str | None, redact: Redact
) -> Iterator[TurnView]:
    for number, turn in enumerate(document["turns"], start=1):
        error = turn.get("error")
        yield TurnView(
            number=number,
            step_id=turn["step_id"],
            model=turn.get("model"),
            wrong=turn["step_id"] is not None and turn["step_id"] == wrong_step,
            messages=[_message(message, quotes, redact) for message in turn["messages"]],
            error=error and redact(f"{as_text(error.get('type'))}: {as_text(error.get('message'))}"),
        )


def _message(message: Row, quotes: Mapping[str, list[str]], redact: Redact) -> MessageView:
    cited = quotes.get(message["message_id"], [])
    parts = [
        Part(part.kind, redact(_title(part)), highlight(redact(part.text), cited)) for part in message_parts(message)
    ]
    role = message_role(message)
    return MessageView(message["message_id"], role, bool(message["is_deleted"]), bool(cited), parts)


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
