"""The columns of a trajectory that sum up its run, from facts that both converters collect."""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.conversion.outcome_rules import LastStep, classify_outcome, doubted, run_error
from trajectory_pipeline.conversion.signals import compute_signals
from trajectory_pipeline.conversion.tools import ToolUse
from trajectory_pipeline.conversion.usage import MAX_COUNT, TOKEN_COLUMNS
from trajectory_pipeline.lossless_json import ConversionError
from trajectory_pipeline.partition_keys import storable_id

_TRAJECTORY_IDS = uuid.UUID("8f0d9d1e-6f5b-5e0a-9c39-3f0f6a0a7b11")
"""Namespace of trajectory ids; never changed, so that a run's trajectory id stays the same."""

MAX_COST = 10**9
"""``cost_usd`` has nine digits before the point."""

MOST_ID_BYTES = 2_070
"""Of the ids of a run in one index: a row of it has 2,704 bytes at most, and may hold an embedding beside them."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the summary of a run is made of. Steps, messages, calls and returns are in the order of the turns.

    Of ``metadata``, parsed and escaped, ``error`` and ``run_type`` are read. ``models`` and ``feedback`` are of the own
    steps; ``context_fill`` is the largest share (0 to 1) of the context window that a prompt took;
    ``conversation_ids`` are of the messages; ``person_messages`` are those of kind ``user``; ``denied`` counts calls.
    """

    run_id: str
    agent_id: str
    organization_id: str | None
    status: str
    stop_reason: str | None
    conversation_id: str | None
    metadata: Mapping[str, Any]
    models: Sequence[str | None]
    feedback: Sequence[str | None]
    context_fill: float | None
    last_step: LastStep | None
    conversation_ids: Collection[str | None]
    message_count: int
    person_messages: int
    has_reply: bool
    tools: ToolUse
    denied: int
    refusals: int
    empty_final_answer: bool | None


def summary_row(facts: RunFacts) -> Row:
    """Return the columns of ``TRAJECTORIES`` that rules give, but ``content_digest``.

    Raises:
        ConversionError: the ids are too long for an index.
    """
    conversation_id = facts.conversation_id or _only(facts.conversation_ids)
    _reject_long_ids(facts, conversation_id)
    tools = facts.tools
    run_type = facts.metadata.get("run_type")
    error = run_error(facts.metadata.get("error"), facts.last_step)
    outcome = classify_outcome(
        facts.status,
        facts.stop_reason,
        facts.last_step,
        error,
        has_steps=bool(facts.models),
        replies_or_calls=facts.has_reply or bool(tools.calls),
    )
    signals = compute_signals(
        tools,
        person_messages=facts.person_messages,
        context_fill=facts.context_fill,
        feedback=facts.feedback,
        denied=facts.denied,
        refusals=facts.refusals,
        empty_final_answer=facts.empty_final_answer,
    )
    outcome = doubted(outcome, signals)
    return {
        "trajectory_id": str(uuid.uuid5(_TRAJECTORY_IDS, facts.run_id)),
        "conversation_id": conversation_id,
        "run_type": run_type if isinstance(run_type, str) else None,
        "error": None if error is None else error._asdict(),
        "step_count": len(facts.models),
        "message_count": facts.message_count,
        "tools_used": _indexed(tools.used()),
        "tools_requested": tools.requested(),
        "tools_denied": tools.denied(),
        "models": _indexed(dict.fromkeys([model for model in facts.models if model is not None])),
        "execution_status": outcome.status.value,
        "execution_cause": outcome.cause and outcome.cause.value,
        "heuristic_outcome": outcome.outcome.value,
        "heuristic_confidence": outcome.confidence,
        "heuristic_reasoning": list(outcome.reasoning),
        "signals": signals,
    }


def _only(values: Collection[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _indexed(names: Iterable[str]) -> list[str]:
    """Return names as an index can hold them; the document has each as it is."""
    return list(dict.fromkeys(map(storable_id, names)))


def _reject_long_ids(facts: RunFacts, conversation_id: str | None) -> None:
    # As the indexes of trajectories hold them together.
    for ids in (
        {"id": facts.run_id, "agent_id": facts.agent_id, "organization_id": facts.organization_id},
        {"agent_id": facts.agent_id, "conversation_id": conversation_id},
    ):
        size = sum(len(value.encode()) for value in ids.values() if value is not None)
        if size > MOST_ID_BYTES:
            raise ConversionError(
                f"runs[{facts.run_id}].{'+'.join(ids)}",
                f"have {size:,} bytes together, and an index can hold {MOST_ID_BYTES:,}",
            )


def reject_out_of_range(row: Row, path: str) -> None:
    """Refuse a sum that is out of range although every raw row is within it.

    Raises:
        ConversionError: a sum is more than the sinks can hold.
    """
    for name in ("duration_ns", *TOKEN_COLUMNS):
        if row[name] is not None and abs(row[name]) > MAX_COUNT:
            raise ConversionError(path, f"has {row[name]} as {name}, more than the sinks can hold")
    if row["cost_usd"] is not None and abs(row["cost_usd"]) >= MAX_COST:
        raise ConversionError(path, f"cost {row['cost_usd']} dollars, more than the sinks can hold")
