"""The command ``explain``.

Belongs here: which settings, databases and policy it looks through. Does not belong here: layout (``explaining``).
"""

import json
from dataclasses import replace

import click

from trajectory_pipeline.cli.explaining import explained
from trajectory_pipeline.cli.headless import trajectory_row
from trajectory_pipeline.cli.terminal import out
from trajectory_pipeline.endpoints import resolve
from trajectory_pipeline.letta.source import LettaSource
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.sinks.database import TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore
from trajectory_pipeline.stages.explanation import explanation

_SOURCE_SECONDS = 30


def explain_run(run_id: str, *, as_json: bool) -> None:
    """Print how a run came to its verdict.

    Raises:
        PipelineError: there is no trajectory of that run, or a sink cannot be read; the text says what to do.
    """
    settings = load_settings()
    endpoints = resolve(settings)
    database = TrajectoryDatabase(endpoints.database_url)
    row = trajectory_row(database, run_id)
    resource = PipelineResource(settings)
    told = explanation(
        row,
        database=database,
        store=ParquetStore(settings.storage),
        source=replace(LettaSource(endpoints.letta_url), timeout_seconds=_SOURCE_SECONDS),
        policy=None if settings.judge_missing else resource.policy,
        redaction_key=resource.redaction_key,
    )
    if as_json:
        click.echo(json.dumps(told, default=str, ensure_ascii=False, indent=2))
    else:
        out.print(explained(told, row["data"]), soft_wrap=False)
