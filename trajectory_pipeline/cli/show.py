"""The command ``show``: prints a trajectory."""

from collections.abc import Mapping
from typing import Any

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.render_trajectory import render_trajectory
from trajectory_pipeline.conversion.message_parts import tools_by_call
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.summaries import continuing_runs, outcome_of_run
from trajectory_pipeline.urls import describe_postgres


@click.command("show")
@click.argument("run_id")
def command(run_id: str) -> None:
    """Show the trajectory of a run: turns, tools, errors, outcome and verdict."""
    database = open_sinks().storage.postgres
    row = trajectory_row(database, run_id)
    verdict = outcome_of_run(database, run_id)
    links, asked = chain_of(database, row)
    out.print(render_trajectory(row, verdict, links, asked), soft_wrap=False)


def chain_of(database: TrajectoryDatabase, row: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the runs before and after a run in its chain, and the tools that the one before called, by call id."""
    continued = row["continues_run_id"]
    links = {"continues": [continued] if continued else [], "continued by": continuing_runs(database, row["run_id"])}
    asking = database.trajectory(continued) if continued else None
    return links, tools_by_call(asking["data"]) if asking and asking["data"] else {}


def trajectory_row(database: TrajectoryDatabase, run_id: str) -> dict[str, Any]:
    """Return a run's row of ``trajectory.trajectories``.

    Raises:
        PipelineError: there is none; the text says why, or what to check.
    """
    row = database.trajectory(run_id)
    if row is not None:
        return row
    quarantined = database.quarantined(run_id)
    if quarantined is not None:
        raise PipelineError(
            f"{run_id} has been in quarantine since {quarantined['first_seen_at']:%Y-%m-%d %H:%M} UTC:"
            f" {quarantined['json_path']} {quarantined['error']}."
        )
    raise PipelineError(
        f"There is no trajectory of {run_id!r} in {describe_postgres(database.url)}: check the id (it begins with"
        " 'run-'), or materialize the hour in which the run ended."
    )
