"""The command ``erase``: erases content that was deleted at the source."""

import sys

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.maintenance.erase_deleted import erase_partition, partitions_to_erase
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.postgres.export_registry import stale_exports
from trajectory_pipeline.text import pluralize


@click.command("erase")
@click.option("--dry-run", is_flag=True, help="Only list the partitions that hold content deleted at the source.")
def command(*, dry_run: bool) -> None:
    """Erase content now that was deleted at the source and is still in the sinks.

    Requires TRAJECTORY_DELETED_CONTENT=erase; does not read the source. The capture sensor requests the same by itself.

    \b
    Exit code 0  everything due is erased, or would be
              1  some partitions failed
              2  a setting is wrong, or a sink cannot be reached
    """  # noqa: D301 - \b keeps click from rewrapping the text
    if load_settings().capture.deleted_content != "erase":
        raise PipelineError(
            "TRAJECTORY_DELETED_CONTENT is not erase: what is erased now would be captured again. Set"
            " TRAJECTORY_DELETED_CONTENT=erase, also where Dagster runs."
        )
    opened = open_sinks()
    due = partitions_to_erase(opened.storage.postgres)
    failed = False
    for key, runs in due.items():
        line = f"{key}  {pluralize(runs, 'run')} with content deleted at the source"
        if dry_run:
            out.print(line)
            continue
        try:
            result = erase_partition(parse_partition_key(key), opened.storage)
        except PipelineError as error:
            failed = True
            err.print(f"{key}: {error}", style="red")
        else:
            out.print(f"{line}: erased, with {pluralize(result.erased_verdicts, 'verdict')}")
    done = "Nothing was changed." if dry_run else "Some partitions failed: erase again." if failed else "Done."
    out.print(f"{pluralize(len(due), 'partition')}. {done}")
    for one in stale_exports(opened.storage.postgres):
        err.print(one)
    sys.exit(1 if failed else 0)
