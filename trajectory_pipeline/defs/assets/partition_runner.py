"""The loop over a run's partitions, and the report of those that failed."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import dagster as dg

from trajectory_pipeline.defs.metadata import bullet_list
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.text import pluralize

Metadata = Mapping[str, Any]
MaterializeResults = Iterator[dg.MaterializeResult[None]]

FAILED_KEYS = "failed_partition_keys"
"""Metadata of the failure of a range: the keys of all partitions that failed, for the sensors."""
_PROGRESS_SECONDS = 15.0
_LISTED_KEYS = 24


def materialize_partitions(
    context: dg.AssetExecutionContext,
    materialize: Callable[[datetime], Metadata],
    check_results: Callable[[Sequence[datetime]], Sequence[dg.AssetCheckResult]],
) -> MaterializeResults:
    """Materialize each partition of the run. One that fails does not affect the others.

    Dagster records a range only at its end, and nothing of it if the step fails. So the good partitions are logged one
    by one before the step fails. Dagster then runs no downstream step, not even for the good partitions; the refinement
    sensor finds those.

    ``materialize`` returns an hour's metadata; ``check_results`` is called after all partitions, with the good ones.

    Raises:
        dagster.Failure: some partitions failed; the text lists them.
    """
    done: dict[str, Metadata] = {}
    failed: dict[str, str] = {}
    unexpected: Exception | None = None
    keys = sorted(context.partition_keys)
    started = logged = time.monotonic()
    try:
        for number, key in enumerate(keys, start=1):
            try:
                done[key] = materialize(parse_partition_key(key))
            except PipelineError as error:
                failed[key] = str(error)
                context.log.error(f"{key}: {error}")  # noqa: TRY400 - the message says all that a person needs
            except Exception as error:
                # The error's own text may hold rows: it stands in the log alone, and not in notices.
                failed[key] = (
                    f"unexpected {type(error).__name__}, a bug in the pipeline: please report it with the run's log"
                )
                unexpected = unexpected or error
                context.log.exception(f"{key}: unexpected error")
            now = time.monotonic()
            # Not one line per partition: a line is an event, and costs Dagster as much as a small partition.
            if number == len(keys) or now - logged >= _PROGRESS_SECONDS:
                total = pluralize(len(keys), "partition")
                context.log.info(f"{number} of {total} in {now - started:.1f} s, last {key}")
                logged = now
    except BaseException:
        # Terminated from the UI, or interrupted: what is committed must be recorded.
        _log_materializations(context, done)
        raise
    if failed:
        _log_materializations(context, done)
        if done:
            with suppress(PipelineError):
                _log_checks(context, check_results(list(map(parse_partition_key, done))))
        raise _failure(failed, len(keys)) from unexpected
    try:
        results = check_results(list(map(parse_partition_key, done)))
    except PipelineError as error:
        _log_materializations(context, done)
        raise dg.Failure(
            f"{pluralize(len(done), 'partition')} done, and not checked: {error}", allow_retries=False
        ) from None
    for key, metadata in done.items():
        context.add_asset_metadata(metadata, partition_key=key)
    yield dg.MaterializeResult(check_results=results)


def _log_materializations(context: dg.AssetExecutionContext, done: Mapping[str, Metadata]) -> None:
    for key, metadata in done.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata))


def _log_checks(context: dg.AssetExecutionContext, results: Sequence[dg.AssetCheckResult]) -> None:
    """Record the checks of the good partitions: the UI shows a check without a result as failed."""
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


def _failure(failed: Mapping[str, str], partitions: int) -> dg.Failure:
    first, reason = next(iter(failed.items()))
    if partitions == 1:
        return dg.Failure(reason, allow_retries=False)
    if len(failed) == partitions:
        description = f"All {partitions} partitions failed. First, {first}: {reason}"
    else:
        more = f" and {len(failed) - _LISTED_KEYS} more" if len(failed) > _LISTED_KEYS else ""
        description = (
            f"{len(failed)} of {pluralize(partitions, 'partition')} failed; the others are done."
            f" Failed: {', '.join(list(failed)[:_LISTED_KEYS])}{more}. First, {first}: {reason}"
        )
    metadata = {
        "failed_partitions": bullet_list(list(failed), failed),
        FAILED_KEYS: dg.MetadataValue.json(list(failed)),
    }
    return dg.Failure(description, metadata=metadata, allow_retries=False)
