"""Every dataset, table and view."""

from collections.abc import Iterator
from dataclasses import replace

from trajectory_pipeline.schema.bookkeeping import (
    INVALIDATIONS,
    PARTITIONS,
    QUARANTINE,
    RATE_LIMITS,
    RUN_LOCATIONS,
    SPEND_TOTALS,
    VERDICT_LOCKS,
)
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import FLOAT, INT, STRING, TIMESTAMP, Column, Table, postgres_only
from trajectory_pipeline.schema.verdicts import POLICIES, REDACTION_KEYS, REFINED_OUTCOMES, VERDICT_ATTEMPTS, VERDICTS

TABLES = (
    TERMINAL_RUNS,
    TRAJECTORIES,
    REFINED_OUTCOMES,
    VERDICTS,
    VERDICT_ATTEMPTS,
    SPEND_TOTALS,
    VERDICT_LOCKS,
    RATE_LIMITS,
    POLICIES,
    REDACTION_KEYS,
    PARTITIONS,
    QUARANTINE,
    RUN_LOCATIONS,
    INVALIDATIONS,
)
"""In the order of the data dictionary."""


def _view_columns(table: Table, names: str, null: str = "") -> Iterator[Column]:
    """Yield a table's columns as a view has them: ``name`` or ``name=name_in_view``; ``null`` if it has no row."""
    for name in names.split():
        origin, _, renamed = name.partition("=")
        column = table[origin]
        meaning = " or ".join(filter(None, (null, column.null)))
        yield replace(column, name=renamed or origin, null=meaning, key=False, document=None)


OUTCOMES = Table(
    name="outcomes",
    description="Each trajectory with its heuristic outcome and its verdict under the current policy, if there is one.",
    row="one trajectory whose run is not deleted at the source",
    columns=postgres_only(
        *_view_columns(
            TRAJECTORIES,
            "run_id trajectory_id agent_id agent_name agent_type organization_id start_time end_time duration_ns"
            " partition_key tools_used models execution_status execution_cause heuristic_outcome heuristic_confidence",
        ),
        *_view_columns(
            VERDICTS,
            "verdict_status outcome outcome_confidence disagrees failure_owner failure_mode failed_step_id"
            " learning_value tags task_category complexity summary lesson requirements decisions coverage"
            " model=judge_model simulated input_tokens=judge_input_tokens output_tokens=judge_output_tokens"
            " cost_usd=judge_cost_usd error_class error_message judged_at policy_id verdict_key"
            " failure_mode_description interaction_depth task_complexity tool_use reference_value failure learning"
            " windows response_format shown_run_ids cached_input_tokens=judge_cached_input_tokens attempts=judge_calls"
            " failures next_attempt_at raw_response",
            null="no verdict",
        ),
        Column("judge_repairs", INT, "HTTP calls for repair of an invalid response.", unit="calls"),
        Column("judge_fallbacks", INT, "HTTP calls in a simpler format after the server rejected one.", unit="calls"),
        Column("judge_calls_lost", INT, "HTTP calls whose response never arrived.", unit="calls"),
    ),
)

CHAINS = Table(
    name="chains",
    description="Which runs continue a run (several can): the inverse of `continues_run_id`.",
    row="one answer to an approval request",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "run_id partition_key"),
        Column("continued_by_run_id", STRING, "Run that continues this one."),
        Column("continued_by_partition_key", STRING, "Partition key of the run that continues this one."),
        Column("continued_at", TIMESTAMP, "`start_time` of the run that continues this one.", null="not recorded"),
    ),
)

AGENT_COMPARISON = Table(
    name="agent_comparison",
    description="Duration, tokens and tool calls of each run, with the medians of its agent.",
    row="one trajectory whose run is not deleted at the source",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "run_id agent_id"),
        Column("agent_runs", INT, "Trajectories of the agent.", unit="trajectories"),
        *_view_columns(TRAJECTORIES, "duration_ns"),
        Column("agent_median_duration_ns", FLOAT, "Median of the agent's runs.", unit="ns", null="no duration known"),
        *_view_columns(TRAJECTORIES, "total_tokens"),
        Column("agent_median_total_tokens", FLOAT, "Median of the agent's runs.", unit="tokens"),
        Column("tool_calls", INT, "Tool calls of the run.", unit="calls"),
        Column("agent_median_tool_calls", FLOAT, "Median of the agent's runs.", unit="calls"),
    ),
)

VIEWS = (OUTCOMES, CHAINS, AGENT_COMPARISON)
