"""The content digest: as long as it is equal, a verdict still holds.

It covers what the source says, none of our own columns, so that a new column makes no verdict stale. Values are written
as canonical text, each with its length before it, so that no two contents have the same text. What the typed fields
hold whole is written from them; an entry of any other shape is written as JSON with sorted keys.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, cast

import pyarrow as pa

from trajectory_pipeline.conversion.messages import approval_of, part_of, tool_call_of, tool_return_of
from trajectory_pipeline.lossless_json import canonical_json
from trajectory_pipeline.schema.raw import CONTEXT

Row = Mapping[str, Any]

_FLAGS = {None: None, True: "true", False: "false"}
_TEXTS_AT_ONCE = 500
_CONTEXT_FIELDS = tuple(column.name for column in CONTEXT.fields)

NOTHING_ESCAPED = "escaped"
"""Canonical text of a run in which no text was escaped."""


def content_digest(row: Row, escaped: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of what the agent saw, said and did, its errors and its ending.

    Not covered, because they may arrive late or change without making a verdict stale: durations, times, tokens,
    prices, feedback, signals, links between runs, agent attributes, deletion marks and our own versions. Of another
    run's step only this run's messages are covered. ``escaped`` are the JSON paths in what is covered at which text was
    escaped: an escaped lone surrogate differs from the same characters as text.
    """
    texts = [run_text(row["run_id"], row["status"], row["stop_reason"], row["error"])]
    for turn in row["turns"]:
        texts += _turn_texts(turn)
    return sha256_of([*texts, f"escaped{length_prefixed(*escaped)}"])


def sha256_of(texts: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of texts, one after the other, without holding them all at once."""
    digest, remaining = hashlib.sha256(), iter(texts)
    while some := list(islice(remaining, _TEXTS_AT_ONCE)):
        digest.update("".join(some).encode())
    return digest.hexdigest()


def length_prefixed(*values: str | None) -> str:
    """Return values so that each can be distinguished from its neighbors, and null from an empty string."""
    return "".join(["-" if value is None else f"{len(value)}:{value}" for value in values])


def run_text(run_id: str, status: str, stop_reason: str | None, error: Row | None) -> str:
    """Return the canonical text of a run without its turns."""
    recorded = [None if error is None else error[name] for name in ("type", "message", "detail", "step_id")]
    return f"run{length_prefixed(run_id, status, stop_reason, *recorded)}"


def own_turn_text(step_id: str, stop_reason: str | None, error: Row | None, messages: int) -> str:
    """Return the canonical text of an own step without its messages."""
    recorded = () if error is None else (error["type"], error["message"], error["detail"])
    failed = "failed" if error else ""
    return f"step{length_prefixed(step_id, stop_reason)}{failed}{length_prefixed(*recorded)}of{messages}"


def other_turn_text(messages: int) -> str:
    """Return the canonical text of a turn that is no own step, without its messages."""
    return f"of{messages}"


def message_head(message_id: str, role: str, name: str | None, counts: Sequence[int]) -> str:
    """Return the canonical text of a message up to its entries, of the counts of its parts, calls, returns, approvals.

    The texts of the entries follow, in the same order.
    """
    named = "-" if name is None else f"{len(name)}:{name}"
    parts, calls, returns, approvals = counts
    return f"message{len(message_id)}:{message_id}{len(role)}:{role}{named}{parts},{calls},{returns},{approvals};"


def part_text(row: Row) -> str:
    """Return the canonical text of a content part."""
    if row["json"] is not None:
        return _json_text(part_of(row))
    return length_prefixed(row["type"], row["text"], row["reasoning"], row["signature"], _FLAGS[row["is_native"]])


def call_text(row: Row) -> str:
    """Return the canonical text of a tool call."""
    if row["json"] is not None:
        return _json_text(tool_call_of(row))
    return length_prefixed(row["id"], row["type"], row["name"], row["arguments"])


def return_text(row: Row) -> str:
    """Return the canonical text of a tool return."""
    if row["json"] is not None:
        return _json_text(tool_return_of(row))
    printed = (None if lines is None else length_prefixed(*lines) for lines in (row["stdout"], row["stderr"]))
    return length_prefixed(row["tool_call_id"], row["status"], row["text"], *printed)


def approval_text(row: Row) -> str:
    """Return the canonical text of an approval decision."""
    if row["json"] is not None:
        return _json_text(approval_of(row))
    return length_prefixed(row["type"], row["tool_call_id"], _FLAGS[row["approve"]], row["reason"])


def context_digest(context: Row | None) -> str | None:
    """Return the SHA-256 (hex) of a run's context (``schema.raw.CONTEXT``): with it, too, a verdict changes."""
    return None if context is None else sha256_of([length_prefixed(*(context[name] for name in _CONTEXT_FIELDS))])


def context_digests(contexts: "pa.Array[Any]") -> list[str | None]:
    """Return the digest of each of many contexts, which are mostly equal: see ``context_digest``."""
    # Texts are compared in Arrow, and made Python strings once each.
    fields = [cast(pa.StructArray, contexts).field(name).dictionary_encode() for name in _CONTEXT_FIELDS]
    texts: list[list[str | None]] = [[*field.dictionary.to_pylist(), None] for field in fields]
    indexes = zip(*(field.indices.fill_null(-1).to_pylist() for field in fields), strict=True)

    @cache
    def digest(at: tuple[int, ...]) -> str:
        return sha256_of([length_prefixed(*(of_field[index] for of_field, index in zip(texts, at, strict=True)))])

    return [digest(at) if valid else None for at, valid in zip(indexes, contexts.is_valid().to_pylist(), strict=True)]


def _json_text(value: dict[str, Any]) -> str:
    return f"json{length_prefixed(canonical_json(value))}"


def _turn_texts(turn: Row) -> Iterable[str]:
    messages = turn["messages"]
    if turn["input_tokens"] is None:
        yield other_turn_text(len(messages))
    else:
        yield own_turn_text(turn["step_id"], turn["stop_reason"], turn["error"], len(messages))
    for message in messages:
        entries = [
            [part_text(part) for part in message["content"]],
            [call_text(call) for call in message["tool_calls"]],
            [return_text(item) for item in message["tool_returns"]],
            [approval_text(entry) for entry in message["approvals"]],
        ]
        yield message_head(message["message_id"], message["role"], message["name"], list(map(len, entries)))
        yield from map("".join, entries)
