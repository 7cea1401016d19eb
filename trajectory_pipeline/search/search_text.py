"""The text by which a trajectory is found: the task as asked, tools, errors, and what a judge said of it.

Each part is one paragraph that begins with its name, and is left out where there is nothing to say:

``Task:`` what people and other agents wrote in the run; where nobody did, as in the answer to an approval request, in
the first run of its chain. ``Summary:`` and ``Lesson:`` of its verdict. ``Tools:`` those that ran, ``Denied tools:``
those that a person denied. ``Errors:`` of tools, steps and the run, each once.

Outcome, agent and model are not in it: they are filters. A part that is too long ends with how much is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.lossless_json import as_text, object_or_empty

MOST_CHARACTERS = {"Task": 4000, "Summary": 2000, "Lesson": 1000, "Tools": 1000, "Denied tools": 500, "Errors": 2000}
"""Of each part, in this order: fewer than 11,000 in all, so that common embedding models read every word."""
_REDACTED_AT_MOST = 5
"""How many times its limit of a part is redacted: the rest would be left out anyway."""
_ERROR_CHARACTERS = 300
_AUTOMATIC_KINDS = frozenset({"heartbeat", "login", "system_alert"})


@dataclass(frozen=True)
class Judged:
    """What a verdict says in words."""

    summary: str | None
    lesson: str | None


def render_search_text(
    documents: Sequence[Mapping[str, Any]], judged: Judged | None, redact: Callable[[str], str]
) -> str:
    """Return the text of a trajectory; empty where there is nothing to find it by.

    Args:
        documents: of the runs of its task, the earliest first, its own last; see ``conversion.document``.
        judged: what its verdict says, if it has one.
        redact: replaces secrets.
    """
    own = documents[-1]
    metadata = own["metadata"]
    parts: dict[str, str | None] = {
        "Task": next(filter(None, (_task(document) for document in (own, *documents))), None),
        "Summary": judged.summary if judged else None,
        "Lesson": judged.lesson if judged else None,
        "Tools": ", ".join(metadata.get("tools_used") or ()),
        "Denied tools": ", ".join(metadata.get("tools_denied") or ()),
        "Errors": "\n".join(
            dict.fromkeys(_redacted(" ".join(error.split()), _ERROR_CHARACTERS, redact) for error in _errors(own))
        ),
    }
    return "\n\n".join(
        f"{name}: {_redacted(text, most, redact)}"
        for name, most in MOST_CHARACTERS.items()
        if (text := (parts[name] or "").strip())
    )


def _redacted(text: str, most: int, redact: Callable[[str], str]) -> str:
    """Return a text without secrets, cut to a length: in this order, because a secret cut in two would not be found."""
    head = text[: most * _REDACTED_AT_MOST]
    redacted = redact(head)
    left_out = len(redacted) - most + len(text) - len(head)
    return redacted if left_out <= 0 else f"{redacted[:most]} [… {left_out} characters left out …]"


def _task(document: Mapping[str, Any]) -> str:
    """Return what people and other agents wrote; where nobody did, what came by itself, such as an alert."""
    written: list[str] = []
    automatic: list[str] = []
    for message in _messages(document):
        if message["role"] == "user" and not message.get("is_deleted") and message["kind"] != "summary":
            (automatic if message["kind"] in _AUTOMATIC_KINDS else written).append(_text_of(message))
    return "\n".join(filter(None, written)) or "\n".join(filter(None, automatic))


def _errors(document: Mapping[str, Any]) -> Iterator[str]:
    names: dict[str, str] = {}
    for message in _messages(document):
        for call in message.get("tool_calls") or ():
            names[as_text(call.get("id"))] = as_text(object_or_empty(call.get("function")).get("name"))
        for returned in message.get("tool_returns") or ():
            if returned.get("status") == "error" and not returned.get("denied") and not message.get("is_deleted"):
                tool = names.get(as_text(returned.get("tool_call_id")))
                text = returned.get("text") or as_text(returned.get("func_response"))
                yield f"{tool}: {text}" if tool else text
    for turn in document["turns"]:
        # Another run's step is in the text of its own run.
        if turn.get("error") and not turn.get("step_run_id"):
            yield _error(turn["error"])
    if document["metadata"].get("error"):
        yield _error(document["metadata"]["error"])


def _error(error: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (error.get("type"), error.get("message"))))


def _messages(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for turn in document["turns"]:
        yield from turn["messages"]


def _text_of(message: Mapping[str, Any]) -> str:
    texts = (part.get("text") for part in message["content"] if part.get("type") == "text")
    return "\n".join(text.strip() for text in texts if isinstance(text, str))
