"""The assets: three stages over the same hours, below the source's tables.

Belongs here: which stage runs for which partitions, what the UI shows of it, and what happens when one partition of
a range fails. Does not belong here: the work (``stages``).
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.table_schema import column_schema, source_column_schema
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import parse_partition_key, partition_key
from trajectory_pipeline.schema.raw import MESSAGES, RUNS, STEPS, TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import SCHEMA_NAME, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.judging_estimate import JudgingEstimate

CAPTURE = [dg.AssetKey(TERMINAL_RUNS.name), dg.AssetKey(TRAJECTORIES.name)]
REFINEMENT = [dg.AssetKey(REFINED_OUTCOMES.name)]

SOURCE_SPECS = [
    dg.AssetSpec(
        ["letta", table.name],
        description=f"Letta's own table `{table.name}`: the source, never written.",
        group_name="letta",
        kinds={"postgres"},
        metadata={"dagster/column_schema": source_column_schema(table), "dagster/table_name": table.name},
    )
    for table in (RUNS, STEPS, MESSAGES)
]


def refinement_batch(batch: int) -> int:
    """Return how many partitions one run judges at most, where a run of capture takes ``batch``.

    Fewer: a judge is slow, and a range is recorded only at its end. And not the same number, so that a backfill judges
    in runs of their own: in one run with capture, a bad partition would keep all of the range from being judged.
    """
    return max(1, batch // 4)


def build_assets(
    partitions_def: dg.PartitionsDefinition[str], batch: int, judge_missing: str | None
) -> list[dg.AssetsDefinition]:
    """Return the three assets.

    Args:
        partitions_def: that all of them share.
        batch: partitions that one run of a backfill captures.
        judge_missing: why ``refined_outcomes`` is not requested; None where there is a judge.
    """

    def asset(
        table: Table, kinds: set[str], postgres_table: str | None, *, longest: int = batch, **more: Any
    ) -> _Decorator:
        with warnings.catch_warnings():
            # Known, and pinned by the range in pyproject.toml: it would be printed three times a process.
            warnings.filterwarnings("ignore", r".*`backfill_policy`", dg.BetaWarning)
            decorator: _Decorator = dg.asset(
                name=table.name,
                description=more.pop("description", table.description),
                kinds=kinds,
                metadata=_table_metadata(table, postgres_table),
                partitions_def=partitions_def,
                backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=longest),
                group_name="trajectories",
                **more,
            )
        return decorator

    @asset(TERMINAL_RUNS, {"parquet"}, None, deps=SOURCE_SPECS)
    def terminal_runs(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from trajectory_pipeline.defs.metadata import terminal_runs_metadata
        from trajectory_pipeline.pipeline.capture import materialize_terminal_runs

        with pipeline.source.pooled() as source, pipeline.storage.pooled() as storage:

            def one(hour: datetime) -> Mapping[str, Any]:
                result = materialize_terminal_runs(
                    hour,
                    source,
                    storage,
                    deleted=pipeline.settings.capture.deleted_content,
                    start=pipeline.settings.capture.start,
                    dagster_run_id=context.run.run_id,
                )
                if result.corrupt_file is not None:
                    context.log.warning(result.corrupt_file.sentence(partition_key(hour)))
                return terminal_runs_metadata(result)

            yield from _materialize(context, one)

    @asset(
        TRAJECTORIES,
        {"parquet", "postgres"},
        TRAJECTORIES.name,
        deps=[terminal_runs],
        check_specs=[asset_checks.CONSERVATION, asset_checks.QUARANTINE],
    )
    def trajectories(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from trajectory_pipeline.defs.metadata import trajectories_metadata
        from trajectory_pipeline.pipeline.convert import materialize_trajectories
        from trajectory_pipeline.pipeline.reconcile_counts import Reconciliation, reconcile_partition

        verifications: list[Reconciliation] = []
        quarantined: list[str] = []

        with pipeline.storage.pooled() as storage:

            def one(hour: datetime) -> Mapping[str, Any]:
                result = materialize_trajectories(hour, storage, dagster_run_id=context.run.run_id)
                verifications.append(reconcile_partition(hour, storage))
                quarantined.extend(run.run_id for run in result.quarantined)
                return trajectories_metadata(result)

            yield from _materialize(
                context, one, lambda: [asset_checks.conservation(verifications), asset_checks.quarantine(quarantined)]
            )

    not_requested = f"\n\n**Not requested by itself.** {judge_missing}" if judge_missing else ""

    @asset(
        REFINED_OUTCOMES,
        {"parquet", "postgres", "openai"},
        "verdicts",
        longest=refinement_batch(batch),
        deps=[trajectories],
        check_specs=[asset_checks.VERDICTS, asset_checks.ABANDONED],
        description=REFINED_OUTCOMES.description + not_requested,
    )
    def refined_outcomes(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> Iterator[dg.MaterializeResult[None]]:
        from trajectory_pipeline.defs.metadata import refined_outcomes_metadata
        from trajectory_pipeline.pipeline.judge import JudgingRun

        try:
            refinement = JudgingRun(
                pipeline.storage,
                pipeline.judge,
                order=pipeline.settings.judge.order,
                dagster_run_id=context.run.run_id,
                progress=context.log.info,
            )
            refinement.judge.require_price()
            context.log.info(" ".join(_plan(pipeline, context.partition_keys).sentences()))
            # All of them at once, by the order that is set: a partition may be too small to keep a judge busy.
            refinement.judge_partitions([parse_partition_key(key) for key in context.partition_keys])
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        failed: dict[str, int] = {}

        def one(hour: datetime) -> Mapping[str, Any]:
            result = refinement.publish(hour)
            for error_class, count in result.errors.items():
                failed[error_class] = failed.get(error_class, 0) + count
            return refined_outcomes_metadata(result)

        def check_results() -> list[dg.AssetCheckResult]:
            return [asset_checks.verdicts(failed), asset_checks.abandoned(_given_up(pipeline))]

        yield from _materialize(context, one, check_results)

    return [terminal_runs, trajectories, refined_outcomes]


def _plan(pipeline: PipelineResource, partition_keys: Sequence[str]) -> "JudgingEstimate":
    from trajectory_pipeline.pipeline.judging_estimate import estimate_judging

    return estimate_judging(
        [parse_partition_key(key) for key in partition_keys],
        pipeline.storage,
        pipeline.judge,
        now=datetime.now(UTC),
        lookback=timedelta(days=pipeline.settings.judge.lookback_days),
        order=pipeline.settings.judge.order,
        render=False,
    )


def _given_up(pipeline: PipelineResource) -> Sequence[Mapping[str, Any]]:
    from trajectory_pipeline.pipeline.pending_verdicts import find_abandoned_verdicts

    settings = pipeline.settings
    return find_abandoned_verdicts(
        pipeline.database,
        pipeline.judge.policy,
        ended_since=datetime.now(UTC) - timedelta(days=settings.judge.lookback_days),
        give_up_after=settings.judge.give_up_after,
    )


_TELL_SECONDS = 15.0

_Decorator = Callable[[Callable[..., Iterator[dg.MaterializeResult[None]]]], dg.AssetsDefinition]


def _table_metadata(table: Table, postgres_table: str | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"dagster/column_schema": column_schema(table)}
    if postgres_table:
        metadata["dagster/table_name"] = f"{SCHEMA_NAME}.{postgres_table}"
    return metadata


def _materialize(
    context: dg.AssetExecutionContext,
    one: Callable[[datetime], Mapping[str, Any]],
    check_results: Callable[[], Sequence[dg.AssetCheckResult]] = list,
) -> Iterator[dg.MaterializeResult[None]]:
    """Materialise each partition of the run; a bad one fails by itself, after the good ones are done.

    Dagster records a range only at its end, and nothing of it if the step fails: what is done is then logged, partition
    by partition, before it does. What is downstream of a failed step is not run, for the good partitions neither: the
    refinement sensor finds those.

    Args:
        context: of the run.
        one: materialises an hour and returns its metadata.
        check_results: called when all partitions are done.

    Raises:
        dagster.Failure: some partitions failed; the text lists them.
    """
    done: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, Exception] = {}
    keys = sorted(context.partition_keys)
    began = told = time.monotonic()
    try:
        for number, key in enumerate(keys, start=1):
            try:
                done[key] = one(parse_partition_key(key))
            except PipelineError as error:
                failed[key] = error
                context.log.error(f"{key}: {error}")  # noqa: TRY400 - the sentence says all that a person needs
            except Exception as error:
                failed[key] = error
                context.log.exception(f"{key}: an error that nobody foresaw")
            now = time.monotonic()
            # A line is an event, and costs Dagster as much as a small partition.
            if number == len(keys) or now - told >= _TELL_SECONDS:
                context.log.info(f"{number} of {pluralize(len(keys), 'partition')} in {now - began:.1f} s, last {key}")
                told = now
    except BaseException:
        # Terminated from the UI, or interrupted: what is done is done.
        _log_materializations(context, done)
        raise
    if failed:
        _log_materializations(context, done)
        if done:
            _log_checks(context, check_results())
        unforeseen = next((error for error in failed.values() if not isinstance(error, PipelineError)), None)
        raise _failure(failed, len(keys)) from unforeseen
    for key, metadata in done.items():
        context.add_asset_metadata(metadata, partition_key=key)
    yield dg.MaterializeResult(check_results=check_results())


def _log_materializations(context: dg.AssetExecutionContext, done: Mapping[str, Mapping[str, Any]]) -> None:
    for key, metadata in done.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))


def _log_checks(context: dg.AssetExecutionContext, results: Sequence[dg.AssetCheckResult]) -> None:
    """Record what was checked of the good partitions; a check without a result would stand there as failed."""
    for result in results:
        context.log_event(
            dg.AssetCheckEvaluation(
                asset_key=context.asset_key,
                check_name=str(result.check_name),
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
            )
        )


_LISTED = 24


def _failure(failed: Mapping[str, Exception], partitions: int) -> dg.Failure:
    reasons = {key: _reason(error) for key, error in failed.items()}
    key, reason = next(iter(reasons.items()))
    if partitions == 1:
        return dg.Failure(reason, allow_retries=False)
    if len(failed) == partitions:
        words = f"All {partitions} partitions failed. First, {key}: {reason}"
    else:
        more = f" and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
        words = (
            f"{len(failed)} of {pluralize(partitions, 'partition')} failed, the others are done."
            f" Failed: {', '.join(list(failed)[:_LISTED])}{more}. First, {key}: {reason}"
        )
    return dg.Failure(
        words,
        metadata={"failed_partitions": dg.MetadataValue.md("\n".join(f"- `{k}`: {why}" for k, why in reasons.items()))},
        allow_retries=False,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, PipelineError):
        return str(error)
    return f"{type(error).__name__}: {error} (a defect of the pipeline: please report it)"
