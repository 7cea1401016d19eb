"""What the judge is shown: a trajectory as numbered text, the same every time.

Belongs here: the form of the transcript and what is shortened in it. Does not belong here: the rules that the judge
is given (``prompt``).

Form: a header line per message, ``[3] message-… role=tool kind=tool step=step-… run=run-…``, then its body, every line
indented by two spaces, so that no text of a message can pass for a header; ids have no blank or line break in them. A
line of text that begins like a mark of ours (``->``, ``<-``, ``??``, ``!!``, ``(text)``) is indented by one more. An
error that the server recorded is a line of its own, ``!! step step-… failed: …`` or ``!! run run-… error: …``. Run
status, model names and the heuristic outcome are not shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.trajectories.json_text import write

RENDERER_VERSION = "1"
"""Goes up with any change of the text below."""

_LIMITS = (20_000, 8_000, 3_000, 1_000, 300)
"""Characters that one piece of text may keep; the first that makes the whole fit is taken."""
_BYTES_PER_TOKEN = 3
"""A conservative estimate: English prose has four or more UTF-8 bytes to a token, JSON and code about three."""
_MARKS = ("->", "<-", "??", "!!", "(reasoning)", "(text)", "(stdout)", "(stderr)")


@dataclass(frozen=True)
class Rendered:
    """A transcript.

    Attributes:
        text: what the judge is shown.
        shown: what a quote must stand in: by message id, that message as it was shown; by the id of a step or a run,
            the ``!!`` line of the error that the server recorded there.
        roles: by message id, its role.
        steps: ids of the steps that are named.
        coverage: share of the content's characters that is shown, 0–1.
        fits: whether it is within the budget; if not, it may not be sent.
    """

    text: str
    shown: Mapping[str, str]
    roles: Mapping[str, str]
    steps: frozenset[str]
    coverage: float
    fits: bool


def estimated_tokens(text: str) -> int:
    """Return a conservative estimate of a text's tokens."""
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def render(documents: Sequence[Mapping[str, Any]], max_tokens: int) -> Rendered:
    """Return the transcript of a chain of runs as one task.

    Args:
        documents: of the runs that are shown, the earliest first, the judged one last.
        max_tokens: that the transcript may have, by estimate.
    """
    for limit in _LIMITS:
        rendered = _render(documents, limit, max_tokens)
        if rendered.fits:
            break
    return rendered


class _Budgeted:
    """Cuts long pieces of text, and keeps count of what was shown of what there was."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.there = 0
        self.kept = 0

    def cut(self, text: str, *, whole: bool = False) -> str:
        self.there += len(text)
        if whole or len(text) <= self._limit:
            self.kept += len(text)
            return text
        head, tail = self._limit * 2 // 3, self._limit // 3
        self.kept += head + tail
        return f"{text[:head]}\n[… {len(text) - head - tail} characters left out …]\n{text[-tail:]}"


def _render(documents: Sequence[Mapping[str, Any]], limit: int, max_tokens: int) -> Rendered:
    budget = _Budgeted(limit)
    lines: list[str] = []
    shown: dict[str, str] = {}
    roles: dict[str, str] = {}
    steps: set[str] = set()
    number = 0
    runs = {document["run_id"] for document in documents}
    for document in documents:
        run = _name(document["run_id"])
        before = document["metadata"].get("continues_run_id")
        if before is not None and before not in runs:
            lines.append(f"[… the run {_name(before)}, which {run} continues, is not shown …]")
        for turn in document["turns"]:
            step = _name(turn["step_id"])
            if turn["step_id"] is not None:
                steps.add(step)
            for message in turn["messages"]:
                number += 1
                body = [line for piece in _body(message, budget) for line in piece.splitlines()]
                name = _name(message["message_id"])
                role, kind = _name(message["role"]), _name(message["kind"])
                lines.append(f"[{number}] {name} role={role} kind={kind} step={step} run={run}")
                lines.extend(f"  {line}" for line in body)
                shown[name] = "\n".join(body)
                roles[name] = message["role"]
            error = turn.get("error")
            # Another run's step is shown with its own run, if that is shown at all.
            if error and not turn.get("step_run_id"):
                words = budget.cut(f"{error.get('type') or 'error'}: {error.get('message') or '-'}", whole=True)
                shown[step] = f"!! step {step} failed: {' '.join(words.split())}"
                lines.append(shown[step])
        error = document["metadata"].get("error")
        if error:
            words = " ".join(filter(None, [error.get("type"), error.get("message"), error.get("detail")]))
            shown[run] = f"!! run {run} error: {' '.join(budget.cut(words, whole=True).split())}"
            lines.append(shown[run])
    text = "\n".join(lines)
    return Rendered(
        text=text,
        shown=shown,
        roles=roles,
        steps=frozenset(steps),
        coverage=budget.kept / budget.there if budget.there else 1.0,
        fits=estimated_tokens(text) <= max_tokens,
    )


def _name(value: Any) -> str:
    """Return an id or a label as one word, whatever is in it; ``-`` where there is none."""
    if value is None or value == "":
        return "-"
    return "".join(c if c.isprintable() and not c.isspace() else f"\\u{{{ord(c):x}}}" for c in str(value))


def _plain(text: str) -> str:
    """Return text of which no line begins like a mark of ours."""
    if not any(mark in text for mark in _MARKS):
        return text
    return "\n".join(f" {line}" if line.startswith(_MARKS) else line for line in text.splitlines())


def _body(message: Mapping[str, Any], budget: _Budgeted) -> Iterator[str]:
    # A tool's row repeats its returns as text, and the returns say which call they answer.
    if not message.get("tool_returns"):
        reasoned = False
        for part in message["content"]:
            if part.get("type") == "text" and reasoned:
                yield "(text)"
            reasoned = "reasoning" in str(part.get("type"))
            yield from _part(part, budget)
    for call in message.get("tool_calls", ()):
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else write(arguments)
        yield f"-> call {_name(call.get('id'))} {_name(function.get('name'))}({_plain(budget.cut(text))})"
    for item in message.get("tool_returns", ()):
        status = "denied" if item.get("denied") else _name(item.get("status"))
        yield f"<- return {_name(item.get('tool_call_id'))} status={status}"
        text = item["text"] if item["text"] is not None else write(item.get("func_response"))
        yield _plain(budget.cut(text, whole=status == "error"))
        for name in ("stdout", "stderr"):
            for output in item.get(name) or ():
                yield f"({name}) {_plain(budget.cut(str(output)))}"
    for entry in message.get("approvals", ()):
        decided = entry.get("approve")
        approve = str(decided).lower() if isinstance(decided, bool) else "-"
        reason = budget.cut(_text_of(entry.get("reason")) or "-")
        yield f"?? approval {_name(entry.get('tool_call_id'))} approve={approve} reason={_plain(reason)}"


def _part(part: Mapping[str, Any], budget: _Budgeted) -> Iterator[str]:
    kind = part.get("type")
    if kind == "text":
        yield _plain(budget.cut(_text_of(part.get("text"))))
    elif kind == "reasoning":
        yield "(reasoning)"
        yield _plain(budget.cut(_text_of(part.get("reasoning"))))
    elif kind == "summarized_reasoning":
        yield "(reasoning)"
        summary = part.get("summary")
        for item in summary if isinstance(summary, list) else [summary]:
            yield _plain(budget.cut(_text_of(item.get("text") if isinstance(item, dict) else item)))
    elif kind == "image":
        source = part.get("source")
        media = source.get("media_type") if isinstance(source, dict) else None
        yield f"(an image, {_name(media) if media else 'of unknown type'}: not shown)"
    elif kind in ("redacted_reasoning", "omitted_reasoning"):
        yield "(reasoning that the provider withheld)"
    else:
        yield _plain(budget.cut(write(part)))


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else write(value)
