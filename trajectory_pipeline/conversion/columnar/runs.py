"""Runs, converted a batch at a time: turns, sums and texts by columns, the other rules on a few short values of a run.

Every rule comes from the module that the reference takes it from. What is not certain to be converted without loss
takes the reference path, run by run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion import digest
from trajectory_pipeline.conversion.columnar.columns import (
    Flags,
    Integers,
    RawColumns,
    holds_unstorable,
    is_valid,
    sums,
    timestamp,
)
from trajectory_pipeline.conversion.columnar.decode import (
    DECODED_COLUMNS,
    decode_entries,
    decode_json,
)
from trajectory_pipeline.conversion.columnar.layout import lay_out
from trajectory_pipeline.conversion.messages import (
    ReplyConvention,
    legacy_approval,
    legacy_content,
    message_kind,
    reply_convention,
    split_reply_and_thought,
)
from trajectory_pipeline.conversion.outcome_rules import LastStep
from trajectory_pipeline.conversion.reference import COPIED, REQUIRED, continued_run, step_error
from trajectory_pipeline.conversion.signals import argument_text
from trajectory_pipeline.conversion.summary import MAX_COST, RunFacts, summary_row
from trajectory_pipeline.conversion.tools import NO_DENIALS, Denials, ToolCall, ToolReturn, ToolUse, row_names
from trajectory_pipeline.conversion.usage import (
    COUNTS,
    MAX_COUNT,
    TOKEN_COLUMNS,
    StepUsage,
    price_of_step,
    sum_of_prices,
    usage_of,
)
from trajectory_pipeline.lossless_json import parse_object, parse_strings, storable_text

Row = dict[str, Any]

_MAX_SUMMED = 2**40
"""Larger counts are summed by the reference, which has integers of any length."""


@dataclass(frozen=True)
class Usage:
    """Tokens of the turns, by ``TOKEN_COLUMNS``: counts, and where they are known; none of another run's step."""

    counts: dict[str, Integers]
    known: dict[str, Flags]
    reported: Flags


class ColumnarRuns:
    """The runs of one batch, converted; those that are ``rejected`` are for the reference.

    Attributes:
        layout: the turns, with indexes of steps and messages.
        values: of each run, the columns that rules give; None of rejected runs.
        own: of each turn, whether its step is the run's own.
        errors: of turns whose step has an error, by turn; so ``tags``.
        kinds: of each raw message; so ``replies``, ``thoughts``.
        denied: the returns that answer a denied call, by their index in ``returns``.
        deleted: messages of deleted runs, which may lack the mark.
    """

    def __init__(self, raw: RawColumns, partition_key: str) -> None:
        self.raw = raw
        self.partition_key = partition_key
        messages = raw.messages
        self._run_of_message = raw.run_of_message
        self.rejected = np.zeros(raw.batch.num_rows, np.bool_)
        self.rejected[:] = holds_unstorable(_copied(raw))
        self._reject_missing()
        self._reject_long_durations()
        legacy = _legacy_entries(raw)
        self._columns = tuple(
            decode_entries(column, messages.arrays[column], legacy.get(column, {})) for column in DECODED_COLUMNS
        )
        self.content, self.calls, self.returns, self.approvals = self._columns
        for column in self._columns:
            self.rejected[self._run_of_message[list(column.needs_reference)]] = True
        self.layout = lay_out(raw, self.rejected)
        self.own = (self.layout.steps >= 0) & (self.layout.steps < raw.own_step_offsets[-1])
        self.run_of_turn = np.repeat(np.arange(len(self.rejected)), np.diff(self.layout.run_turns))
        self.kinds: list[str] = messages["role"][:]
        self.replies: list[str | None] = [None] * len(self.kinds)
        self.thoughts: list[str | None] = [None] * len(self.kinds)
        self._read_messages()
        for column in self._columns:
            # The rows hold the same texts.
            column.values = []
        self.deleted = raw.runs.flags("is_deleted")[self._run_of_message]
        self.errors: dict[int, Row] = {}
        self.tags: dict[int, list[str]] = {}
        self._read_step_errors()
        self.usage = self._usage()
        self.denied: set[int] = set()
        self._denials = self._denials_by_run()
        self.values: list[Row | None] = list(self._converted())
        for column in self._columns:
            column.canonical = []

    def release_texts(self) -> None:
        """Free what is not needed once all runs are Arrow; documents can still be made."""
        self.replies, self.thoughts = [], []
        for column in self._columns:
            if column is not self.returns:
                column.rows = []

    def _reject_missing(self) -> None:
        raw = self.raw
        for table, rows, run_of in (
            ("run", raw.runs, np.arange(len(self.rejected))),
            ("messages", raw.messages, self._run_of_message),
            ("steps", raw.steps, raw.run_of_step),
        ):
            for column in REQUIRED[table]:
                self.rejected[run_of[~rows.valid(column)]] = True

    def _reject_long_durations(self) -> None:
        """Reject runs of centuries: NumPy's nanoseconds would wrap silently."""
        runs = self.raw.runs
        known = runs.valid("created_at") & runs.valid("completed_at")
        microseconds = np.where(known, runs.integers("completed_at") - runs.integers("created_at"), 0)
        self.rejected |= np.abs(microseconds) > MAX_COUNT // 1000

    def _read_messages(self) -> None:
        """Find kinds, replies and thoughts; only the contents of some roles say more than the role."""
        roles, content, calls = self.kinds[:], self.content, self.calls
        conventions = self._conventions()
        run_of = self._run_of_message.tolist()
        for at in self.layout.messages.tolist():
            role = roles[at]
            try:
                if role in ("user", "system"):
                    self.kinds[at] = message_kind(role, content.values[content.offsets[at] : content.offsets[at + 1]])
                elif role in ("assistant", "approval"):
                    reply, self.thoughts[at] = split_reply_and_thought(
                        role,
                        content.values[content.offsets[at] : content.offsets[at + 1]],
                        calls.values[calls.offsets[at] : calls.offsets[at + 1]],
                        conventions[run_of[at]],
                    )
                    if reply is not None and storable_text(reply) is not reply:
                        self.rejected[run_of[at]] = True
                    self.replies[at] = reply
            except Exception:  # whatever is odd in one message must not fail the others
                self.rejected[run_of[at]] = True

    def _conventions(self) -> list[ReplyConvention | None]:
        known: dict[tuple[str | None, str | None], ReplyConvention | None] = {}
        found = []
        for run, key in enumerate(zip(self.raw.agents["agent_type"], self.raw.runs["request_config"], strict=True)):
            if key not in known:
                try:
                    known[key] = reply_convention(key[0], parse_object(key[1], "request_config", []))
                except Exception:
                    known[key] = None
            if known[key] is None:
                self.rejected[run] = True
            found.append(known[key])
        return found

    def _metadata(self) -> list[Row]:
        known: dict[str | None, Row | None] = {}
        found: list[Row] = []
        for run, text in enumerate(self.raw.runs["metadata_"]):
            if text not in known:
                escapes: list[str] = []
                try:
                    parsed = parse_object(text, "metadata_", escapes)
                except Exception:
                    parsed = None
                known[text] = None if escapes else parsed
            metadata = known[text]
            if metadata is None:
                self.rejected[run] = True
            found.append(metadata or {})
        return found

    def _read_step_errors(self) -> None:
        steps = self.raw.steps
        kinds, details, tags = (steps.arrays[name] for name in ("error_type", "error_data", "tags"))
        odd = is_valid(kinds) | _given(details, "null") | _given(tags, "null", "[]")
        odd = np.append(odd, False)  # what -1 is looked up in
        for turn in np.flatnonzero(odd[self.layout.steps]).tolist():
            step = int(self.layout.steps[turn])
            escapes: list[str] = []
            try:
                row = {"error_type": steps["error_type"][step], "error_data": steps["error_data"][step]}
                error, of_step = step_error(row, "", escapes), parse_strings(steps["tags"][step], "", escapes)
            except Exception:
                error, of_step, escapes = None, [], [""]
            if escapes:
                self.rejected[self.run_of_turn[turn]] = True
            if error is not None:
                self.errors[turn] = error
            if of_step:
                self.tags[turn] = of_step

    def _usage(self) -> Usage:
        steps, turns = self.raw.steps, self.layout.steps
        taken = np.where(self.own, turns, 0)
        has_steps = len(steps.arrays["id"]) > 0
        counts, known = {}, {}
        for name, column in zip(TOKEN_COLUMNS, COUNTS, strict=True):
            known[name] = self.own & steps.valid(column)[taken] if has_steps else np.zeros(len(turns), np.bool_)
            counts[name] = np.where(known[name], steps.integers(column)[taken], 0) if has_steps else turns * 0
        reported = (counts["input_tokens"] != 0) | (counts["output_tokens"] != 0) | (counts["total_tokens"] != 0)
        # Only where a column has no count do the details say it.
        for column, first in (("prompt_tokens_details", True), ("completion_tokens_details", False)):
            for turn, usage in self._details(column, first=first):
                reported[turn] |= usage.reported
                for name in TOKEN_COLUMNS[3:]:
                    count = getattr(usage, name)
                    if count is not None and not known[name][turn]:
                        counts[name][turn], known[name][turn] = count, True
        for name in TOKEN_COLUMNS[:3]:
            known[name] = self.own
        too_large = np.zeros(len(turns), np.bool_)
        for name in TOKEN_COLUMNS:
            too_large |= (counts[name] > _MAX_SUMMED) | (counts[name] < -_MAX_SUMMED)
        self.rejected[self.run_of_turn[too_large]] = True
        return Usage(counts, known, reported & self.own)

    def _details(self, column: str, *, first: bool) -> Iterator[tuple[int, StepUsage]]:
        """Yield the usage that the details of own steps tell by themselves, by turn."""
        array = self.raw.steps.arrays[column]
        given = np.append(_given(array, "null"), False)
        turns = np.flatnonzero(self.own & given[np.where(self.own, self.layout.steps, -1)])
        texts: list[Any] = array.cast(pa.binary()).take(pa.array(self.layout.steps[turns], pa.int64())).to_pylist()
        found: dict[bytes, StepUsage | None] = {}
        for turn, text in zip(turns.tolist(), texts, strict=True):
            if text not in found:
                try:
                    details = decode_json(text)
                    usage = usage_of("", [None] * len(COUNTS), *((details, None) if first else (None, details)))
                    # Only of an object it is certain that rounding no number in it changes what is reported.
                    found[text] = usage if isinstance(details, dict | NoneType) else None
                except Exception:
                    found[text] = None
            told = found[text]
            if told is None:
                self.rejected[self.run_of_turn[turn]] = True
            else:
                yield turn, told

    def _denials_by_run(self) -> dict[int, Denials]:
        """Mark the returns of denied calls, and return what was denied, by run."""
        denying: dict[int, list[tuple[str | None, str | None]]] = {}
        step_ids, run_of = self.raw.messages["step_id"], self._run_of_message
        for at in np.flatnonzero(self.approvals.counts).tolist():
            for entry in self.approvals.of(at):
                row = self.approvals.rows[entry]
                if row[2] is False:
                    denying.setdefault(int(run_of[at]), []).append((row[1], step_ids[at]))
        denials = {run: Denials.made_in(pairs) for run, pairs in denying.items()}
        for run, of_run in denials.items():
            for at in range(self.raw.message_offsets[run], self.raw.message_offsets[run + 1]):
                for item in self.returns.of(at):
                    if of_run.cover(self.returns.rows[item][0], step_ids[at]):
                        self.denied.add(item)
        return denials

    def _converted(self) -> Iterator[Row | None]:
        raw, layout, rejected = self.raw, self.layout, self.rejected
        runs, steps, messages = raw.runs, raw.steps, raw.messages
        run_turns, run_messages = layout.run_turns.tolist(), layout.run_messages.tolist()
        raw_offsets = raw.message_offsets.tolist()
        metadata = self._metadata()
        own_turns = np.flatnonzero(self.own)
        own_offsets = np.searchsorted(own_turns, layout.run_turns).tolist()
        own_turn_list, own_steps = own_turns.tolist(), layout.steps[own_turns].tolist()
        models, providers, feedback, created, statuses, reasons, step_ids = (
            list(map(steps[name].__getitem__, own_steps))
            for name in ("model", "provider_name", "feedback", "created_at", "status", "stop_reason", "id")
        )
        fills = self._context_fills()
        prices = self._prices(own_turns, models, providers, created)
        refusals = {at for at in range(len(self.kinds)) if self._refuses(at)} if self._any_refusal() else set()
        order = layout.messages.tolist()
        has_tools = ((self.calls.counts + self.returns.counts) > 0)[layout.messages]
        with_tools = np.flatnonzero(has_tools)
        tool_offsets = np.searchsorted(with_tools, layout.run_messages).tolist()
        with_tools_list = with_tools.tolist()
        is_person = np.array([kind == "user" for kind in self.kinds], np.int64)
        persons = sums(is_person[layout.messages], layout.run_messages).tolist()
        texts = _CanonicalTexts(self)
        for run in range(len(rejected)):
            if rejected[run]:
                yield None
                continue
            first, end = own_offsets[run], own_offsets[run + 1]
            in_order = order[run_messages[run] : run_messages[run + 1]]
            denials = self._denials.get(run, NO_DENIALS)
            last = None
            if end > first:
                error = self.errors.get(own_turn_list[end - 1])
                last = LastStep.of(step_ids[end - 1], statuses[end - 1], reasons[end - 1], error)
            try:
                values = summary_row(
                    RunFacts(
                        run_id=runs["id"][run],
                        agent_id=runs["agent_id"][run],
                        organization_id=runs["organization_id"][run],
                        status=runs["status"][run],
                        stop_reason=runs["stop_reason"][run],
                        conversation_id=runs["conversation_id"][run],
                        metadata=metadata[run],
                        models=models[first:end],
                        feedback=feedback[first:end],
                        context_fill=fills[run],
                        last_step=last,
                        conversation_ids=messages["conversation_id"][raw_offsets[run] : raw_offsets[run + 1]],
                        message_count=len(in_order),
                        person_messages=persons[run],
                        has_reply=any(self.replies[raw_offsets[run] : raw_offsets[run + 1]]),
                        tools=self._tool_use(
                            run, with_tools_list[tool_offsets[run] : tool_offsets[run + 1]], order, denials
                        ),
                        denied=denials.count,
                        refusals=sum(at in refusals for at in in_order) if refusals else 0,
                        empty_final_answer=self._is_final_answer_empty(in_order),
                    )
                )
                cost = sum_of_prices(prices[first:end])
                if cost is not None and abs(cost) >= MAX_COST:
                    rejected[run] = True
                values["cost_usd"] = cost
                values["continues_run_id"] = self._continued_run(run, in_order)
                values["content_digest"] = digest.sha256_of(
                    texts.of(run, values["error"], range(run_turns[run], run_turns[run + 1]))
                )
            except Exception:  # the reference converts it, or says what is wrong with it
                rejected[run] = True
                yield None
                continue
            yield None if rejected[run] else values

    def _context_fills(self) -> list[float | None]:
        """Return for each run the largest share of the context window that an own prompt took."""
        steps = self.layout.steps
        limits = np.append(self.raw.steps.integers("context_window_limit"), 0)[steps]
        prompts = self.usage.counts["input_tokens"]
        turns = np.flatnonzero(self.own & (limits != 0) & (prompts != 0))
        # Only the quotients of smaller integers are those that Python gives.
        self.rejected[self.run_of_turn[turns[np.abs(limits[turns]) > _MAX_SUMMED]]] = True
        fills = np.full(len(self.rejected), -np.inf)
        np.maximum.at(fills, self.run_of_turn[turns], prompts[turns] / limits[turns])
        return [None if fill == -np.inf else fill for fill in fills.tolist()]

    def _prices(
        self,
        turns: Integers,
        models: Sequence[str | None],
        providers: Sequence[str | None],
        created: Sequence[int | None],
    ) -> list[Decimal | None]:
        """Return the price of each own step."""
        usage, known = self.usage, self.usage.known
        columns = [np.where(known[name][turns], usage.counts[name][turns], 0).tolist() for name in TOKEN_COLUMNS]
        run_created = self.raw.runs["created_at"]
        found = []
        for model, provider, at, run, reported, *counts in zip(
            models,
            providers,
            created,
            self.run_of_turn[turns].tolist(),
            usage.reported[turns].tolist(),
            *columns,
            strict=True,
        ):
            moment = timestamp(run_created[run] if at is None else at) if reported and model is not None else None
            found.append(price_of_step(model, provider, moment, StepUsage._make([*counts, reported])))
        return found

    def _any_refusal(self) -> bool:
        return any(row[0] == "refusal" for row in self.content.rows)

    def _refuses(self, at: int) -> bool:
        return any(self.content.rows[part][0] == "refusal" for part in self.content.of(at))

    def _tool_use(self, run: int, positions: list[int], order: list[int], denials: Denials) -> ToolUse:
        roles, names, step_ids = (self.raw.messages[name] for name in ("role", "name", "step_id"))
        call_offsets, return_offsets = self.calls.offsets, self.returns.offsets
        calls: list[ToolCall] = []
        returns: list[ToolReturn] = []
        call_rows, return_rows = self.calls.rows, self.returns.rows
        for position in positions:
            at = order[position]
            waits, step_id = roles[at] == "approval", step_ids[at]
            for call_id, _, name, arguments, whole in call_rows[call_offsets[at] : call_offsets[at + 1]]:
                text = arguments if whole is None else argument_text({"arguments": arguments, "json": whole})
                calls.append(ToolCall(position, call_id, name, text, waits, denials.cover(call_id, step_id)))
            first, end = return_offsets[at], return_offsets[at + 1]
            if first < end:
                denied = [item in self.denied for item in range(first, end)]
                of_row = row_names(names[at], roles[at], denied)
                for row, was_denied, name in zip(return_rows[first:end], denied, of_row, strict=True):
                    returns.append(ToolReturn(position, row[0], row[1], was_denied, name))
        return ToolUse(calls, returns, denials.of(self.raw.asked_calls[run] or ()))

    def _is_final_answer_empty(self, messages: list[int]) -> bool | None:
        roles = self.raw.messages["role"]
        for at in reversed(messages):
            if roles[at] in ("assistant", "approval") and not self.approvals.of(at):
                return not self.replies[at] and not self.calls.of(at)
        return None

    def _continued_run(self, run: int, messages: list[int]) -> str | None:
        raw = self.raw
        foreign = range(raw.foreign_step_offsets[run], raw.foreign_step_offsets[run + 1])
        if not foreign:
            return None
        owners = {raw.steps["id"][at]: raw.steps["run_id"][at] for at in foreign}
        ids, sequence, step_ids = (raw.messages[name] for name in ("id", "sequence_id", "step_id"))
        in_order = sorted(messages, key=lambda at: (sequence[at], ids[at]))
        return continued_run(raw.runs["id"][run], owners, [step_ids[at] for at in in_order])


class _CanonicalTexts:
    """The texts that the digest is made of, by run."""

    def __init__(self, converted: ColumnarRuns) -> None:
        raw, layout = converted.raw, converted.layout
        self._errors = converted.errors
        self._run_ids, self._statuses, self._run_reasons = (raw.runs[name] for name in ("id", "status", "stop_reason"))
        self._step_ids, self._reasons = raw.steps["id"], raw.steps["stop_reason"]
        self._steps, self._own = layout.steps.tolist(), converted.own.tolist()
        self._offsets = layout.turn_messages.tolist()
        columns = (converted.content, converted.calls, converted.returns, converted.approvals)
        order = layout.messages.tolist()
        # Of each message, in order, its head and the texts of its entries.
        self._texts: list[str] = [""] * (len(order) * (1 + len(columns)))
        ids, roles, names = (raw.messages[name] for name in ("id", "role", "name"))
        counts = list(zip(*(column.counts.tolist() for column in columns), strict=True))
        self._pieces = 1 + len(columns)
        self._texts[:: self._pieces] = [digest.message_head(ids[at], roles[at], names[at], counts[at]) for at in order]
        for place, column in enumerate(columns, start=1):
            self._texts[place :: self._pieces] = map(column.canonical.__getitem__, order)

    def of(self, run: int, error: Row | None, turns: range) -> Iterator[str]:
        """Yield the canonical texts of a run."""
        yield digest.run_text(self._run_ids[run], self._statuses[run], self._run_reasons[run], error)
        for turn in turns:
            first, end = self._offsets[turn], self._offsets[turn + 1]
            if self._own[turn]:
                step, error = self._steps[turn], self._errors.get(turn)
                yield digest.own_turn_text(self._step_ids[step], self._reasons[step], error, end - first)
            else:
                yield digest.other_turn_text(end - first)
            yield from self._texts[first * self._pieces : end * self._pieces]
        yield digest.NOTHING_ESCAPED


def _legacy_entries(raw: RawColumns) -> dict[str, dict[int, list[Row]]]:
    """Return what stands in columns that older versions of Letta fill, as entries, by message."""
    messages, found = raw.messages, {}
    if messages.arrays["text"].null_count < len(messages.arrays["text"]):
        found["content"] = {at: legacy_content(text) for at, text in enumerate(messages["text"]) if text}
    if messages.arrays["approve"].null_count < len(messages.arrays["approve"]):
        names = ("approval_request_id", "approve", "denial_reason")
        rows = enumerate(zip(*(messages[name] for name in names), strict=True))
        found["approvals"] = {
            at: legacy_approval(dict(zip(names, row, strict=True))) for at, row in rows if row[1] is not None
        }
    return found


def _given(texts: "pa.Array[Any]", *nothing: str) -> Flags:
    """Return where a JSON column holds something else than null or one of these texts."""
    there: Any = pc.is_in(texts, value_set=pa.array([None, *nothing], pa.string()))
    found: Flags = ~there.to_numpy(zero_copy_only=False)
    return found


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
