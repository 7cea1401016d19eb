"""Materializes a range of partitions in this process, through Dagster's own instance, so that the UI shows the runs."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import dagster as dg

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.partitions import range_tags
from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import contiguous, name_at, parse_partition_key, partition_key, source_of
from trajectory_pipeline.pipeline.deletion_guard import ACCEPT_DELETIONS_TAG
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.ledger import count_entries_since

_LATER = (REFINED_OUTCOMES.name, TRAJECTORY_EMBEDDINGS.name)
_POLL_SECONDS = 0.5
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def materialize(
    hours: Sequence[datetime],
    assets: Sequence[str],
    database: TrajectoryDatabase,
    progress: Callable[[int, str], None],
    *,
    accept_deletions: bool = False,
) -> dict[str, str]:
    """Materialize assets for these sorted hours of one source.

    Returns what went wrong, as a sentence, for each failed Dagster run.

    Consecutive hours share a Dagster run, up to one backfill batch. Dagster does not run what is downstream of a failed
    step, for any partition of its range. If some partitions succeeded, another run follows for them with the remaining
    assets. If capturing needs more than one run, all of it comes before judging, so that every run is judged after the
    runs that it continues are captured. Judging then starts with the newest hours, as the spending caps expect.

    With ``accept_deletions``, what the source lacks is deleted, however much it is.
    ``progress`` is called with the number of (asset, partition) pairs done, and with the current partitions.
    """
    settings, source = load_settings(), source_of(hours[0])
    job = build_defs(settings).resolve_job_def(name_at(TRAJECTORY_JOB, source))
    failures: dict[str, str] = {}
    ranges = contiguous(hours, settings.dagster.backfill_batch)
    capture = [name for name in assets if name not in _LATER]
    later = [name for name in assets if name in _LATER]
    judge_later = len(ranges) > 1 and capture != list(assets)
    queue: deque[tuple[datetime, datetime, list[str]]] = deque()
    if capture or not judge_later:
        queue.extend((first, last, capture if judge_later else list(assets)) for first, last in ranges)
    to_judge: list[datetime] = [] if capture else list(hours)
    current = ""
    tags = {"trajectory/reason": "command", **({ACCEPT_DELETIONS_TAG: "true"} if accept_deletions else {})}

    def report(done: int) -> None:
        progress(done, current)

    with dg.DagsterInstance.get() as instance, _polled_ledger(hours, assets, database, report):
        while queue or (judge_later and to_judge):
            if not queue:
                newest_first = reversed(contiguous(sorted(to_judge), settings.dagster.backfill_batch))
                queue.extend((first, last, later) for first, last in newest_first)
                to_judge = []
            first, last, selection = queue.popleft()
            single = first == last
            current = partition_key(first) if single else f"{partition_key(first)} … {partition_key(last)}"
            run = job.execute_in_process(
                instance=instance,
                partition_key=partition_key(first) if single else None,
                tags=tags if single else {**tags, **range_tags(first, last)},
                asset_selection=[asset_key(name, source) for name in selection],
                raise_on_error=False,
                run_config=_QUIET,
            )
            succeeded, remaining = [hour for hour in hours if first <= hour <= last], list[str]()
            if not run.success:
                failures[run.run_id] = _failure_reason(run)
                succeeded, remaining = _continuation(run, instance, selection)
                if remaining:
                    batches = reversed(contiguous(succeeded, settings.dagster.backfill_batch))
                    queue.extendleft((*batch, remaining) for batch in batches)
            if judge_later and not remaining and selection == capture:
                to_judge += succeeded
    return failures


def run_job(name: str) -> dg.ExecuteInProcessResult:
    """Run a job without partitions.

    Raises:
        PipelineError: it failed; the text says why.
    """
    job = build_defs(load_settings()).resolve_job_def(name)
    with dg.DagsterInstance.get() as instance:
        run = job.execute_in_process(instance=instance, raise_on_error=False, run_config=_QUIET)
    if not run.success:
        raise PipelineError(f"{name} failed: {_failure_reason(run)}")
    return run


def _failure_reason(run: dg.ExecuteInProcessResult) -> str:
    for event in run.get_step_failure_events():
        failure = event.step_failure_data
        user_text = failure.user_failure_data.description if failure.user_failure_data else None
        text = user_text or (failure.error.message if failure.error else "")
        return f"{event.step_key}: {' '.join(text.split())}"
    return "the Dagster run failed: open it in the UI"


def _continuation(
    run: dg.ExecuteInProcessResult, instance: dg.DagsterInstance, selection: Sequence[str]
) -> tuple[list[datetime], list[str]]:
    """Return the partitions that the failed asset did materialize, and the assets downstream that were not run.

    Both are empty if a blocking check failed: it is meant to stop what is downstream.
    """
    # A step of another source's asset has the source's name before it: ``laptop__terminal_runs``.
    failed_steps = {str(event.step_key).rpartition("__")[2] for event in run.get_step_failure_events()}
    failed = next((name for name in selection if name in failed_steps), None)
    blocked = any(not check.passed and check.blocking for check in run.get_asset_check_evaluations())
    if failed is None or blocked:
        return [], []
    materialized = [
        parse_partition_key(entry.dagster_event.partition)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        if entry.dagster_event and entry.dagster_event.partition and str(entry.step_key).rpartition("__")[2] == failed
    ]
    return sorted(materialized), list(selection[selection.index(failed) + 1 :])


@contextlib.contextmanager
def _polled_ledger(
    hours: Sequence[datetime], assets: Sequence[str], database: TrajectoryDatabase, report: Callable[[int], None]
) -> Iterator[None]:
    """Report from a thread how many ledger entries were written since the start of the block.

    A run in this process reports the partitions of a range to Dagster only at its end.
    """
    # By the database's clock, which also writes the ledger's times.
    started = database.now()
    keys = [partition_key(hour) for hour in hours]
    ended = threading.Event()

    def count() -> None:
        # Only a display: if the database fails, the materialization itself reports it.
        with contextlib.suppress(PipelineError):
            report(count_entries_since(database, started, assets, keys))

    def poll() -> None:
        while not ended.wait(_POLL_SECONDS):
            count()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        count()
