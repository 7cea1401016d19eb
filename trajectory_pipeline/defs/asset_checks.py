"""Asset checks: what a person should see at a glance, and what must stop what is downstream.

Belongs here: the checks' names, and their results from what the stages counted. Does not belong here: counting.

In a range run Dagster stores a check's result without a partition: the results therefore name the bad partitions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.reconcile_counts import Reconciliation

CONSERVATION = dg.AssetCheckSpec(
    "conservation",
    asset=TRAJECTORIES.name,
    blocking=True,
    description="Runs, steps and messages of the raw rows equal those in Parquet and in Postgres, quarantine included.",
)
QUARANTINE = dg.AssetCheckSpec(
    "nothing_in_quarantine",
    asset=TRAJECTORIES.name,
    description="Every run could be converted. Those that could not are in trajectory.quarantine and are tried again.",
)
VERDICTS = dg.AssetCheckSpec(
    "every_answer_usable",
    asset=REFINED_OUTCOMES.name,
    description="No trajectory is without a usable answer of the judge. Failed ones are tried again.",
)
ABANDONED = dg.AssetCheckSpec(
    "nothing_given_up",
    asset=REFINED_OUTCOMES.name,
    description="No verdict has failed so often that the sensor does not have it tried again any more"
    " (TRAJECTORY_JUDGE_GIVE_UP_AFTER). Mend what its error class says, then materialise its partition.",
)
_PREVIEW = 50


def conservation(verifications: "Sequence[Reconciliation]") -> dg.AssetCheckResult:
    """Return the result of counting both sides of each partition."""
    differences = [difference for verification in verifications for difference in verification.differences]
    sides = ("raw", "parquet", "postgres")
    totals = {
        side: {
            name: sum(getattr(verification, side)[name] for verification in verifications)
            for name in ("runs", "steps", "messages")
        }
        for side in sides
    }
    rows = "\n".join(f"| {side} | {' | '.join(str(count) for count in totals[side].values())} |" for side in sides)
    return dg.AssetCheckResult(
        check_name=CONSERVATION.name,
        passed=not differences,
        description=f"{pluralize(len(differences), 'difference')}; first: {differences[0]}"
        if differences
        else f"{pluralize(len(verifications), 'partition')} counted on all sides",
        metadata={
            # As numbers too: these are plotted.
            **totals["raw"],
            "counts": dg.MetadataValue.md(f"| side | runs | steps | messages |\n|---|---|---|---|\n{rows}"),
            **({"differences": bullets(differences)} if differences else {}),
        },
    )


def quarantine(run_ids: Sequence[str]) -> dg.AssetCheckResult:
    """Return the result of looking for quarantined runs; a warning, which stops nothing."""
    return dg.AssetCheckResult(
        check_name=QUARANTINE.name,
        passed=not run_ids,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{pluralize(len(run_ids), 'run')} in quarantine" if run_ids else "no run in quarantine",
        metadata={"quarantined": len(run_ids), **({"runs": bullets(run_ids)} if run_ids else {})},
    )


def verdicts(errors: Mapping[str, int]) -> dg.AssetCheckResult:
    """Return the result of looking for trajectories without a usable answer; a warning, which stops nothing."""
    count = sum(errors.values())
    return dg.AssetCheckResult(
        check_name=VERDICTS.name,
        passed=not count,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{pluralize(count, 'trajectory', 'trajectories')} without a usable answer"
        if count
        else "every answer was usable",
        metadata={
            "unusable": count,
            **({"errors": bullets([f"{name}: {number}" for name, number in errors.items()])} if count else {}),
        },
    )


def abandoned(verdicts: Sequence[Mapping[str, Any]]) -> dg.AssetCheckResult:
    """Return the result of looking for failed verdicts that the sensor has given up; a warning, which stops nothing.

    Args:
        verdicts: each with ``run_id``, ``error_class`` and ``failures``.
    """
    listed = [f"{row['run_id']}: {row['error_class']}, failed {pluralize(row['failures'], 'time')}" for row in verdicts]
    return dg.AssetCheckResult(
        check_name=ABANDONED.name,
        passed=not verdicts,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{pluralize(len(verdicts), 'verdict')} given up" if verdicts else "nothing is given up",
        metadata={"given_up": len(verdicts), **({"runs": bullets(listed)} if verdicts else {})},
    )


def bullets(items: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Return a list as the UI shows it: the first fifty, and how many more there are."""
    more = f"\n- … and {len(items) - _PREVIEW} more" if len(items) > _PREVIEW else ""
    return dg.MetadataValue.md("\n".join(f"- `{item}`" for item in items[:_PREVIEW]) + more)
