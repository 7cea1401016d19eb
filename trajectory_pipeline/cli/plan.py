"""The command ``plan``: estimates what judging partitions would ask and cost."""

import json
from datetime import UTC, datetime, timedelta

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.partition_options import partition_options, selected_hours
from trajectory_pipeline.partition_keys import at_source, floor_to_hour, hours_between
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.judge import JudgingRun


@click.command("plan")
@partition_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with amounts of money as strings.")
def command(key: str | None, start: str | None, end: str | None, source: str, *, as_json: bool) -> None:
    """Estimate what judging partitions would ask and cost, and what the caps would defer.

    Calls no judge and writes nothing: it renders and measures the transcripts. Without a range, it takes the days of
    TRAJECTORY_JUDGE_LOOKBACK_DAYS, as the refinement sensor does.

    \b
    Examples:
      trajectory-pipeline plan
      trajectory-pipeline plan --from 2026-11-20 --to 2026-11-21 --json
    """  # noqa: D301 - \b keeps click from rewrapping the text
    opened, now = open_sinks(), datetime.now(UTC)
    settings = opened.settings
    lookback = timedelta(days=settings.judge.lookback_days)
    if key is start is end is None:
        recent = hours_between(max(floor_to_hour(settings.capture.start), now - lookback), now)
        hours = [at_source(hour, source) for hour in recent]
    else:
        hours = selected_hours(key, start, end, source)
    config = judge_config(settings.judge, settings.privacy, settings.budget)
    estimate = JudgingRun(opened.storage, config, settings.judge.order, mode=settings.judge.mode).estimate(
        hours, lookback
    )
    if as_json:
        out.print_json(json.dumps(estimate.as_json()))
        return
    for sentence in estimate.sentences():
        out.print(sentence)
