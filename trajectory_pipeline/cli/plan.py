"""The command ``plan``: what judging would ask, take and leave undone.

Belongs here: what is printed. Does not belong here: arguments (``main``), and the plan itself
(``pipeline.judging_estimate``).
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trajectory_pipeline.cli.console import out
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.pipeline.judging_estimate import estimate_judging
from trajectory_pipeline.settings import load_settings


def show_plan(hours: Sequence[datetime], *, as_json: bool) -> None:
    """Print what judging these partitions would do; asks no judge, writes nothing.

    Raises:
        PipelineError: there is no judge, or a sink cannot be read.
    """
    settings = load_settings()
    pipeline = PipelineResource(settings)
    plan = estimate_judging(
        hours,
        pipeline.store,
        pipeline.database,
        pipeline.judge,
        pipeline.policy,
        pipeline.budget,
        now=datetime.now(UTC),
        horizon=timedelta(days=settings.judge.lookback_days),
        order=settings.judge.order,
        access=pipeline.access,
    )
    if as_json:
        out.print_json(json.dumps(plan.as_json()))
        return
    for sentence in plan.sentences():
        out.print(sentence, markup=False, soft_wrap=True)
