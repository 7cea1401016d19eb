"""The content digest: when it is equal, a verdict still holds.

Belongs here: what is covered, and its canonical form. Does not belong here: our own columns: the digest is taken of
what the source says, so that a new column of ours makes no verdict stale.

The canonical form is text: every value with its length before it, so that no two contents have one form. What the typed
fields hold whole is taken as it is; an entry of any other form as JSON with its keys sorted.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from trajectory_pipeline.lossless_json import canonical_json
from trajectory_pipeline.trajectories.messages import approval_of, part_of, tool_call_of, tool_return_of

Row = Mapping[str, Any]

_FLAGS = {None: None, True: "true", False: "false"}
_FORMS_AT_ONCE = 500


def content_digest(row: Row, escaped: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of what the agent saw, said and did, its errors and its ending.

    Not covered: durations, times, tokens, prices, feedback, signals, links between runs, agent attributes, deletion
    marks and our own versions: those may arrive late or change without making a verdict stale. Of another run's step
    only the messages of this run are covered: the rest is that run's content.

    Args:
        row: a trajectory, with the fields of ``schema.trajectories.TRAJECTORIES``.
        escaped: places in what is covered where text was escaped: the escape of a lone surrogate differs from the
            same words as text.
    """
    error = row["error"] or {}
    return hashed(
        [
            head_form(row["run_id"], row["status"], row["stop_reason"], error),
            *(form for turn in row["turns"] for form in _turn(turn)),
            f"escaped{framed(*escaped)}",
        ]
    )


def hashed(forms: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of canonical forms, one after the other; they need not be there all at once."""
    digest, coming = hashlib.sha256(), iter(forms)
    while some := list(islice(coming, _FORMS_AT_ONCE)):
        digest.update("".join(some).encode())
    return digest.hexdigest()


NOTHING_ESCAPED = "escaped"
"""Form of a run in which no text was escaped."""


def framed(*values: str | None) -> str:
    """Return values so that each can be told from its neighbours, and none from an empty one."""
    return "".join(["-" if value is None else f"{len(value)}:{value}" for value in values])


def head_form(run_id: str, status: str, stop_reason: str | None, error: Row) -> str:
    """Return the form of the run itself; ``error`` is empty where there is none."""
    recorded = [error.get(name) for name in ("type", "message", "detail", "step_id")]
    return f"run{framed(run_id, status, stop_reason, *recorded)}"


def own_turn_form(step_id: str, stop_reason: str | None, error: Row | None, messages: int) -> str:
    """Return the form of an own step, without its messages."""
    recorded = () if error is None else (error["type"], error["message"], error["detail"])
    return f"step{framed(step_id, stop_reason)}{'failed' if error else ''}{framed(*recorded)}of{messages}"


def other_turn_form(messages: int) -> str:
    """Return the form of a turn that is no own step, without its messages."""
    return f"of{messages}"


def message_form(message_id: str, role: str, name: str | None, counts: Sequence[int], entries: Sequence[str]) -> str:
    """Return the form of a message.

    Args:
        message_id: of the message.
        role: of the message.
        name: of the message.
        counts: how many parts, calls, returns and approvals it has.
        entries: the forms of these, in that order.
    """
    named = "-" if name is None else f"{len(name)}:{name}"
    head = f"message{len(message_id)}:{message_id}{len(role)}:{role}{named}"
    return f"{head}{','.join(map(str, counts))};{''.join(entries)}"


def part_form(row: Row) -> str:
    """Return the form of a content part."""
    if row["json"] is not None:
        return _json_form(part_of(row))
    return framed(row["type"], row["text"], row["reasoning"], row["signature"], _FLAGS[row["is_native"]])


def call_form(row: Row) -> str:
    """Return the form of a tool call."""
    if row["json"] is not None:
        return _json_form(tool_call_of(row))
    return framed(row["id"], row["type"], row["name"], row["arguments"])


def return_form(row: Row) -> str:
    """Return the form of a tool return."""
    if row["json"] is not None:
        return _json_form(tool_return_of(row))
    printed = (framed(*lines) if lines is not None else None for lines in (row["stdout"], row["stderr"]))
    return framed(row["tool_call_id"], row["status"], row["text"], *printed)


def approval_form(row: Row) -> str:
    """Return the form of a decision."""
    if row["json"] is not None:
        return _json_form(approval_of(row))
    return framed(row["type"], row["tool_call_id"], _FLAGS[row["approve"]], row["reason"])


def _json_form(value: dict[str, Any]) -> str:
    return f"json{framed(canonical_json(value))}"


def _turn(turn: Row) -> Iterable[str]:
    messages = turn["messages"]
    if turn["input_tokens"] is None:
        yield other_turn_form(len(messages))
    else:
        yield own_turn_form(turn["step_id"], turn["stop_reason"], turn["error"], len(messages))
    for message in messages:
        entries = [
            [part_form(part) for part in message["content"]],
            [call_form(call) for call in message["tool_calls"]],
            [return_form(item) for item in message["tool_returns"]],
            [approval_form(entry) for entry in message["approvals"]],
        ]
        yield message_form(
            message["message_id"],
            message["role"],
            message["name"],
            list(map(len, entries)),
            list(map("".join, entries)),
        )
