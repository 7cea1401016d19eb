"""The command ``explain``.

Belongs here: which settings, databases and policy it looks through. Does not belong here: layout (``explaining``).
"""

import json
from dataclasses import replace

import click

from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.materialize import trajectory_row
from trajectory_pipeline.cli.render_explanation import render_explanation
from trajectory_pipeline.databases import resolve_databases
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.explain_verdict import explain_verdict
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

_SOURCE_SECONDS = 30


def explain_run(run_id: str, *, as_json: bool) -> None:
    """Print how a run came to its verdict.

    Raises:
        PipelineError: there is no trajectory of that run, or a sink cannot be read; the text says what to do.
    """
    settings = load_settings()
    endpoints = resolve_databases(settings)
    database = TrajectoryDatabase(endpoints.database_url)
    row = trajectory_row(database, run_id)
    resource = PipelineResource(settings)
    told = explain_verdict(
        row,
        database=database,
        store=ParquetStore(settings.storage.parquet_location),
        source=replace(LettaSource(endpoints.letta_url), timeout_seconds=_SOURCE_SECONDS),
        policy=None if settings.judge.disabled_reason else resource.policy,
        redaction_key=resource.redaction_key,
    )
    if as_json:
        click.echo(json.dumps(told, default=str, ensure_ascii=False, indent=2))
    else:
        out.print(render_explanation(told, row["data"]), soft_wrap=False)
