"""Ordinary runs, converted a batch at a time: what is read of a run is a few short values; the rest stays in Arrow.

Belongs here: the walk over a run's rows. Does not belong here: any rule: each comes from the module that the
specification (``convert.convert_run``) takes it from. A run in which anything is not plainly ordinary is ``Unusual``,
and the specification converts it.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import repeat
from typing import Any

from trajectory_pipeline.lossless_json import EscapedPaths, parse_object, parse_strings, storable_text
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION
from trajectory_pipeline.trajectories import digest
from trajectory_pipeline.trajectories.columnar import decode
from trajectory_pipeline.trajectories.columnar.columns import RawColumns
from trajectory_pipeline.trajectories.columnar.decode import DecodedEntry, NeedsReferencePath, decoded
from trajectory_pipeline.trajectories.messages import (
    ReplyConvention,
    message_kind,
    reply_convention,
    split_reply_and_thought,
)
from trajectory_pipeline.trajectories.outcome_rules import LastStep, RunError, classify_outcome, run_error
from trajectory_pipeline.trajectories.reference import reject_out_of_range_times, step_error, trajectory_id
from trajectory_pipeline.trajectories.signals import compute_signals, parsed_arguments
from trajectory_pipeline.trajectories.usage import COUNTS, StepUsage, cost_usd, run_usage, total_usage

Row = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class ColumnarTurn:
    """One turn of an ordinary run.

    Attributes:
        step: where its step stands in the batch.
        metrics: where the step's metrics stand in the batch; None where there are none.
        usage: of an own step; None where the step is another run's.
        step_run_id: the other run.
        error: of the step.
        tags: of the step.
        messages: where its messages stand in the batch, in order.
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
    """An ordinary run.

    Attributes:
        place: where it stands in the batch.
        values: the fields of its trajectory that are not taken over from the raw rows.
        turns: in order.
    """

    place: int
    values: Row
    turns: list[ColumnarTurn]


class ColumnarRuns:
    """The runs of one batch, and what was found in their messages.

    Attributes:
        raw: the batch.
        content: parts of all messages of the batch; so are ``calls``, ``returns`` and ``approvals``.
        kinds: of each message; so are ``said`` and ``thoughts``.
        denied: returns that answer a denied call, by their place in ``returns``.
    """

    def __init__(self, raw: RawColumns, partition_key: str) -> None:
        self.raw = raw
        self._key = partition_key
        messages = raw.messages
        self.content = decode.parts(messages.encoded("content"))
        self.calls = decode.tool_calls(messages.encoded("tool_calls"))
        self.returns = decode.tool_returns(messages.encoded("tool_returns"))
        self.approvals = decode.approvals(messages.encoded("approvals"))
        columns = (self.content, self.calls, self.returns, self.approvals)
        self._unusual = set().union(*(column.unusual for column in columns))
        count = len(messages["id"])
        self.kinds: list[str] = messages["role"][:]
        self.said: list[str | None] = [None] * count
        self.thoughts: list[str | None] = [None] * count
        self.denied: set[int] = set()
        self._metadata = raw.runs.encoded("metadata_")
        self._details = [raw.steps.encoded(f"{name}_tokens_details") for name in ("prompt", "completion")]
        self._counts = [raw.steps[name] for name in COUNTS]
        self._answering: dict[tuple[str | None, str | None], ReplyConvention] = {}

    def run(self, place: int) -> ColumnarRun:
        """Convert one run.

        Raises:
            Unusual: it is to be converted as the specification says.
            ConversionError: the same, and it will be found to be wrong.
        """
        runs, steps, raw = self.raw.runs, self.raw.steps, self.raw
        run_id, status, stop_reason = runs["id"][place], runs["status"][place], runs["stop_reason"][place]
        if run_id is None or status is None or runs["agent_id"][place] is None:
            raise NeedsReferencePath
        first, last = raw.messages_of[place], raw.messages_of[place + 1]
        self._read_messages(first, last, self._how(place))
        metadata = self._metadata_of(place)
        turns = self._turns(place, run_id)
        order = [message for turn in turns for message in turn.messages]
        own = [turn for turn in turns if turn.usage is not None]
        used = [turn.usage for turn in own if turn.usage is not None]
        denied = self._mark_denied(first, last)
        last_step = self._last_step(own[-1]) if own else None
        error = _error_row(failure := run_error(metadata.get("error"), last_step))
        calls = self._in_order(self.calls, order)
        ended = classify_outcome(
            status,
            stop_reason,
            last_step,
            failure,
            has_steps=bool(own),
            says_or_calls=bool(calls) or any(self.said[first:last]),
        )
        created, completed = runs["created_at"][place], runs["completed_at"][place]
        run_ns = raw.run_metrics["run_ns"][place]
        values: Row = {
            "trajectory_id": trajectory_id(run_id),
            "conversation_id": runs["conversation_id"][place] or self._conversation(first, last),
            "duration_ns": None if created is None or completed is None else (completed - created) * 1000,
            "run_ns": runs["total_duration_ns"][place] if run_ns is None else run_ns,
            "run_type": metadata["run_type"],
            "error": error,
            "step_count": len(own),
            "message_count": len(order),
            "tools_used": list(dict.fromkeys([call[2] for call in calls if call[2] is not None])),
            "models": list(dict.fromkeys([m for turn in own if (m := steps["model"][turn.step]) is not None])),
            "input_tokens": sum([usage.input_tokens for usage in used]),
            "output_tokens": sum([usage.output_tokens for usage in used]),
            "total_tokens": sum([usage.total_tokens for usage in used]),
            "cached_input_tokens": total_usage([usage.cached for usage in used]),
            "cache_write_tokens": total_usage([usage.cache_write for usage in used]),
            "reasoning_tokens": total_usage([usage.reasoning for usage in used]),
            "usage_reported": any(usage.reported for usage in used),
            "cost_usd": cost_usd(self._priced(own), _moment(created)),
            "continues_run_id": self._continues(place, run_id),
            "execution_status": ended.status,
            "execution_cause": ended.cause,
            "heuristic_outcome": ended.outcome,
            "heuristic_confidence": ended.confidence,
            "heuristic_reasoning": list(ended.reasoning),
            "signals": self._signals(order, calls, own, denied),
            "escaped": [],
            "content_digest": digest.hashed(self._forms(run_id, status, stop_reason, error, turns)),
            "schema_version": SCHEMA_VERSION,
            "signals_version": SIGNALS_VERSION,
            "partition_key": self._key,
        }
        reject_out_of_range_times(values, run_id)
        return ColumnarRun(place, values, turns)

    def forget_texts(self) -> None:
        """Let go of what is not needed any more when all runs are converted, and are Arrow; documents can be made."""
        self.said, self.thoughts = [], []
        for column in (self.content, self.calls, self.returns, self.approvals):
            column.forms = []
        for column in (self.content, self.calls, self.approvals):
            column.rows = []

    def _metadata_of(self, place: int) -> Row:
        """Return the run's type and, where there is one, its error."""
        metadata = decoded(self._metadata[place])
        if metadata is None:
            metadata = {}
        if type(metadata) is not dict or "error" in metadata:
            escapes = EscapedPaths()
            metadata = parse_object(self.raw.runs["metadata_"][place], "metadata_", escapes)
            if escapes.paths:
                raise NeedsReferencePath
        run_type = metadata.get("run_type")
        if type(run_type) is not str:
            run_type = None
        elif "\0" in run_type:
            raise NeedsReferencePath
        return {"run_type": run_type, "error": metadata.get("error")}

    def _how(self, place: int) -> ReplyConvention:
        key = (self.raw.agents["agent_type"][place], self.raw.runs["request_config"][place])
        if key not in self._answering:
            self._answering[key] = reply_convention(key[0], parse_object(key[1], "request_config", EscapedPaths()))
        return self._answering[key]

    def _read_messages(self, first: int, last: int, how: ReplyConvention) -> None:
        messages, content, calls = self.raw.messages, self.content, self.calls
        ids, roles, texts, approve = (messages[name] for name in ("id", "role", "text", "approve"))
        if len(set(ids[first:last])) < last - first or not self._unusual.isdisjoint(range(first, last)):
            raise NeedsReferencePath
        # Forms of older versions of Letta.
        if any(texts[first:last]) or not all(map(operator.is_, approve[first:last], repeat(None))):
            raise NeedsReferencePath
        for at in range(first, last):
            role = roles[at]
            if role is None or ids[at] is None:
                raise NeedsReferencePath
            if role in ("user", "system"):
                self.kinds[at] = message_kind(role, content.values[content.ends[at] : content.ends[at + 1]])
            elif role in ("assistant", "approval"):
                said, self.thoughts[at] = split_reply_and_thought(
                    role,
                    content.values[content.ends[at] : content.ends[at + 1]],
                    calls.values[calls.ends[at] : calls.ends[at + 1]],
                    how,
                )
                if said is not None and storable_text(said) is not said:
                    raise NeedsReferencePath
                self.said[at] = said

    def _turns(self, place: int, run_id: str) -> list[ColumnarTurn]:
        raw, steps = self.raw, self.raw.steps
        own_steps = range(raw.own_steps[place], raw.own_steps[place + 1])
        places = [*own_steps, *range(raw.other_steps[place], raw.other_steps[place + 1])]
        step_ids, created = steps["id"], steps["created_at"]
        by_step: dict[str, list[int]] = {step_ids[at]: [] for at in places}
        if len(by_step) != len(places) or None in by_step:
            raise NeedsReferencePath
        sequence, step_of = raw.messages["sequence_id"], raw.messages["step_id"]
        former = None
        for at in range(raw.messages_of[place], raw.messages_of[place + 1]):
            number = sequence[at]
            if number is None or (former is not None and number <= former) or step_of[at] not in by_step:
                raise NeedsReferencePath
            former = number
            by_step[step_of[at]].append(at)
        order = []
        for at in places:
            messages = by_step[step_ids[at]]
            if created[at] is None:
                raise NeedsReferencePath
            # In seconds, rounded as the specification rounds them.
            order.append(
                (created[at] / 10**6, not messages, sequence[messages[0]] if messages else 0, step_ids[at], at)
            )
        order.sort()
        measured = range(raw.step_metrics_of[place], raw.step_metrics_of[place + 1])
        metrics = {raw.step_metrics["id"][at]: at for at in measured}
        return [
            self._turn(at, metrics.get(step_id), run_id, at in own_steps, by_step[step_id]) for *_, step_id, at in order
        ]

    def _turn(self, at: int, metrics: int | None, run_id: str, own: bool, messages: list[int]) -> ColumnarTurn:
        steps = self.raw.steps
        owner, kind, data, tags = (
            steps["run_id"][at],
            steps["error_type"][at],
            steps["error_data"][at],
            steps["tags"][at],
        )
        error, given = None, []
        if kind is not None or data not in (None, "null") or tags not in (None, "[]", "null"):
            escapes = EscapedPaths()
            error = step_error({"error_type": kind, "error_data": data}, "error_data", escapes)
            given = parse_strings(tags, "tags", escapes)
            if escapes.paths:
                raise NeedsReferencePath
        return ColumnarTurn(
            at, metrics, self._usage(at) if own else None, owner if owner != run_id else None, error, given, messages
        )

    def _usage(self, at: int) -> StepUsage:
        prompt, completion = [
            None if details[at] is None or details[at] == b"null" else decoded(details[at]) for details in self._details
        ]
        return run_usage("", [counts[at] for counts in self._counts], prompt, completion)

    def _mark_denied(self, first: int, last: int) -> int:
        ends = self.approvals.ends
        if ends[first] == ends[last]:
            return 0
        denied = {row[1] for row in self.approvals.rows[ends[first] : ends[last]] if row[2] is False}
        if None in denied:
            raise NeedsReferencePath
        ends = self.returns.ends
        for at in range(ends[first], ends[last]):
            if self.returns.rows[at][0] in denied:
                self.denied.add(at)
        return len(denied)

    def _last_step(self, turn: ColumnarTurn) -> LastStep:
        steps, error = self.raw.steps, turn.error or {}
        return LastStep(
            step_id=steps["id"][turn.step],
            error_type=error.get("type"),
            error_message=error.get("message"),
            stop_reason=steps["stop_reason"][turn.step],
            failed=bool(error) or steps["status"][turn.step] == "FAILED",
        )

    @staticmethod
    def _in_order(column: decode.DecodedEntries, order: list[int]) -> list[DecodedEntry]:
        ends, rows = column.ends, column.rows
        return [rows[at] for message in order for at in range(ends[message], ends[message + 1])]

    def _conversation(self, first: int, last: int) -> str | None:
        agreed = set(self.raw.messages["conversation_id"][first:last])
        return agreed.pop() if len(agreed) == 1 else None

    def _priced(self, own: list[ColumnarTurn]) -> Iterator[tuple[Mapping[str, Any], StepUsage]]:
        steps = self.raw.steps
        for turn in own:
            if turn.usage is not None:
                at = turn.step
                yield (
                    {
                        "model": steps["model"][at],
                        "provider_name": steps["provider_name"][at],
                        "created_at": _moment(steps["created_at"][at]),
                    },
                    turn.usage,
                )

    def _continues(self, place: int, run_id: str) -> str | None:
        raw = self.raw
        others = range(raw.other_steps[place], raw.other_steps[place + 1])
        owners = {raw.steps["id"][at]: raw.steps["run_id"][at] for at in others}
        if owners:
            for at in range(raw.messages_of[place], raw.messages_of[place + 1]):
                owner: str | None = owners.get(raw.messages["step_id"][at])
                if owner is not None and owner != run_id:
                    return owner
        return None

    def _signals(self, order: list[int], calls: list[DecodedEntry], own: list[ColumnarTurn], denied: int) -> Row:
        steps, roles = self.raw.steps, self.raw.messages["role"]
        answers, made, returns = self.approvals.ends, self.calls.ends, self.returns
        fills = [
            turn.usage.input_tokens / limit
            for turn in own
            if turn.usage is not None
            and turn.usage.input_tokens
            and (limit := steps["context_window_limit"][turn.step])
        ]
        final = None
        for at in reversed(order):
            if roles[at] in ("assistant", "approval") and answers[at] == answers[at + 1]:
                final = not self.said[at] and made[at] == made[at + 1]
                break
        ends = self.content.ends
        return compute_signals(
            [(call[2], parsed_arguments({"arguments": call[3], "json": call[4]})) for call in calls],
            [
                returns.rows[at][1] == "error"
                for message in order
                for at in range(returns.ends[message], returns.ends[message + 1])
                if at not in self.denied
            ],
            [self.kinds[at] for at in order],
            fills,
            [steps["feedback"][turn.step] for turn in own],
            denied,
            refusals=sum("refusal" in [row[0] for row in self.content.rows[ends[at] : ends[at + 1]]] for at in order),
            empty_final_answer=final,
        )

    def _forms(
        self, run_id: str, status: str, stop_reason: str | None, error: Row | None, turns: list[ColumnarTurn]
    ) -> Iterator[str]:
        """Yield what the content digest is taken of."""
        steps, messages = self.raw.steps, self.raw.messages
        ids, roles, names = messages["id"], messages["role"], messages["name"]
        columns = (self.content, self.calls, self.returns, self.approvals)
        all_ends, all_forms = [column.ends for column in columns], [column.forms for column in columns]
        yield digest.head_form(run_id, status, stop_reason, error or {})
        for turn in turns:
            count = len(turn.messages)
            if turn.usage is None:
                yield digest.other_turn_form(count)
            else:
                step_id, stopped = steps["id"][turn.step], steps["stop_reason"][turn.step]
                yield digest.own_turn_form(step_id, stopped, turn.error, count)
            for at in turn.messages:
                counts = [ends[at + 1] - ends[at] for ends in all_ends]
                yield digest.message_form(ids[at], roles[at], names[at], counts, [f[at] for f in all_forms])
        yield digest.NOTHING_ESCAPED


def _error_row(error: RunError | None) -> Row | None:
    if error is None:
        return None
    return {"type": error.type, "message": error.message, "detail": error.detail, "step_id": error.step_id}


def _moment(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)
