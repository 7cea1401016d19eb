"""The options that say which runs are exported."""

import functools
import math
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from typing import Any

import click

from trajectory_pipeline.cli.filter_options import COMPLETED_FROM, COMPLETED_TO, option_names
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import parse_timestamp
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.storage.postgres.exports import PassingRuns
from trajectory_pipeline.text import pluralize


class Share(click.FloatRange):
    """A number in a range; what is not a number is in no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


ACROSS_AGENTS = "Pair runs of agents with different system prompts; the prompt has that of the success."
"""Help of an option of both commands that look for pairs."""
_OUTCOMES = click.Choice([outcome.value for outcome in Outcome])
_SHARE = Share(0, 1)
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
    COMPLETED_FROM,
    COMPLETED_TO,
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
        try:
            filters = ExportFilters(**{**values, **times})
        except ValueError as error:
            text, options_of = str(error), option_names(click.get_current_context().command)
            for name in _TIMES:
                text = text.replace(name, options_of[name])
            raise PipelineError(f"{text}.") from None
        return command(filters=filters, **options)

    for option in reversed(_OPTIONS):
        with_filters = option(with_filters)
    return with_filters


def describe_passing(passing: PassingRuns) -> str:
    """Return how many runs each option leaves by itself, as a sentence that says which one leaves none."""
    if not passing.runs:
        return (
            "The database holds no run: materialize trajectories first, or name another database in"
            " TRAJECTORY_DATABASE_URL, or another folder in TRAJECTORY_DATA_FOLDER."
        )
    options = option_names(click.get_current_context().command)
    counts = ", ".join(
        f"{runs} {_as_given(options[name], value)}" for (name, value), runs in passing.by_condition.items()
    )
    return f"Of {pluralize(passing.runs, 'run')}, each by itself leaves: {counts}."


def _as_given(option: str, value: Any) -> str:
    if value is True:
        return option
    return f"{option} {value.isoformat() if isinstance(value, datetime) else value}"
