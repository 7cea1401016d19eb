"""The assets: three stages over the same hours, below the source's tables.

Belongs here: which stage runs for which partitions, what the UI shows of it, and what happens when one partition of
a range fails. Does not belong here: the work (``stages``).
"""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import hour_of
from trajectory_pipeline.orchestration import checks
from trajectory_pipeline.orchestration.columns import column_schema
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES

CAPTURE = [dg.AssetKey(TERMINAL_RUNS.name), dg.AssetKey(TRAJECTORIES.name)]
REFINEMENT = [dg.AssetKey(REFINED_OUTCOMES.name)]

SOURCE_SPECS = [
    dg.AssetSpec(
        ["letta", name],
        description=f"Letta's own table `{name}`: the source, never written.",
        group_name="letta",
        kinds={"postgres"},
    )
    for name in ("runs", "steps", "messages")
]


def build_assets(
    partitions_def: dg.PartitionsDefinition[str], batch: int, judge_missing: str | None
) -> list[dg.AssetsDefinition]:
    """Return the three assets.

    Args:
        partitions_def: that all of them share.
        batch: partitions that one run of a backfill takes.
        judge_missing: why ``refined_outcomes`` is not requested; None where there is a judge.
    """
    common: dict[str, Any] = {
        "partitions_def": partitions_def,
        "backfill_policy": dg.BackfillPolicy.multi_run(max_partitions_per_run=batch),
        "group_name": "trajectories",
    }

    @dg.asset(
        name=TERMINAL_RUNS.name,
        description=TERMINAL_RUNS.description,
        deps=SOURCE_SPECS,
        kinds={"parquet"},
        metadata=_table_metadata(TERMINAL_RUNS, None),
        **common,
    )
    def terminal_runs(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
        from trajectory_pipeline.orchestration.metadata import of_terminal_runs
        from trajectory_pipeline.stages.terminal_runs import materialize_terminal_runs

        def one(hour: datetime) -> dict[str, Any]:
            return of_terminal_runs(
                materialize_terminal_runs(
                    hour, pipeline.source, pipeline.store, pipeline.database, dagster_run_id=context.run_id
                )
            )

        yield from _materialize(context, one, [])

    @dg.asset(
        name=TRAJECTORIES.name,
        description=TRAJECTORIES.description,
        deps=[terminal_runs],
        kinds={"parquet", "postgres"},
        metadata=_table_metadata(TRAJECTORIES, TRAJECTORIES.name),
        check_specs=[checks.CONSERVATION, checks.QUARANTINE],
        **common,
    )
    def trajectories(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
        from trajectory_pipeline.orchestration.metadata import of_trajectories
        from trajectory_pipeline.stages.trajectories import materialize_trajectories
        from trajectory_pipeline.stages.verification import verify_partition

        verifications: dict[str, Any] = {}
        quarantined: list[str] = []

        def one(hour: datetime) -> dict[str, Any]:
            result = materialize_trajectories(hour, pipeline.store, pipeline.database, dagster_run_id=context.run_id)
            verifications[hour.isoformat()] = verify_partition(hour, pipeline.store, pipeline.database)
            quarantined.extend(run.run_id for run in result.quarantined)
            return of_trajectories(result)

        def results() -> list[dg.AssetCheckResult]:
            return [checks.conservation(list(verifications.values())), checks.quarantine(quarantined)]

        yield from _materialize(context, one, results)

    not_requested = f"\n\n**Not requested by itself.** {judge_missing}" if judge_missing else ""

    @dg.asset(
        name=REFINED_OUTCOMES.name,
        description=REFINED_OUTCOMES.description + not_requested,
        deps=[trajectories],
        kinds={"parquet", "postgres", "openai"},
        metadata=_table_metadata(REFINED_OUTCOMES, "verdicts"),
        check_specs=[checks.VERDICTS],
        **common,
    )
    def refined_outcomes(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[Any]:
        from trajectory_pipeline.orchestration.metadata import of_refined_outcomes
        from trajectory_pipeline.stages.refined_outcomes import materialize_refined_outcomes

        failed: dict[str, int] = {}

        def one(hour: datetime) -> dict[str, Any]:
            result = materialize_refined_outcomes(
                hour,
                pipeline.store,
                pipeline.database,
                pipeline.judge,
                pipeline.policy,
                concurrency=pipeline.settings.judge_concurrency,
                dagster_run_id=context.run_id,
                progress=context.log.info,
            )
            for error_class, count in result.errors.items():
                failed[error_class] = failed.get(error_class, 0) + count
            return of_refined_outcomes(result)

        yield from _materialize(context, one, lambda: [checks.verdicts(failed)])

    return [terminal_runs, trajectories, refined_outcomes]


def _table_metadata(table: Table, postgres_table: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"dagster/column_schema": column_schema(table)}
    if postgres_table:
        metadata["dagster/table_name"] = f"{SCHEMA_NAME}.{postgres_table}"
    return metadata


def _materialize(
    context: dg.AssetExecutionContext,
    one: Callable[[datetime], dict[str, Any]],
    check_results: "list[dg.AssetCheckResult] | Callable[[], list[dg.AssetCheckResult]]",
) -> Iterator[Any]:
    """Materialise each partition of the run; a bad one fails by itself, after the good ones are done.

    Dagster records a range only at its end, and nothing of it if the step fails: the good partitions are then logged
    one by one before it does.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, PipelineError] = {}
    keys = list(context.partition_keys)
    for number, key in enumerate(keys, start=1):
        began = time.monotonic()
        try:
            done[key] = one(hour_of(key))
        except PipelineError as error:
            failed[key] = error
            context.log.error(f"{key}: {error}")  # noqa: TRY400 - the sentence is for a person, the trace is in Failure
            continue
        context.log.info(f"{key} ({number} of {len(keys)}) in {time.monotonic() - began:.2f} s")
    if failed:
        for key, metadata in done.items():
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))
        raise _failure(failed, len(keys))
    for key, metadata in done.items():
        context.add_asset_metadata(metadata, partition_key=key)
    yield dg.MaterializeResult(check_results=check_results() if callable(check_results) else check_results)


def _failure(failed: dict[str, PipelineError], partitions: int) -> dg.Failure:
    first_key, first = next(iter(failed.items()))
    if partitions == 1:
        return dg.Failure(str(first), allow_retries=False)
    return dg.Failure(
        f"{len(failed)} of {partitions} partitions failed, the others are done. First, {first_key}: {first}",
        metadata={"failed_partitions": dg.MetadataValue.md("\n".join(f"- `{k}`: {e}" for k, e in failed.items()))},
        allow_retries=False,
    )
