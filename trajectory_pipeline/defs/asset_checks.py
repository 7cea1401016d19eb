"""Asset checks: their names, and their results from what the pipeline counted.

Dagster stores a check of a range run without a partition, so the results name the bad partitions. A check that fails
has the metadata ``what_to_do``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.metadata import budget_table, bullet_list, count_table, markdown_table
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.budget.caps import Cap, SpendTotals
    from trajectory_pipeline.pipeline.reconcile_counts import Reconciliation
    from trajectory_pipeline.storage.declared_schema import SchemaDifference
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
COST = dg.AssetCheckSpec(
    "cost_is_under_cap",
    asset=REFINED_OUTCOMES.name,
    description="What was spent is at most each cap that is set. Only a provider that bills more than was reserved, or"
    " a cap that was lowered, can make it fail.",
)
EMBEDDINGS = dg.AssetCheckSpec(
    "no_failed_embeddings",
    asset=TRAJECTORY_EMBEDDINGS.name,
    description="The embedding model gave a usable embedding for every text. Those that may succeed are tried again.",
)
SCHEMA_NAME = "schema_is_as_declared"
UNIQUE_NAME = "run_ids_are_unique"
_RUNBOOK = "See docs/runbook.md, section Checks."


EXPORT_FILES_NAME = "files_match_manifest"
EXPORT_ERASED_NAME = "holds_nothing_erased"


def export_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks of an exported dataset."""
    return [
        dg.AssetCheckSpec(
            EXPORT_FILES_NAME,
            asset=asset,
            description="Each file that was just materialized has the digest that its manifest says.",
        ),
        dg.AssetCheckSpec(
            EXPORT_ERASED_NAME,
            asset=asset,
            description="The dataset holds no run that was erased, or deleted at the source, since it was written.",
        ),
    ]


def schema_spec(asset: str, *, blocking: bool) -> dg.AssetCheckSpec:
    """Return the check of an asset's files and tables against the declaration; it blocks where the next stage reads."""
    return dg.AssetCheckSpec(
        SCHEMA_NAME,
        asset=asset,
        blocking=blocking,
        description="Files, and tables in Postgres, have the columns, types and keys of the data dictionary.",
    )


def unique_spec(asset: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    """Return the check that each run is in one partition of an asset, once."""
    where = "in the partition's file" if asset == TERMINAL_RUNS.name else "in Parquet and in Postgres"
    return dg.AssetCheckSpec(
        UNIQUE_NAME, asset=asset, blocking=blocking, description=f"Each run is there once {where}."
    )


_CHECKS = {
    TERMINAL_RUNS.name: (
        schema_spec(TERMINAL_RUNS.name, blocking=True),
        unique_spec(TERMINAL_RUNS.name, blocking=True),
    ),
    TRAJECTORIES.name: (
        ROW_COUNTS,
        QUARANTINE,
        schema_spec(TRAJECTORIES.name, blocking=True),
        unique_spec(TRAJECTORIES.name),
    ),
    REFINED_OUTCOMES.name: (
        FAILED_VERDICTS,
        ABANDONED_VERDICTS,
        COST,
        schema_spec(REFINED_OUTCOMES.name, blocking=False),
        unique_spec(REFINED_OUTCOMES.name),
    ),
    TRAJECTORY_EMBEDDINGS.name: (EMBEDDINGS,),
}


def checks_of(name: str, source: str = LETTA) -> list[dg.AssetCheckSpec]:
    """Return the checks that each materialization of a source's asset makes."""
    key = asset_key(name, source)
    return [spec.replace_key(key=dg.AssetCheckKey(key, spec.name)) for spec in _CHECKS[name]]


def what_to_do(text: str) -> dict[str, dg.MetadataValue[Any]]:
    """Return the metadata that says how to mend what a check found."""
    # Text, which the UI shows at once; Markdown of checks it hides behind a link.
    return {"what_to_do": dg.MetadataValue.text(f"{text} {_RUNBOOK}")}


def schema(differences: "Sequence[SchemaDifference]") -> dg.AssetCheckResult:
    """Return whether nothing differs from the declaration; columns more than declared only warn."""
    only_extra = all(difference.extra for difference in differences)
    advice = what_to_do(
        "Table: run `trajectory-pipeline migrate`, and undo changes that were made by hand. File: materialize its"
        " partition again with `force`."
    )
    sentences = list(map(str, differences))
    return dg.AssetCheckResult(
        check_name=SCHEMA_NAME,
        passed=not differences,
        severity=dg.AssetCheckSeverity.WARN if only_extra else dg.AssetCheckSeverity.ERROR,
        description=summarize(sentences) or "as declared",
        metadata={"differences": bullet_list(sentences), **advice} if sentences else {},
    )


def unique(repeated: Mapping[str, str], asset: dg.AssetKey | None = None) -> dg.AssetCheckResult:
    """Return whether no run is there more than once; ``repeated`` says of each where it is.

    ``asset`` is needed where the check is not of the asset that is materialized.
    """
    first = next((f": first {run_id}, {where}" for run_id, where in repeated.items()), "")
    advice = what_to_do(
        "Materialize the partitions that are named again, with `force`; restore the primary key of the table if it is"
        " missing."
    )
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=UNIQUE_NAME,
        passed=not repeated,
        description=f"{pluralize(len(repeated), 'run')} more than once{first}" if repeated else "each run once",
        metadata={"repeated": len(repeated)}
        | ({"runs": bullet_list(list(repeated), repeated), **advice} if repeated else {}),
    )


def cost(caps: "Sequence[tuple[Cap, SpendTotals]]", above_reservation: Sequence[str]) -> dg.AssetCheckResult:
    """Return whether what was spent is at most each cap; ``above_reservation`` names the calls that cost too much."""
    exceeded = [
        f"{cap}: {cap.format_amount(cap.amount_of(totals.spent))} spent"
        for cap, totals in caps
        if cap.amount_of(totals.spent) > cap.limit
    ]
    advice = what_to_do(
        "Nothing more is asked under such a cap. If calls are listed, their provider bills more than its prices or"
        " limits say: correct `TRAJECTORY_PRICES`. If none is, the cap was lowered. See docs/budget.md."
    )
    return dg.AssetCheckResult(
        check_name=COST.name,
        passed=not exceeded,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(exceeded) or (f"{pluralize(len(caps), 'cap')} kept" if caps else "no cap is set"),
        metadata={
            **({"budget": budget_table(caps)} if caps else {}),
            **({"calls_above_their_reservation": bullet_list(above_reservation), **advice} if exceeded else {}),
        },
    )


def row_counts(reconciliations: "Sequence[Reconciliation]") -> dg.AssetCheckResult:
    """Return whether the raw rows, Parquet and Postgres agree in every partition."""
    differences = [difference for reconciliation in reconciliations for difference in reconciliation.differences]
    names = ("runs", "steps", "messages")
    totals = {
        side: {name: sum(getattr(reconciliation, side)[name] for reconciliation in reconciliations) for name in names}
        for side in ("raw", "parquet", "postgres")
    }
    advice = what_to_do("Materialize `trajectories` of the partitions that are named again, with `force`.")
    return dg.AssetCheckResult(
        check_name=ROW_COUNTS.name,
        passed=not differences,
        description=summarize(differences)
        or f"{pluralize(len(reconciliations), 'partition')} with equal counts in raw rows, Parquet and Postgres",
        metadata={
            # As numbers too, which Dagster plots.
            **totals["raw"],
            "counts": markdown_table(["side", *names], [(side, *counts.values()) for side, counts in totals.items()]),
            **({"differences": bullet_list(differences), **advice} if differences else {}),
        },
    )


def quarantine(run_ids: Sequence[str]) -> dg.AssetCheckResult:
    """Return whether no run was quarantined."""
    advice = what_to_do("Read the reasons in the table `trajectory.quarantine`: query 1 there.")
    return _warning(QUARANTINE, len(run_ids), "run", "quarantined", {"runs": bullet_list(run_ids), **advice})


def failed_verdicts(errors: Mapping[str, int], run_ids: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return whether no verdict failed, from the number of failures by error class, and the class of each run."""
    advice = what_to_do("`trajectory-pipeline explain RUN_ID` shows what came back. Fix what the error class names.")
    listed = {"errors": count_table(errors, "error_class"), "runs": bullet_list(list(run_ids), run_ids), **advice}
    return _warning(FAILED_VERDICTS, sum(errors.values()), "verdict", "failed", listed)


def abandoned_verdicts(verdicts: "Sequence[AbandonedVerdict]") -> dg.AssetCheckResult:
    """Return whether no verdict was abandoned."""
    runs = [f"{one.run_id}: {one.error_class}, failed {pluralize(one.failures, 'time')}" for one in verdicts]
    advice = what_to_do(
        "Fix the cause that the error class names, then materialize `refined_outcomes` of the partition."
    )
    return _warning(ABANDONED_VERDICTS, len(verdicts), "verdict", "abandoned", {"runs": bullet_list(runs), **advice})


def failed_embeddings(errors: Mapping[str, str]) -> dg.AssetCheckResult:
    """Return whether no text was left without an embedding, from the error of each run."""
    advice = what_to_do("Fix what the error class names; the sensor tries again those that may succeed then.")
    listed = {"runs": bullet_list(list(errors), errors), **advice}
    return _warning(EMBEDDINGS, len(errors), "text", "without embedding", listed)


def export_files(differing: Mapping[str, str], folders: int) -> dg.AssetCheckResult:
    """Return whether the files in the materialized folders of a dataset are as their manifests say."""
    advice = what_to_do("Files were changed by hand or by another program: materialize them again.")
    return dg.AssetCheckResult(
        check_name=EXPORT_FILES_NAME,
        passed=not differing,
        description=summarize([f"{key}: {found}" for key, found in differing.items()])
        or f"{pluralize(folders, 'folder')} as written",
        metadata={"folders": bullet_list(list(differing), differing), **advice} if differing else {},
    )


def export_holds_no_erased(runs: int) -> dg.AssetCheckResult:
    """Return whether a dataset holds no run that was erased, deleted at the source or pruned since."""
    advice = what_to_do("Materialize what is stale of it; the export sensor, or the daily job of pairs, requests it.")
    return dg.AssetCheckResult(
        check_name=EXPORT_ERASED_NAME,
        passed=not runs,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{pluralize(runs, 'run')} erased, deleted or pruned since" if runs else "none",
        metadata={"runs": runs, **(advice if runs else {})},
    )


def repeat_results(instance: dg.DagsterInstance, assets: Iterable[dg.AssetKey]) -> None:
    """Report the last result of each check of these assets again, after a materialization that no run made.

    Dagster shows a check as not evaluated as soon as its asset has a newer materialization.
    """
    keys = [dg.AssetCheckKey(asset, spec.name) for asset in assets for spec in _CHECKS[asset.path[-1]]]
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys) if keys else {}
    for record in latest.values():
        # One that is only planned, whatever Dagster's type says, gets its result from its run.
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=record.evaluation.asset_key,
                    check_name=record.evaluation.check_name,
                    passed=record.evaluation.passed,
                    metadata=record.evaluation.metadata,
                    severity=record.evaluation.severity,
                    description=record.evaluation.description,
                    blocking=record.evaluation.blocking,
                )
            )


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
