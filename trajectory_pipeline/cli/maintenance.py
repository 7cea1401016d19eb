"""The commands that look after what was captured: what would be done, whether all is equal, erasing, pruning.

Belongs here: their words on a terminal. Does not belong here: the work (``stages``), and arguments (``main``).
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.dry_run import PlannedChange, plan_capture, plan_rebuild
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.storage.parquet.cleanup import FileTotals
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.maintenance.retention import ExpiredPartition, PrunedPartition

_WORDS = {
    "new": "would be captured",
    "changed": "would be captured again",
    "unchanged": "would be read and found unchanged",
    "empty": "has no runs",
    "rebuilt": "would be rebuilt from its raw rows, without the source",
    "impossible": "has no raw rows: terminal_runs must be materialised first",
}


def dry_run(selected: Sequence[str], hours: Sequence[datetime]) -> int:
    """Print what materialising would do to each partition; returns the exit code.

    Raises:
        PipelineError: a setting, the source or a sink is not as it must be.
    """
    settings = load_settings()
    endpoints, store, database = _opened(settings)
    if not selected or "terminal_runs" in selected:
        source = LettaSource(endpoints.letta_url, settings.source.timeout_seconds)
        planned = plan_capture(hours, source, store, database, settings.capture.deleted_content)
    else:
        planned = plan_rebuild(hours, store)
    for partition in planned:
        if partition.what != "empty":
            out.print(f"{partition.partition_key}  {_WORDS[partition.what]}{_more(partition)}", markup=False)
    counts = Counter(partition.what for partition in planned)
    out.print(f"{pluralize(len(planned), 'partition')}: {_listed(counts)}. Nothing was done.", markup=False)
    return 1 if counts["impossible"] else 0


def _more(partition: PlannedChange) -> str:
    parts = [
        f"{pluralize(partition.new_runs, 'run')} new" if partition.new_runs else "",
        f"{pluralize(partition.deleted_runs, 'run')} deleted at the source" if partition.deleted_runs else "",
    ]
    words = ", ".join(filter(None, parts))
    return f" ({words})" if words else ""


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))


def check() -> int:
    """Compare the whole history and print what differs; returns the exit code.

    Raises:
        PipelineError: a setting, the source or a sink is not as it must be.
    """
    from trajectory_pipeline.maintenance.completeness import check_completeness

    settings = load_settings()
    endpoints, store, database = _opened(settings)
    found = check_completeness(
        LettaSource(endpoints.letta_url, settings.source.timeout_seconds),
        store,
        database,
        start=settings.capture.start,
        stuck_after=timedelta(hours=settings.source.stuck_hours),
        deleted=settings.capture.deleted_content,
        closing_lag=timedelta(minutes=settings.capture.closing_lag_minutes),
    )
    for difference in found.differences:
        out.print(f"✗ {difference}", markup=False)
    for run in found.stuck:
        hours = run.age.total_seconds() / 3600
        out.print(
            f"• {run.run_id} is {run.status} for {hours:.0f} hours, and not captured before it ends", markup=False
        )
    if found.before_start:
        words = "lies" if found.before_start == 1 else "lie"
        out.print(
            f"• {pluralize(found.before_start, 'terminal run')} {words} before the first partition: set"
            " TRAJECTORY_START"
            " to an earlier hour to capture them",
            markup=False,
        )
    verdict = "equal on all sides" if not found.differences else pluralize(len(found.differences), "difference")
    out.print(
        f"{pluralize(found.partitions, 'partition')}, {pluralize(found.runs, 'run')} at the source: {verdict}.",
        markup=False,
    )
    return 1 if found.differences else 0


def erase(*, only_say: bool) -> int:
    """Erase at once what was kept of deleted content, without the source; returns the exit code.

    Raises:
        PipelineError: the policy is not to erase, or a sink is not as it must be.
    """
    from trajectory_pipeline.maintenance.erase_deleted import erase_partition, partitions_to_erase

    settings = load_settings()
    if settings.capture.deleted_content != "erase":
        raise PipelineError(
            "TRAJECTORY_DELETED_CONTENT is not erase: what is erased now would be captured again. Set"
            " TRAJECTORY_DELETED_CONTENT=erase,"
            " also where Dagster runs."
        )
    _, store, database = _opened(settings)
    due = partitions_to_erase(database)
    failed = False
    for key, runs in due.items():
        words = f"{key}  {pluralize(runs, 'run')} with content that is deleted at the source"
        if only_say:
            out.print(words, markup=False)
            continue
        try:
            result = erase_partition(parse_partition_key(key), store, database)
        except PipelineError as error:
            failed = True
            err.print(f"{key}: {error}", markup=False, style="red")
        else:
            out.print(f"{words}: erased, and {pluralize(result.erased_verdicts, 'verdict')} with it", markup=False)
    done = "Nothing was done." if only_say else "Done." if not failed else "Some partitions failed: erase again."
    out.print(f"{pluralize(len(due), 'partition')}. {done}", markup=False)
    return 1 if failed else 0


def prune(*, only_say: bool) -> int:
    """Remove at once what is older than the set ages from both sinks; returns the exit code.

    Raises:
        PipelineError: no age is set, or a sink is not as it must be.
    """
    from trajectory_pipeline.defs.retention import retention_of
    from trajectory_pipeline.maintenance.retention import find_expired_partitions, prune_partition

    settings = load_settings()
    retention = retention_of(settings)
    _, store, database = _opened(settings)
    rows, files, failed = 0, FileTotals(), False
    due = find_expired_partitions(store, database, retention, utc_now())
    for each in due:
        name = f"{each.partition_key}  {each.part}"
        try:
            gone: ExpiredPartition | PrunedPartition = (
                each
                if only_say
                else prune_partition(each.part, parse_partition_key(each.partition_key), store, database)
            )
        except PipelineError as error:
            failed = True
            err.print(f"{name}: {error}", markup=False, style="red")
            continue
        if gone.held_back:
            out.print(f"{name}: kept although it is old enough: {gone.held_back}", markup=False)
            continue
        rows, files = rows + gone.rows, files + gone.files
        out.print(f"{name}: {_of_files(gone.rows, gone.files)}", markup=False)
    done = "Nothing was done." if only_say else "Removed." if not failed else "Some partitions failed: prune again."
    out.print(f"{pluralize(len({each.partition_key for each in due}), 'partition')}", end=", ", markup=False)
    out.print(f"{_of_files(rows, files)}. {done}", markup=False)
    return 1 if failed else 0


def _of_files(rows: int, files: FileTotals) -> str:
    return f"{pluralize(rows, 'row')}, {pluralize(files.count, 'file')} of {pluralize(files.bytes, 'byte')}"


def _opened(settings: Settings) -> tuple[Databases, ParquetStore, TrajectoryDatabase]:
    endpoints = resolve_databases(settings)
    return endpoints, ParquetStore(settings.storage.parquet_location), TrajectoryDatabase(endpoints.database_url)
