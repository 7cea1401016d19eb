"""The columns of a trajectory that sum up its run, from facts that both converters collect."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from trajectory_pipeline.conversion.outcome_rules import LastStep, classify_outcome, doubted, run_error
from trajectory_pipeline.conversion.signals import compute_signals
from trajectory_pipeline.conversion.tools import ToolUse
from trajectory_pipeline.conversion.usage import MAX_COUNT, TOKEN_COLUMNS, StepUsage, cost_usd
from trajectory_pipeline.lossless_json import ConversionError
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION

_TRAJECTORY_IDS = uuid.UUID("8f0d9d1e-6f5b-5e0a-9c39-3f0f6a0a7b11")
"""Namespace of trajectory ids; never changed, so that a run's trajectory id stays the same."""

_MAX_COST = 10**9
"""``cost_usd`` has nine digits before the point."""

Row = dict[str, Any]


class OwnStep(NamedTuple):
    """What the summary needs of an own step: its usage, and columns of ``steps``."""

    usage: StepUsage
    model: str | None
    provider_name: str | None
    created_at: datetime | None
    context_window_limit: int | None
    feedback: str | None


@dataclass(frozen=True)
class RunFacts:
    """What the summary of a run is made of. Steps, messages, calls and returns are in the order of the turns.

    Of ``metadata``, parsed and escaped, ``error`` and ``run_type`` are read. ``run_ns`` is of the metrics, else as the
    run has it; ``conversation_ids`` and ``kinds`` are of the messages; ``denied`` counts calls; ``escaped`` are the
    JSON paths at which text was escaped.
    """

    run_id: str
    partition_key: str
    status: str
    stop_reason: str | None
    conversation_id: str | None
    metadata: Mapping[str, Any]
    created_at: datetime | None
    duration_ns: int | None
    run_ns: int | None
    own_steps: Sequence[OwnStep]
    last_step: LastStep | None
    conversation_ids: Collection[str | None]
    kinds: Sequence[str]
    has_reply: bool
    tools: ToolUse
    denied: int
    refusals: int
    empty_final_answer: bool | None
    continues_run_id: str | None
    escaped: Sequence[str] = ()


def summary_row(facts: RunFacts) -> Row:
    """Return the columns of ``TRAJECTORIES`` that are computed, but ``turns`` and ``content_digest``.

    Raises:
        ConversionError: a sum is more than the sinks can hold.
    """
    steps = facts.own_steps
    used = [step.usage for step in steps]
    run_type = facts.metadata.get("run_type")
    error = run_error(facts.metadata.get("error"), facts.last_step)
    outcome = classify_outcome(
        facts.status,
        facts.stop_reason,
        facts.last_step,
        error,
        has_steps=bool(steps),
        replies_or_calls=facts.has_reply or bool(facts.tools.calls),
    )
    signals = compute_signals(
        facts.tools,
        facts.kinds,
        fills=[
            step.usage.input_tokens / step.context_window_limit
            for step in steps
            if step.usage.input_tokens and step.context_window_limit
        ],
        feedback=[step.feedback for step in steps],
        denied=facts.denied,
        refusals=facts.refusals,
        empty_final_answer=facts.empty_final_answer,
    )
    outcome = doubted(outcome, signals)
    row: Row = {
        "trajectory_id": str(uuid.uuid5(_TRAJECTORY_IDS, facts.run_id)),
        "conversation_id": facts.conversation_id or _only(facts.conversation_ids),
        "duration_ns": facts.duration_ns,
        "run_ns": facts.run_ns,
        "run_type": run_type if isinstance(run_type, str) else None,
        "error": None if error is None else error._asdict(),
        "step_count": len(steps),
        "message_count": len(facts.kinds),
        "tools_used": facts.tools.used(),
        "tools_requested": facts.tools.requested(),
        "tools_denied": facts.tools.denied(),
        "models": list(dict.fromkeys([step.model for step in steps if step.model is not None])),
        **{name: sum([getattr(usage, name) for usage in used]) for name in TOKEN_COLUMNS[:3]},
        **{name: _sum_of_known([getattr(usage, name) for usage in used]) for name in TOKEN_COLUMNS[3:]},
        "usage_reported": any(usage.reported for usage in used),
        "cost_usd": cost_usd(
            [(step.model, step.provider_name, step.created_at or facts.created_at, step.usage) for step in steps]
        ),
        "continues_run_id": facts.continues_run_id,
        "execution_status": outcome.status.value,
        "execution_cause": outcome.cause and outcome.cause.value,
        "heuristic_outcome": outcome.outcome.value,
        "heuristic_confidence": outcome.confidence,
        "heuristic_reasoning": list(outcome.reasoning),
        "signals": signals,
        "escaped": list(facts.escaped),
        "schema_version": SCHEMA_VERSION,
        "signals_version": SIGNALS_VERSION,
        "partition_key": facts.partition_key,
    }
    _reject_out_of_range(row, f"runs[{facts.run_id}]")
    return row


def _sum_of_known(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _only(values: Collection[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _reject_out_of_range(row: Row, path: str) -> None:
    """Refuse a sum that is out of range although every raw row is within it."""
    for name in ("duration_ns", *TOKEN_COLUMNS):
        if row[name] is not None and abs(row[name]) > MAX_COUNT:
            raise ConversionError(path, f"has {row[name]} as {name}, more than the sinks can hold")
    if row["cost_usd"] is not None and abs(row["cost_usd"]) >= _MAX_COST:
        raise ConversionError(path, f"cost {row['cost_usd']} dollars, more than the sinks can hold")
