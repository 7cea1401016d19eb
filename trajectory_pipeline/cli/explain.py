"""The command ``explain``: shows how a run came to its verdict."""

import json
from dataclasses import replace

import click

from trajectory_pipeline.cli.connections import open_connections
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.render_explanation import render_explanation
from trajectory_pipeline.cli.show import trajectory_row
from trajectory_pipeline.maintenance.explain_verdict import explain_verdict
from trajectory_pipeline.pipeline.configured_models import judge_config

_SOURCE_TIMEOUT_SECONDS = 30


@click.command("explain")
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="Print the whole explanation as JSON.")
def command(run_id: str, *, as_json: bool) -> None:
    """Explain how a run came to its verdict: rows, trajectory, prompt, the judge's response, and checks."""
    opened = open_connections()
    source = opened.settings.source.model_copy(update={"timeout_seconds": _SOURCE_TIMEOUT_SECONDS})
    settings = opened.settings.model_copy(update={"source": source})
    opened = replace(opened, settings=settings)
    row = trajectory_row(opened.storage.postgres, run_id)
    explanation = explain_verdict(
        row,
        storage=opened.storage,
        find_source=opened.source_named,
        policy=None
        if settings.judge.disabled_reason
        else judge_config(settings.judge, settings.privacy, settings.budget).policy,
        redaction_key=settings.privacy.configured_redaction_key,
    )
    if as_json:
        click.echo(json.dumps(explanation, default=str, ensure_ascii=False, indent=2))
    else:
        out.print(render_explanation(explanation, row["data"]), soft_wrap=False)
