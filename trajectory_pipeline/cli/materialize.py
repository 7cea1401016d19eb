"""The command ``materialize``: materializes partitions without the UI."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import click

from trajectory_pipeline.cli.connections import Connections, open_connections
from trajectory_pipeline.cli.console import err, out, progress_bar
from trajectory_pipeline.cli.dagster_processes import dagster_home, prepare_storage
from trajectory_pipeline.cli.partition_options import partition_options, selected_hours
from trajectory_pipeline.cli.run_materialization import materialize
from trajectory_pipeline.defs.asset_keys import ASSETS
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key, source_of
from trajectory_pipeline.pipeline.stale_partitions import ChangeKind, PlannedChange, plan_capture, plan_rebuild
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.summaries import (
    count_trajectories,
    example_run,
    quarantined_runs,
    verdict_counts,
)
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres

_PLANNED = {
    "new": "would be captured",
    "changed": "would be captured again",
    "unchanged": "would be read and found unchanged",
    "empty": "has no runs",
    "rebuilt": "would be rebuilt from its raw rows, without the source",
    "impossible": "has no raw rows: materialize terminal_runs first",
}


@click.command("materialize")
@click.option(
    "--select",
    "selected",
    multiple=True,
    type=click.Choice(ASSETS),
    help="An asset; repeat for more. Default: all that can be materialized.",
)
@partition_options
@click.option("--dry-run", is_flag=True, help="Only print what would be done to each partition.")
@click.option(
    "--accept-deletions",
    is_flag=True,
    help="You have looked: the source is the right one, and what it lacks was deleted there, however much it is.",
)
def command(
    selected: tuple[str, ...],
    key: str | None,
    start: str | None,
    end: str | None,
    source: str,
    *,
    dry_run: bool,
    accept_deletions: bool,
) -> None:
    """Materialize partitions without the UI; the runs still show in it.

    A range is half-open. A time without an offset is UTC. Runs in this process, in Dagster's own instance.

    \b
    Exit code 0  done (quarantined runs and failed verdicts are reported)
              1  a partition failed
              2  bad input; nothing was started

    \b
    Examples:
      trajectory-pipeline materialize --partition 2026-11-21-09:00
      trajectory-pipeline materialize --from 2026-11-20 --to 2026-11-21T12:00 --select trajectories
      trajectory-pipeline materialize --source laptop --from 2026-11-20 --to 2026-11-21
    """  # noqa: D301 - \b keeps click from rewrapping the text
    hours = selected_hours(key, start, end, source)
    if dry_run:
        sys.exit(_dry_run(selected, hours))
    sys.exit(_materialize(selected, hours, accept_deletions=accept_deletions))


def _materialize(selected: Sequence[str], hours: Sequence[datetime], *, accept_deletions: bool) -> int:
    opened = open_connections()
    assets = [name for name in ASSETS if name in selected] or list(ASSETS)
    reason = opened.settings.judge.disabled_reason
    if reason and "refined_outcomes" in assets:
        if selected:
            raise PipelineError(reason)
        err.print(f"Skipping refined_outcomes. {reason}")
        assets.remove("refined_outcomes")
    _check_connections(opened, source_of(hours[0]) if "terminal_runs" in assets else None)
    with progress_bar("Materializing", total=len(hours) * len(assets)) as progress:
        failures = materialize(hours, assets, opened.storage.postgres, progress, accept_deletions=accept_deletions)
    _report(opened.storage.postgres, hours, assets)
    for run_id, reason in failures.items():
        err.print("Failed", style="red", end=" ")
        err.print(f"(Dagster run {run_id}): {reason}")
    return 1 if failures else 0


def _check_connections(opened: Connections, source: str | None) -> None:
    """Connect to everything that is needed, so that a wrong setting is reported before a Dagster run starts."""
    if source is not None:
        with opened.source_named(source).snapshot():
            pass
    with opened.storage.postgres.connect():
        pass
    os.environ.update(opened.databases.environment())
    prepare_storage(dagster_home(opened.settings.storage.data_folder), os.environ["DAGSTER_PG_URL"])


def _report(database: TrajectoryDatabase, hours: Sequence[datetime], assets: Sequence[str]) -> None:
    keys = [partition_key(hour) for hour in hours]
    trajectories = pluralize(count_trajectories(database, keys), "trajectory", "trajectories")
    out.print(f"{pluralize(len(hours), 'partition')}: {trajectories} in {describe_postgres(database.url)}.")
    if run_id := example_run(database, keys):
        out.print(f"Look at one: trajectory-pipeline show {run_id}")
    for run in quarantined_runs(database, keys):
        out.print(f"Quarantined: {run.run_id}: {run.json_path} {run.error}")
    if "refined_outcomes" in assets:
        verdicts = verdict_counts(database, keys)
        counts = ", ".join(f"{each.trajectories} {each.status} {each.error_class}".strip() for each in verdicts)
        out.print(f"Verdicts: {counts or 'none'}.")


def _dry_run(selected: Sequence[str], hours: Sequence[datetime]) -> int:
    opened = open_connections()
    if not selected or "terminal_runs" in selected:
        planned = plan_capture(
            hours, opened.source_named(source_of(hours[0])), opened.storage, opened.settings.capture.deleted_content
        )
    else:
        planned = plan_rebuild(hours, opened.storage.parquet)
    for change in planned:
        if change.what != ChangeKind.EMPTY:
            out.print(f"{change.partition_key}  {_PLANNED[change.what]}{_changed_runs(change)}")
    counts = Counter(change.what for change in planned)
    totals = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    out.print(f"{pluralize(len(planned), 'partition')}: {totals}. Nothing was changed.")
    return 1 if counts[ChangeKind.IMPOSSIBLE] else 0


def _changed_runs(change: PlannedChange) -> str:
    parts = []
    if change.new_runs:
        parts.append(f"{pluralize(change.new_runs, 'new run')}")
    if change.deleted_runs:
        parts.append(f"{pluralize(change.deleted_runs, 'run')} deleted at the source")
    return f" ({', '.join(parts)})" if parts else ""
