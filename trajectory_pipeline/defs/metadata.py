"""What the Dagster UI shows of a materialisation: counts, previews and places; never a transcript, never a secret.

Belongs here: results of the stages as Dagster metadata. Does not belong here: computing any of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import dagster as dg

from trajectory_pipeline.budget.caps import Cap, SpendTotals
from trajectory_pipeline.pipeline.capture import TerminalRunsResult
from trajectory_pipeline.pipeline.conversion_result import TrajectoriesResult
from trajectory_pipeline.pipeline.judge import JudgingResult

_Part = TypeVar("_Part")
_PREVIEW = 20
"""Ids that a list in the UI shows at most; it says how many more there are."""


def terminal_runs_metadata(result: TerminalRunsResult) -> dict[str, Any]:
    """Return the metadata of a partition of ``terminal_runs``."""
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": result.written.rows,
        "dagster/uri": result.written.uri,
        **result.counts.by_name(),
        "bytes": result.written.bytes,
        "rewritten": result.written.replaced,
        "unchanged": result.unchanged,
        "snapshot_at": dg.MetadataValue.timestamp(result.snapshot_at),
    }
    if result.corrupt_file is not None:
        metadata["damaged_file"] = result.corrupt_file.copy_uri
        metadata["damage"] = result.corrupt_file.error
        if result.corrupt_file.lost:
            metadata["lost_run_ids"] = preview(result.corrupt_file.lost)
    if result.unknown_columns:
        metadata["unknown_source_columns"] = preview(result.unknown_columns)
    if result.absent_columns:
        metadata["absent_source_columns"] = preview(result.absent_columns)
    return metadata


def trajectories_metadata(result: TrajectoriesResult) -> dict[str, Any]:
    """Return the metadata of a partition of ``trajectories``."""
    written, merged, counts = _made(result.written), _made(result.merge_stats), result.row_balance
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": written.rows,
        "dagster/uri": written.uri,
        "runs_in": counts.runs_in,
        "trajectories": counts.trajectories,
        "quarantined": counts.quarantined,
        "messages": counts.messages_out,
        "steps": counts.steps_out,
        "postgres": dg.MetadataValue.md(
            f"{merged.inserted} inserted, {merged.updated} updated, {merged.unchanged} unchanged,"
            f" {merged.removed} removed"
        ),
        "execution": table_of(result.executions, "execution"),
        "heuristic_outcome": table_of(result.outcomes, "outcome"),
        "escaped": result.escaped,
        "bytes": written.bytes,
        "rewritten": written.replaced,
        "unchanged": result.unchanged,
    }
    if result.lag is not None:
        metadata["captured_for_the_first_time"] = result.lag.runs
        metadata["capture_lag_median_seconds"] = result.lag.median.total_seconds()
        metadata["capture_lag_longest_seconds"] = result.lag.longest.total_seconds()
    if result.erased_verdicts:
        metadata["verdicts_without_texts"] = result.erased_verdicts
    if result.data_omitted:
        metadata["documents_too_large_for_jsonb"] = result.data_omitted
    if result.quarantined:
        metadata["quarantined_runs"] = preview(
            [f"{run.run_id}: {run.json_path} {run.error}" for run in result.quarantined]
        )
    return metadata


def refined_outcomes_metadata(result: JudgingResult) -> dict[str, Any]:
    """Return the metadata of a partition of ``refined_outcomes``."""
    written = _made(result.written)
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": written.rows,
        "dagster/uri": written.uri,
        "verdicts": table_of(result.statuses, "verdict_status"),
        "outcomes": table_of(result.outcomes, "outcome"),
        "due": table_of(result.due_reasons, "reason"),
        "asked": result.judged,
        "reused": result.reused,
        "calls": result.calls,
        "cost_usd": float(result.cost_usd),
        "disagreements": result.disagreements,
    }
    if result.models:
        metadata["judge"] = ", ".join(
            f"{model} (a simulation, not a model: its prices are made up)"
            if model in result.simulated_models
            else model
            for model in sorted(result.models)
        )
    if result.caps:
        metadata["budget"] = budget_table(result.caps)
    if result.deferred:
        metadata["held_back_by_a_cap"] = table_of(result.deferred, "cap")
    if result.unpriced_calls:
        metadata["calls_without_a_known_price"] = result.unpriced_calls
    if result.errors:
        metadata["errors"] = table_of(result.errors, "error_class")
    return metadata


def budget_table(caps: Sequence[tuple[Cap, SpendTotals]]) -> dg.MarkdownMetadataValue:
    """Return what is spent, reserved and left of each cap, as a table."""
    rows = "\n".join(
        f"| {cap.label} | {cap.format_amount(cap.limit)} | {cap.format_amount(cap.amount_of(account.spent))}"
        f" | {cap.format_amount(cap.amount_of(account.reserved))} | {cap.format_amount(cap.remaining(account))} |"
        f" {cap.setting} |"
        for cap, account in caps
    )
    return dg.MetadataValue.md(
        f"| cap | limit | spent | reserved | left | setting |\n|---|---|---|---|---|---|\n{rows}"
    )


def table_of(counts: Mapping[str, int], name: str) -> dg.MarkdownMetadataValue:
    """Return counts as a small table, the largest first."""
    rows = "\n".join(
        f"| {key} | {count} |" for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return dg.MetadataValue.md(f"| {name} | count |\n|---|---|\n{rows}" if rows else "none")


def preview(items: list[str]) -> dg.MarkdownMetadataValue:
    """Return the first few of a list, and how many more there are."""
    more = f"\n- … and {len(items) - _PREVIEW} more" if len(items) > _PREVIEW else ""
    return dg.MetadataValue.md("\n".join(f"- `{item}`" for item in items[:_PREVIEW]) + more)


def _made(part: _Part | None) -> _Part:
    if part is None:
        raise ValueError("the stage did not come to its end")
    return part
