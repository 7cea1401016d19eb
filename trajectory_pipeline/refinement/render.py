"""What the judge is shown: a trajectory as numbered text, the same every time.

Belongs here: the form of the transcript and what is shortened in it. Does not belong here: the rules that the judge
is given (``prompt``).

Form: a header line per message, ``[3] message-… role=tool kind=tool step=step-… run=run-…``, then its body, every line
indented by two spaces, so that no text of a message can pass for a header. Run status, model names and the heuristic
outcome are not shown.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RENDERER_VERSION = "1"
"""Goes up with any change of the text below."""

_LIMITS = (20_000, 8_000, 3_000, 1_000, 300)
"""Characters that one piece of text may keep; the first that makes the whole fit is taken."""
_CHARACTERS_PER_TOKEN = 3
"""A conservative estimate: English prose has four or more UTF-8 bytes to a token, JSON and code about three."""


@dataclass(frozen=True)
class Rendered:
    """A transcript.

    Attributes:
        text: what the judge is shown.
        shown: by message id, the text of that message as it was shown: what a quote must stand in.
        roles: by message id, its role.
        coverage: share of the content's characters that is shown, 0–1.
        fits: whether it is within the budget; if not, it may not be sent.
    """

    text: str
    shown: Mapping[str, str]
    roles: Mapping[str, str]
    coverage: float
    fits: bool


def estimated_tokens(text: str) -> int:
    """Return a conservative estimate of a text's tokens."""
    return -(-len(text.encode()) // _CHARACTERS_PER_TOKEN)


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
    number = 0
    for document in documents:
        for turn in document["turns"]:
            for message in turn["messages"]:
                number += 1
                body = "\n".join(_body(message, budget))
                lines.append(
                    f"[{number}] {message['message_id']} role={message['role']} kind={message['kind']}"
                    f" step={turn['step_id'] or '-'} run={document['run_id']}"
                )
                lines.extend(f"  {line}" for line in body.splitlines())
                shown[message["message_id"]] = body
                roles[message["message_id"]] = message["role"]
            error = turn.get("error")
            # Another run's step is shown with its own run, if that is shown at all.
            if error and not turn.get("step_run_id"):
                words = budget.cut(f"{error.get('type') or 'error'}: {error.get('message') or '-'}", whole=True)
                lines.append(f"!! step {turn['step_id']} failed: {' '.join(words.split())}")
        error = document["metadata"].get("error")
        if error:
            words = " ".join(filter(None, [error.get("type"), error.get("message"), error.get("detail")]))
            lines.append(f"!! run error: {' '.join(budget.cut(words, whole=True).split())}")
    text = "\n".join(lines)
    return Rendered(
        text=text,
        shown=shown,
        roles=roles,
        coverage=budget.kept / budget.there if budget.there else 1.0,
        fits=estimated_tokens(text) <= max_tokens,
    )


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
        function = call.get("function") or {}
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        yield f"-> call {call.get('id')} {function.get('name')}({budget.cut(text)})"
    for item in message.get("tool_returns", ()):
        status = "denied" if item.get("denied") else item.get("status") or "-"
        yield f"<- return {item.get('tool_call_id')} status={status}"
        text = item["text"] if item["text"] is not None else json.dumps(item.get("func_response"))
        yield budget.cut(text, whole=status == "error")
        for name in ("stdout", "stderr"):
            for output in item.get(name) or ():
                yield f"({name}) {budget.cut(str(output))}"
    for entry in message.get("approvals", ()):
        decided = entry.get("approve")
        approve = "-" if decided is None else str(decided).lower()
        yield f"?? approval {entry.get('tool_call_id')} approve={approve} reason={entry.get('reason') or '-'}"


def _part(part: Mapping[str, Any], budget: _Budgeted) -> Iterator[str]:
    kind = part.get("type")
    if kind == "text":
        yield budget.cut(str(part.get("text") or ""))
    elif kind == "reasoning":
        yield "(reasoning)"
        yield budget.cut(str(part.get("reasoning") or ""))
    elif kind == "summarized_reasoning":
        yield "(reasoning)"
        for item in part.get("summary") or ():
            yield budget.cut(str(item.get("text") if isinstance(item, dict) else item))
    elif kind == "image":
        source = part.get("source")
        media = source.get("media_type") if isinstance(source, dict) else None
        yield f"(an image, {media or 'of unknown type'}: not shown)"
    elif kind in ("redacted_reasoning", "omitted_reasoning"):
        yield "(reasoning that the provider withheld)"
    else:
        yield budget.cut(json.dumps(part, ensure_ascii=False, default=str))
