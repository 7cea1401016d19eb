"""What the Dagster UI shows of a materialization: counts, ids and locations; never a transcript, never a secret."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from trajectory_pipeline.quality import summary
from trajectory_pipeline.schema.enums import Criterion
from trajectory_pipeline.schema.types import Table

if TYPE_CHECKING:
    # Imports Arrow: not for every process that loads definitions.
    from trajectory_pipeline.budget.caps import Cap, SpendTotals
    from trajectory_pipeline.pipeline.capture import TerminalRunsResult
    from trajectory_pipeline.pipeline.convert import TrajectoriesResult
    from trajectory_pipeline.pipeline.embed import EmbeddingResult
    from trajectory_pipeline.pipeline.export_asset import ExportedPartition
    from trajectory_pipeline.pipeline.judge import JudgingResult
    from trajectory_pipeline.pipeline.judge_quality import QualityResult
    from trajectory_pipeline.storage.parquet.store import ParquetStore, WrittenFile

_Part = TypeVar("_Part")
_LISTED = 50
_CELL = 80
_SIMULATED = " (simulated: not a model, and its prices are not real)"


def bullet_list(items: Sequence[str], texts: Mapping[str, str] | None = None) -> dg.MarkdownMetadataValue:
    """Return the first 50 of a list, each with its text if it has one, and how many more there are."""
    lines = [f"- `{item}`: {texts[item]}" if texts else f"- `{item}`" for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"- … and {len(items) - _LISTED} more")
    return dg.MetadataValue.md("\n".join(lines))


def count_table(counts: Mapping[str, int], name: str) -> dg.MarkdownMetadataValue:
    """Return counts by name as a table, the largest first."""
    largest_first = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return markdown_table([name, "count"], largest_first) if counts else dg.MetadataValue.md("none")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """Return a table. A cell is one line of at most 80 characters."""
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in (header, *rows)]
    return dg.MetadataValue.md("\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]))


def quality_metadata(result: "QualityResult") -> dict[str, Any]:
    """Return what was measured of the judge's agreement with people, as tables."""
    rows = [asdict(row) for row in result.quality]
    confused = [asdict(row) for row in result.confusions]
    if not result.labels:
        return {"labels": 0, "agreement": dg.MetadataValue.md("No labels yet: `trajectory-pipeline label`.")}
    names = {policy.policy_id: policy.name for policy in result.policies}
    return {
        "labels": result.labels,
        "labelled_runs": result.labelled_runs,
        "policies": len(result.policies),
        "agreement": markdown_table(summary.HEADER, summary.summary_rows(rows, names)),
        "by_slice": markdown_table(summary.SLICE_HEADER, summary.slice_rows(rows, names)),
        **{
            f"confusion_{criterion}": markdown_table(
                ("policy", "people", "judge", "runs"), summary.confusion_rows(confused, names, criterion)[:_LISTED]
            )
            for criterion in (Criterion.OUTCOME, Criterion.FAILURE_OWNER, Criterion.FAILURE_MODE)
        },
    }


def preview_metadata(store: "ParquetStore", table: Table, hour: datetime) -> dict[str, Any]:
    """Return a few rows of a partition, sums over all of them, and queries that read them; nothing without rows.

    Raises:
        SinkError: the partition's file cannot be read.
    """
    from trajectory_pipeline.storage.parquet.preview import COLUMNS, preview

    shown = preview(store, table, hour)
    if not shown.rows:
        return {}
    queries = "\n\n".join(f"{name}:\n```sql\n{text}\n```" for name, text in shown.queries.items())
    return {
        **{name: float(value) if isinstance(value, Decimal) else value for name, value in shown.sums.items()},
        "preview": markdown_table(COLUMNS[table.name], shown.rows),
        "query": dg.MetadataValue.md(queries),
    }


def terminal_runs_metadata(result: "TerminalRunsResult") -> dict[str, Any]:
    """Return the metadata of a partition of ``terminal_runs``."""
    corrupt = result.corrupt_file
    return {
        **_file(result.written),
        **result.counts.by_name(),
        "up_to_date": result.unchanged,
        "snapshot_at": dg.MetadataValue.timestamp(result.snapshot_at),
        **_present(
            corrupt_file=corrupt and corrupt.copy_uri,
            corruption=corrupt and corrupt.error,
            lost_run_ids=corrupt and corrupt.lost and bullet_list(corrupt.lost),
            unknown_source_columns=result.unknown_columns and bullet_list(result.unknown_columns),
            absent_source_columns=result.absent_columns and bullet_list(result.absent_columns),
        ),
    }


def trajectories_metadata(result: "TrajectoriesResult") -> dict[str, Any]:
    """Return the metadata of a partition of ``trajectories``."""
    merged, counts, lag = _require(result.merge_stats), result.row_balance, result.lag
    lags = lag and {
        "newly_captured": lag.runs,
        "capture_lag_median_seconds": round(lag.median.total_seconds(), 1),
        "capture_lag_max_seconds": round(lag.longest.total_seconds(), 1),
    }
    quarantined = [f"{run.run_id}: {run.json_path} {run.error}" for run in result.quarantined]
    return {
        **_file(_require(result.written)),
        "runs_in": counts.runs_in,
        "trajectories": counts.trajectories,
        "quarantined": counts.quarantined,
        "messages": counts.messages_out,
        "steps": counts.steps_out,
        # A new version of the source may write rows that only the slow way knows: this shows it.
        "converted_by_reference": counts.reference_path_runs,
        "converted_by_reference_share": round(counts.reference_path_runs / max(counts.runs_in, 1), 4),
        "postgres": dg.MetadataValue.md(
            f"{merged.inserted} inserted, {merged.updated} updated, {merged.unchanged} unchanged,"
            f" {merged.removed} removed"
        ),
        "execution": count_table(result.executions, "execution"),
        "heuristic_outcome": count_table(result.outcomes, "outcome"),
        "escaped": result.escaped,
        "up_to_date": result.unchanged,
        **(lags or {}),
        **_present(
            erased_verdicts=result.erased_verdicts,
            documents_omitted_from_postgres=result.data_omitted,
            quarantined_runs=quarantined and bullet_list(quarantined),
        ),
    }


def refined_outcomes_metadata(result: "JudgingResult") -> dict[str, Any]:
    """Return the metadata of a partition of ``refined_outcomes``."""
    judges = [model + (_SIMULATED if model in result.simulated_models else "") for model in sorted(result.models)]
    return {
        **_file(_require(result.written)),
        "trajectories_in": result.due_reasons.total() + result.reused - result.claimed_elsewhere,
        "verdicts": count_table(result.statuses, "verdict_status"),
        "outcomes": count_table(result.outcomes, "outcome"),
        "pending": count_table(result.due_reasons, "reason"),
        "judged": result.judged,
        "reused": result.reused,
        "calls": result.calls,
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "cost_usd": float(result.cost_usd),
        "disagreements": result.disagreements,
        **_present(
            submitted_in_batches=result.submitted,
            judge=", ".join(judges),
            budget=result.caps and budget_table(result.caps),
            deferred_by_cap=result.deferred and count_table(result.deferred, "cap"),
            unpriced_calls=result.unpriced_calls,
            cut_prompts=result.cut_prompts,
            errors=result.errors and count_table(result.errors, "error_class"),
        ),
    }


def embeddings_metadata(result: "EmbeddingResult") -> dict[str, Any]:
    """Return the metadata of a partition of ``trajectory_embeddings``."""
    return {
        "dagster/partition_row_count": result.embedded,
        "texts": result.texts,
        "embedded": result.embedded,
        "model": result.model_id or "none",
        **_present(
            failed=result.failed,
            not_sent=result.denied,
            pending=result.pending,
            no_embeddings_because=result.reason,
            search_uses=result.model_id and not result.is_searched and "another model, until this one has caught up",
        ),
    }


def export_metadata(result: "ExportedPartition") -> dict[str, Any]:
    """Return the metadata of a partition of an exported dataset."""
    manifest = result.manifest
    return {
        "dagster/partition_row_count": sum(manifest["records"].values()),
        "dagster/uri": result.uri,
        "selected": result.selected,
        "files": len(manifest["files"]),
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "rewritten": result.replaced,
        "digest": result.manifest_digest,
        "filters": ", ".join(f"{name}: {value}" for name, value in manifest["filters"].items()) or "none",
        "redaction": manifest["redaction"]["mode"],
        **_present(
            splits=manifest["records"] and count_table(manifest["records"], "split"),
            left_out=manifest["left_out"] and count_table(manifest["left_out"], "reason"),
            not_in_this_form=manifest["losses"] and count_table(manifest["losses"], "what"),
        ),
    }


def budget_table(caps: "Sequence[tuple[Cap, SpendTotals]]") -> dg.MarkdownMetadataValue:
    """Return what is spent, reserved and remaining of each cap, as a table."""
    rows = [
        (
            cap.label,
            *map(cap.format_amount, (cap.limit, cap.amount_of(totals.spent), cap.amount_of(totals.reserved))),
            cap.format_amount(cap.remaining(totals)),
            cap.setting,
        )
        for cap, totals in caps
    ]
    return markdown_table(["cap", "limit", "spent", "reserved", "remaining", "setting"], rows)


def _cell(value: object) -> str:
    """Return a value as a table shows it; ids and words come from the source and may hold any character."""
    text = f"{float(value):.6g}" if isinstance(value, float | Decimal) else "" if value is None else str(value)
    text = " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;").split())
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _file(written: "WrittenFile") -> dict[str, Any]:
    return {
        "dagster/partition_row_count": written.rows,
        "dagster/uri": written.uri,
        "bytes": written.bytes,
        "rewritten": written.replaced,
    }


def _present(**metadata: object) -> dict[str, Any]:
    """Return those that are neither absent, empty nor 0."""
    return {name: value for name, value in metadata.items() if value}


def _require(part: _Part | None) -> _Part:
    if part is None:
        raise ValueError("the stage did not finish")
    return part
