"""The options that say which runs are exported."""

import functools
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from typing import Any

import click

from trajectory_pipeline.partition_keys import parse_timestamp
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.schema.exports import ExportFilters

_OUTCOMES = click.Choice([outcome.value for outcome in Outcome])
_SHARE = click.FloatRange(0, 1)
_OPTIONS = (
    click.option(
        "--outcome", "outcomes", multiple=True, type=_OUTCOMES, help="Of the verdict, else the heuristic one."
    ),
    click.option("--judged", "judged_only", is_flag=True, help="Only runs with a verdict that has an outcome."),
    click.option("--min-confidence", type=_SHARE, help="Of the verdict's outcome."),
    click.option("--min-learning-value", type=_SHARE, help="Of the verdict."),
    click.option("--agent", "agents", multiple=True, help="Id or name."),
    click.option("--tool", "tools", multiple=True, help="That ran in it."),
    click.option("--source", "sources", multiple=True, metavar="NAME", help="From this source; letta is the database."),
    click.option("--from", "completed_from", metavar="TIME", help="First end of a run."),
    click.option("--to", "completed_to", metavar="TIME", help="Last end of a run, exclusive."),
    click.option("--label", "labels", multiple=True, type=_OUTCOMES, help="Outcome that a person gave."),
    click.option("--family", "families", multiple=True, help="Id of a task family."),
)
_NAMES = [field.name for field in fields(ExportFilters)]
_TIMES = ("completed_from", "completed_to")


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as ``filters``."""

    @functools.wraps(command)
    def with_filters(**options: Any) -> Any:
        values = {name: options.pop(name) for name in _NAMES}
        times: dict[str, datetime] = {name: parse_timestamp(values[name]) for name in _TIMES if values[name]}
        return command(filters=ExportFilters(**{**values, **times}), **options)

    for option in reversed(_OPTIONS):
        with_filters = option(with_filters)
    return with_filters
