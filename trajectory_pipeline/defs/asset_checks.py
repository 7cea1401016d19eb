"""Asset checks: their names, and their results from what the pipeline counted.

Dagster stores a check of a range run without a partition, so the results name the bad partitions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.defs.metadata import bullet_list, count_table, markdown_table
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.reconcile_counts import Reconciliation
    from trajectory_pipeline.storage.postgres.verdict_status import AbandonedVerdict

ROW_COUNTS = dg.AssetCheckSpec(
    "row_counts_match",
    asset=TRAJECTORIES.name,
    blocking=True,
    description="Runs, steps and messages of the raw rows equal those in Parquet and Postgres, quarantine included.",
)
QUARANTINE = dg.AssetCheckSpec(
    "no_quarantined_runs",
    asset=TRAJECTORIES.name,
    description="Every run was converted. Quarantined runs are in trajectory.quarantine and are retried.",
)
FAILED_VERDICTS = dg.AssetCheckSpec(
    "no_failed_verdicts",
    asset=REFINED_OUTCOMES.name,
    description="The judge gave a usable response for every trajectory. Failed verdicts are retried.",
)
ABANDONED_VERDICTS = dg.AssetCheckSpec(
    "no_abandoned_verdicts",
    asset=REFINED_OUTCOMES.name,
    description="No verdict failed so often that the sensor stopped retrying it (TRAJECTORY_JUDGE_GIVE_UP_AFTER). Fix"
    " the cause that its error class names, then materialize its partition.",
)


def row_counts(reconciliations: "Sequence[Reconciliation]") -> dg.AssetCheckResult:
    """Return whether the raw rows, Parquet and Postgres agree in every partition."""
    differences = [difference for reconciliation in reconciliations for difference in reconciliation.differences]
    names = ("runs", "steps", "messages")
    totals = {
        side: {name: sum(getattr(reconciliation, side)[name] for reconciliation in reconciliations) for name in names}
        for side in ("raw", "parquet", "postgres")
    }
    return dg.AssetCheckResult(
        check_name=ROW_COUNTS.name,
        passed=not differences,
        description=summarize(differences)
        or f"{pluralize(len(reconciliations), 'partition')} with equal counts in raw rows, Parquet and Postgres",
        metadata={
            # As numbers too, which Dagster plots.
            **totals["raw"],
            "counts": markdown_table(["side", *names], [(side, *counts.values()) for side, counts in totals.items()]),
            **({"differences": bullet_list(differences)} if differences else {}),
        },
    )


def quarantine(run_ids: Sequence[str]) -> dg.AssetCheckResult:
    """Return whether no run was quarantined."""
    return _warning(QUARANTINE, len(run_ids), "run", "quarantined", {"runs": bullet_list(run_ids)})


def failed_verdicts(errors: Mapping[str, int]) -> dg.AssetCheckResult:
    """Return whether no verdict failed, from the number of failures by error class."""
    listed = {"errors": count_table(errors, "error_class")}
    return _warning(FAILED_VERDICTS, sum(errors.values()), "verdict", "failed", listed)


def abandoned_verdicts(verdicts: "Sequence[AbandonedVerdict]") -> dg.AssetCheckResult:
    """Return whether no verdict was abandoned."""
    runs = [f"{one.run_id}: {one.error_class}, failed {pluralize(one.failures, 'time')}" for one in verdicts]
    return _warning(ABANDONED_VERDICTS, len(verdicts), "verdict", "abandoned", {"runs": bullet_list(runs)})


def summarize(differences: Sequence[str]) -> str:
    """Return how many there are and the first; no text if there is none."""
    return f"{pluralize(len(differences), 'difference')}; first: {differences[0]}" if differences else ""


def _warning(
    spec: dg.AssetCheckSpec, count: int, noun: str, state: str, listed: Mapping[str, dg.MetadataValue[Any]]
) -> dg.AssetCheckResult:
    """Return a check that passes if the count is 0, and else warns, which stops nothing downstream."""
    return dg.AssetCheckResult(
        check_name=spec.name,
        passed=not count,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{pluralize(count, noun)} {state}" if count else "none",
        metadata={state: count, **(listed if count else {})},
    )
