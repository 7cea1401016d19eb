"""Well-formed runs, converted a batch at a time: only a few short values of a run are read; the rest stays in Arrow.

Every rule comes from the module that the reference takes it from. A run of any other shape takes the reference path.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import repeat
from types import NoneType
from typing import Any

import pyarrow as pa

from trajectory_pipeline.conversion import digest
from trajectory_pipeline.conversion.columnar.columns import RawColumns, holds_unstorable
from trajectory_pipeline.conversion.columnar.decode import (
    DECODED_COLUMNS,
    NeedsReferencePath,
    decode_entries,
    decode_json,
)
from trajectory_pipeline.conversion.messages import (
    ReplyConvention,
    message_kind,
    reply_convention,
    split_reply_and_thought,
)
from trajectory_pipeline.conversion.outcome_rules import LastStep
from trajectory_pipeline.conversion.reference import COPIED, continued_run, step_error
from trajectory_pipeline.conversion.signals import argument_text
from trajectory_pipeline.conversion.summary import OwnStep, RunFacts, summary_row
from trajectory_pipeline.conversion.tools import NO_DENIALS, Denials, ToolCall, ToolReturn, ToolUse, row_names
from trajectory_pipeline.conversion.usage import COUNTS, StepUsage, usage_of
from trajectory_pipeline.lossless_json import parse_object, parse_strings, storable_text

Row = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class ColumnarTurn:
    """One turn of a run. Steps, metrics and messages are given by their index in the batch.

    ``usage`` is None where the step is another run's, which is then ``step_run_id``.
    """

    step: int
    metrics: int | None
    usage: StepUsage | None
    step_run_id: str | None
    error: Row | None
    tags: list[str]
    messages: list[int]


@dataclass
class ColumnarRun:
    """A well-formed run, by its index in the batch; ``values`` are the columns that are not copied from raw rows."""

    index: int
    values: Row
    turns: list[ColumnarTurn]


class ColumnarRuns:
    """The runs of one batch, and the kind, reply, thought and JSON columns of all their messages.

    ``denied`` are the returns that answer a denied call, by their index in ``returns``.
    """

    def __init__(self, raw: RawColumns, partition_key: str) -> None:
        self.raw = raw
        self._partition_key = partition_key
        self._holds_unstorable = holds_unstorable(_copied(raw))
        messages = raw.messages
        self._columns = tuple(decode_entries(column, messages.utf8(column)) for column in DECODED_COLUMNS)
        self.content, self.calls, self.returns, self.approvals = self._columns
        self._needs_reference = set().union(*(column.needs_reference for column in self._columns))
        count = len(messages["id"])
        self.kinds: list[str] = messages["role"][:]
        self.replies: list[str | None] = [None] * count
        self.thoughts: list[str | None] = [None] * count
        self.denied: set[int] = set()
        self._metadata = raw.runs.utf8("metadata_")
        self._details = [raw.steps.utf8(f"{name}_tokens_details") for name in ("prompt", "completion")]
        self._counts = [raw.steps[name] for name in COUNTS]
        self._conventions: dict[tuple[str | None, str | None], ReplyConvention] = {}

    def convert(self, index: int) -> ColumnarRun:
        """Convert one run of the batch.

        Raises:
            NeedsReferencePath: the reference is to convert it.
            ConversionError: the same, and it will be found to be wrong.
        """
        raw, runs = self.raw, self.raw.runs
        if self._holds_unstorable:
            raise NeedsReferencePath
        run_id, status, stop_reason = runs["id"][index], runs["status"][index], runs["stop_reason"][index]
        if run_id is None or status is None or runs["agent_id"][index] is None or runs["is_deleted"][index]:
            raise NeedsReferencePath
        first, end = raw.message_offsets[index], raw.message_offsets[index + 1]
        self._read_messages(first, end, self._convention(index))
        metadata = self._metadata_of(index)
        turns = self._turns(index, run_id)
        messages = [message for turn in turns for message in turn.messages]
        own = [turn for turn in turns if turn.usage is not None]
        denials = self._mark_denied(first, end)
        created, completed = runs["created_at"][index], runs["completed_at"][index]
        run_ns = raw.run_metrics["run_ns"][index]
        parts, offsets = self.content.rows, self.content.offsets
        values = summary_row(
            RunFacts(
                run_id=run_id,
                partition_key=self._partition_key,
                status=status,
                stop_reason=stop_reason,
                conversation_id=runs["conversation_id"][index],
                metadata=metadata,
                created_at=_timestamp(created),
                duration_ns=None if created is None or completed is None else (completed - created) * 1000,
                run_ns=runs["total_duration_ns"][index] if run_ns is None else run_ns,
                own_steps=[self._own_step(turn.step, turn.usage) for turn in own if turn.usage is not None],
                last_step=self._last_step(own[-1]) if own else None,
                conversation_ids=raw.messages["conversation_id"][first:end],
                kinds=[self.kinds[message] for message in messages],
                has_reply=any(self.replies[first:end]),
                tools=self._tool_use(index, messages, denials),
                denied=denials.count,
                refusals=sum(
                    "refusal" in [part[0] for part in parts[offsets[message] : offsets[message + 1]]]
                    for message in messages
                ),
                empty_final_answer=self._is_final_answer_empty(messages),
                continues_run_id=self._continued_run(index, run_id),
            )
        )
        texts = self._canonical_texts(run_id, status, stop_reason, values["error"], turns)
        values["content_digest"] = digest.sha256_of(texts)
        return ColumnarRun(index, values, turns)

    def release_texts(self) -> None:
        """Free what is not needed once all runs are Arrow; documents can still be made."""
        self.replies, self.thoughts = [], []
        for column in self._columns:
            column.canonical = []
            if column is not self.returns:
                column.rows = []

    def _metadata_of(self, index: int) -> Row:
        metadata: Any = decode_json(self._metadata[index])
        if metadata is None:
            return {}
        if type(metadata) is not dict or "error" in metadata:
            escapes: list[str] = []
            metadata = parse_object(self.raw.runs["metadata_"][index], "metadata_", escapes)
            if escapes:
                raise NeedsReferencePath
        parsed: Row = metadata
        run_type = parsed.get("run_type")
        if type(run_type) is str and "\0" in run_type:
            raise NeedsReferencePath
        return parsed

    def _convention(self, index: int) -> ReplyConvention:
        key = (self.raw.agents["agent_type"][index], self.raw.runs["request_config"][index])
        if key not in self._conventions:
            self._conventions[key] = reply_convention(key[0], parse_object(key[1], "request_config", []))
        return self._conventions[key]

    def _read_messages(self, first: int, end: int, convention: ReplyConvention) -> None:
        messages, content, calls = self.raw.messages, self.content, self.calls
        ids, roles, texts, approve = (messages[name] for name in ("id", "role", "text", "approve"))
        if len(set(ids[first:end])) < end - first or not self._needs_reference.isdisjoint(range(first, end)):
            raise NeedsReferencePath
        # Older versions of Letta fill these columns.
        if any(texts[first:end]) or not all(map(operator.is_, approve[first:end], repeat(None))):
            raise NeedsReferencePath
        for at in range(first, end):
            role = roles[at]
            if role is None or ids[at] is None:
                raise NeedsReferencePath
            if role in ("user", "system"):
                self.kinds[at] = message_kind(role, content.values[content.offsets[at] : content.offsets[at + 1]])
            elif role in ("assistant", "approval"):
                reply, self.thoughts[at] = split_reply_and_thought(
                    role,
                    content.values[content.offsets[at] : content.offsets[at + 1]],
                    calls.values[calls.offsets[at] : calls.offsets[at + 1]],
                    convention,
                )
                if reply is not None and storable_text(reply) is not reply:
                    raise NeedsReferencePath
                self.replies[at] = reply

    def _turns(self, index: int, run_id: str) -> list[ColumnarTurn]:
        raw, steps = self.raw, self.raw.steps
        own = range(raw.own_step_offsets[index], raw.own_step_offsets[index + 1])
        of_run = [*own, *range(raw.foreign_step_offsets[index], raw.foreign_step_offsets[index + 1])]
        step_ids, created = steps["id"], steps["created_at"]
        by_step: dict[str, list[int]] = {step_ids[at]: [] for at in of_run}
        if len(by_step) != len(of_run) or None in by_step:
            raise NeedsReferencePath
        sequence, step_of = raw.messages["sequence_id"], raw.messages["step_id"]
        previous = None
        for at in range(raw.message_offsets[index], raw.message_offsets[index + 1]):
            number = sequence[at]
            if number is None or (previous is not None and number <= previous) or step_of[at] not in by_step:
                raise NeedsReferencePath
            previous = number
            by_step[step_of[at]].append(at)
        order = []
        for at in of_run:
            messages = by_step[step_ids[at]]
            if created[at] is None:
                raise NeedsReferencePath
            # In seconds, rounded as the reference rounds them.
            first = sequence[messages[0]] if messages else 0
            order.append((created[at] / 10**6, not messages, first, step_ids[at], at))
        order.sort()
        measured = range(raw.step_metrics_offsets[index], raw.step_metrics_offsets[index + 1])
        metrics = {raw.step_metrics["id"][at]: at for at in measured}
        return [self._turn(at, metrics.get(step_id), run_id, at in own, by_step[step_id]) for *_, step_id, at in order]

    def _turn(self, at: int, metrics: int | None, run_id: str, is_own: bool, messages: list[int]) -> ColumnarTurn:
        owner, kind, data, tags_json = (
            self.raw.steps[name][at] for name in ("run_id", "error_type", "error_data", "tags")
        )
        error, tags = None, []
        if kind is not None or data not in (None, "null") or tags_json not in (None, "[]", "null"):
            escapes: list[str] = []
            error = step_error({"error_type": kind, "error_data": data}, "error_data", escapes)
            tags = parse_strings(tags_json, "tags", escapes)
            if escapes:
                raise NeedsReferencePath
        usage = self._usage(at) if is_own else None
        return ColumnarTurn(at, metrics, usage, owner if owner != run_id else None, error, tags, messages)

    def _usage(self, at: int) -> StepUsage:
        prompt, completion = [
            None if details[at] is None or details[at] == b"null" else decode_json(details[at])
            for details in self._details
        ]
        # Only of an object it is certain that rounding no number in it changes what is reported.
        if type(prompt) not in (dict, NoneType) or type(completion) not in (dict, NoneType):
            raise NeedsReferencePath
        return usage_of("", [counts[at] for counts in self._counts], prompt, completion)

    def _own_step(self, at: int, usage: StepUsage) -> OwnStep:
        names = ("model", "provider_name", "created_at", "context_window_limit", "feedback")
        model, provider, created, limit, feedback = (self.raw.steps[name][at] for name in names)
        return OwnStep(usage, model, provider, _timestamp(created), limit, feedback)

    def _last_step(self, turn: ColumnarTurn) -> LastStep:
        step_id, status, stop_reason = (self.raw.steps[name][turn.step] for name in ("id", "status", "stop_reason"))
        return LastStep.of(step_id, status, stop_reason, turn.error)

    def _mark_denied(self, first: int, end: int) -> Denials:
        """Mark the returns of denied calls, and return what was denied."""
        decisions = self.approvals.rows[self.approvals.offsets[first] : self.approvals.offsets[end]]
        denied = {row[1] for row in decisions if row[2] is False}
        if None in denied:
            raise NeedsReferencePath
        if not denied:
            return NO_DENIALS
        offsets, rows = self.returns.offsets, self.returns.rows
        self.denied.update(at for at in range(offsets[first], offsets[end]) if rows[at][0] in denied)
        return Denials(frozenset(denied), count=len(denied))

    def _tool_use(self, index: int, messages: list[int], denials: Denials) -> ToolUse:
        roles, names = self.raw.messages["role"], self.raw.messages["name"]
        call_offsets, return_offsets = self.calls.offsets, self.returns.offsets
        calls: list[ToolCall] = []
        returns: list[ToolReturn] = []
        call_rows, return_rows = self.calls.rows, self.returns.rows
        for position, at in enumerate(messages):
            first, end = call_offsets[at], call_offsets[at + 1]
            if first < end:
                waits = roles[at] == "approval"
                for call_id, _, name, arguments, whole in call_rows[first:end]:
                    text = arguments if whole is None else argument_text({"arguments": arguments, "json": whole})
                    calls.append(ToolCall(position, call_id, name, text, waits, call_id in denials.call_ids))
            first, end = return_offsets[at], return_offsets[at + 1]
            if first < end:
                denied = [item in self.denied for item in range(first, end)]
                of_row = row_names(names[at], roles[at], denied)
                for row, was_denied, name in zip(return_rows[first:end], denied, of_row, strict=True):
                    returns.append(ToolReturn(position, row[0], row[1], was_denied, name))
        return ToolUse(calls, returns, denials.of(self.raw.asked_calls[index] or ()))

    def _is_final_answer_empty(self, messages: list[int]) -> bool | None:
        roles = self.raw.messages["role"]
        for at in reversed(messages):
            if roles[at] in ("assistant", "approval") and not self.approvals.of(at):
                return not self.replies[at] and not self.calls.of(at)
        return None

    def _continued_run(self, index: int, run_id: str) -> str | None:
        raw = self.raw
        foreign = range(raw.foreign_step_offsets[index], raw.foreign_step_offsets[index + 1])
        owners = {raw.steps["id"][at]: raw.steps["run_id"][at] for at in foreign}
        first, end = raw.message_offsets[index], raw.message_offsets[index + 1]
        return continued_run(run_id, owners, raw.messages["step_id"][first:end]) if owners else None

    def _canonical_texts(
        self, run_id: str, status: str, stop_reason: str | None, error: Row | None, turns: list[ColumnarTurn]
    ) -> Iterator[str]:
        steps, messages = self.raw.steps, self.raw.messages
        ids, roles, names = messages["id"], messages["role"], messages["name"]
        all_offsets = [column.offsets for column in self._columns]
        all_texts = [column.canonical for column in self._columns]
        yield digest.run_text(run_id, status, stop_reason, error)
        for turn in turns:
            count = len(turn.messages)
            if turn.usage is None:
                yield digest.other_turn_text(count)
            else:
                step_id, stopped = steps["id"][turn.step], steps["stop_reason"][turn.step]
                yield digest.own_turn_text(step_id, stopped, turn.error, count)
            for at in turn.messages:
                counts = [offsets[at + 1] - offsets[at] for offsets in all_offsets]
                yield digest.message_text(ids[at], roles[at], names[at], counts, [texts[at] for texts in all_texts])
        yield digest.NOTHING_ESCAPED


def _copied(raw: RawColumns) -> "Iterator[pa.Array[Any]]":
    for name, table in (
        ("runs", raw.runs),
        ("agents", raw.agents),
        ("steps", raw.steps),
        ("messages", raw.messages),
    ):
        yield from (table.arrays[column] for column in COPIED[name])
    tags: Any = raw.batch.column("agent_tags")
    yield tags.flatten()


def _timestamp(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
