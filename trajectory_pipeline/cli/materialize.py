"""The commands that work on the sinks without the UI.

Belongs here: ``materialize`` and ``show``, with what they print. Does not belong here: arguments (``main``).
"""

import os
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.cli.dagster_processes import dagster_home, prepare_storage
from trajectory_pipeline.cli.demo import bar
from trajectory_pipeline.cli.render_trajectory import render_trajectory
from trajectory_pipeline.cli.run_materialization import ASSETS, materialize
from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres


def run(selected: Sequence[str], hours: Sequence[datetime]) -> int:
    """Materialise; returns the exit code.

    Args:
        selected: assets; none means all that can be materialised.
        hours: sorted, all of them partitions.

    Raises:
        PipelineError: a setting, the source or a sink is not as it must be; nothing was begun.
    """
    settings = load_settings()
    assets = [name for name in ASSETS if name in selected] or list(ASSETS)
    if settings.judge.disabled_reason and "refined_outcomes" in assets:
        if selected:
            raise PipelineError(settings.judge.disabled_reason)
        err.print(f"refined_outcomes is left out. {settings.judge.disabled_reason}")
        assets.remove("refined_outcomes")
    endpoints = _ready(settings, needs_source="terminal_runs" in assets)
    database = TrajectoryDatabase(endpoints.database_url)
    with bar() as progress:
        task = progress.add_task("Materialising", total=len(hours) * len(assets))
        result = materialize(
            hours,
            assets,
            database,
            lambda done, words: progress.update(task, completed=done, description=f"Materialising {words}"),
        )
    _report(database, hours, assets)
    for run_id, why in result.failures.items():
        err.print(f"[red]Failed[/red] (Dagster run {run_id}): ", end="")
        err.print(why, markup=False)
    return 1 if result.failures else 0


def _ready(settings: Settings, *, needs_source: bool) -> Databases:
    """Check that all that is needed can be reached, before a Dagster run is begun; returns the databases."""
    endpoints = resolve_databases(settings)
    if needs_source:
        with LettaSource(endpoints.letta_url, settings.source.timeout_seconds).snapshot():
            pass
    with TrajectoryDatabase(endpoints.database_url).connect():
        pass
    os.environ.update(endpoints.environment())
    prepare_storage(dagster_home(settings.storage.data_folder), os.environ["DAGSTER_PG_URL"])
    return endpoints


def _report(database: TrajectoryDatabase, hours: Sequence[datetime], assets: Sequence[str]) -> None:
    keys = [partition_key(hour) for hour in hours]
    done = database.rows("SELECT count(*) AS runs FROM trajectory.trajectories WHERE partition_key = ANY(%s)", [keys])[
        0
    ]["runs"]
    words = f"{pluralize(len(hours), 'partition')}: {pluralize(done, 'trajectory', 'trajectories')}"
    out.print(f"{words} in {describe_postgres(database.url)}.", markup=False)
    quarantined = database.rows(
        "SELECT run_id, json_path, error FROM trajectory.quarantine WHERE partition_key = ANY(%s) ORDER BY 1", [keys]
    )
    for row in quarantined:
        out.print(f"Quarantined: {row['run_id']}: {row['json_path']} {row['error']}", markup=False)
    if "refined_outcomes" in assets:
        verdicts = database.rows(
            "SELECT coalesce(verdict_status, 'none') AS status, coalesce(error_class, '') AS error, count(*) AS number"
            " FROM trajectory.outcomes WHERE partition_key = ANY(%s) GROUP BY 1, 2 ORDER BY 3 DESC",
            [keys],
        )
        words = ", ".join(f"{row['number']} {row['status']} {row['error']}".strip() for row in verdicts)
        out.print(f"Verdicts: {words or 'none'}.", markup=False)


def show_run(run_id: str) -> None:
    """Print a trajectory.

    Raises:
        PipelineError: there is none of that run; the text says where it was looked for, and what to do.
    """
    database = TrajectoryDatabase(resolve_databases(load_settings()).database_url)
    row = trajectory_row(database, run_id)
    verdict = next(iter(database.rows("SELECT * FROM trajectory.outcomes WHERE run_id = %s", [run_id])), None)
    answers = database.rows(
        "SELECT continued_by_run_id AS id FROM trajectory.chains WHERE run_id = %s ORDER BY continued_at", [run_id]
    )
    links = {
        "continues": [row["continues_run_id"]] if row["continues_run_id"] else [],
        "continued by": [answer["id"] for answer in answers],
    }
    out.print(render_trajectory(row, verdict, links), soft_wrap=False)


def trajectory_row(database: TrajectoryDatabase, run_id: str) -> dict[str, Any]:
    """Return a run's row of ``trajectories``.

    Raises:
        PipelineError: there is none; the text says where it was looked for, and what to do.
    """
    row = database.trajectory(run_id)
    if row is None:
        quarantined = database.quarantined(run_id)
        if quarantined is not None:
            raise PipelineError(
                f"{run_id} is in quarantine since {quarantined['first_seen_at']:%Y-%m-%d %H:%M} UTC:"
                f" {quarantined['json_path']} {quarantined['error']}."
            )
        raise PipelineError(
            f"There is no trajectory of {run_id!r} in {describe_postgres(database.url)}: check the id (it begins with"
            " 'run-'), or materialise the hour in which the run ended."
        )
    return row
