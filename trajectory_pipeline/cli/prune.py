"""The command ``prune``: deletes partitions older than the retention settings."""

import sys

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.defs.jobs.retention import retention_of
from trajectory_pipeline.defs.sensors.run_requests import utc_now
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.maintenance.retention import find_expired_partitions, prune_expired
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.parquet.cleanup import FileTotals
from trajectory_pipeline.text import pluralize


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only list what is old enough: partitions, rows, files, bytes.")
def command(*, dry_run: bool) -> None:
    """Delete from both sinks now what is older than TRAJECTORY_RETENTION_DAYS or TRAJECTORY_RAW_RETENTION_DAYS.

    Requires at least one of them; does not read the source. A daily schedule does the same. A pruned partition comes
    back only if it is materialized explicitly, until the next prune.

    \b
    Exit code 0  everything old enough is deleted, or would be
              1  some partitions failed
              2  no age is set, or a sink cannot be reached
    """  # noqa: D301 - \b keeps click from rewrapping the text
    retention = retention_of(load_settings())
    opened = open_sinks()
    rows, files, failed = 0, FileTotals(), False
    due = find_expired_partitions(opened.storage, retention, utc_now())
    for expired, removed in zip(due, due, strict=True) if dry_run else prune_expired(opened.storage, due):
        name = f"{expired.partition_key}  {expired.target}"
        if isinstance(removed, PipelineError):
            failed = True
            err.print(f"{name}: {removed}", style="red")
            continue
        if removed.skip_reason:
            out.print(f"{name}: old enough, but not deleted: {removed.skip_reason}")
            continue
        rows, files = rows + removed.rows, files + removed.files
        out.print(f"{name}: {_totals(removed.rows, removed.files)}")
    done = "Nothing was changed." if dry_run else "Some partitions failed: prune again." if failed else "Deleted."
    partitions = pluralize(len({expired.partition_key for expired in due}), "partition")
    out.print(f"{partitions}, {_totals(rows, files)}. {done}")
    sys.exit(1 if failed else 0)


def _totals(rows: int, files: FileTotals) -> str:
    return f"{pluralize(rows, 'row')}, {pluralize(files.count, 'file')} of {pluralize(files.bytes, 'byte')}"
