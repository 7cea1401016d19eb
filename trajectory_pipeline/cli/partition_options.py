"""The options that select partitions: ``--partition``, or ``--from`` and ``--to``."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from trajectory_pipeline.defs.partitions import existing_hours
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import LETTA, at_source, hours_between, parse_partition_key, parse_timestamp
from trajectory_pipeline.settings import load_settings

_LONGEST_RANGE = timedelta(days=366 * 20)


def partition_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, as parameters ``key``, ``start``, ``end`` and ``source``."""
    for option in (
        click.option(
            "--source",
            default=LETTA,
            metavar="NAME",
            help="Whose hours the range names. Default: the Letta database's.",
        ),
        click.option("--to", "end", metavar="TIME", help="End of the range, exclusive."),
        click.option("--from", "start", metavar="TIME", help="Start of the range; every hour it touches is included."),
        click.option(
            "--partition",
            "key",
            metavar="KEY",
            help="One partition, for example 2026-11-21-09:00, or 2026-11-21-09:00~laptop of a source named laptop.",
        ),
    ):
        command = option(command)
    return command


def selected_hours(key: str | None, start: str | None, end: str | None, source: str) -> list[datetime]:
    """Return the hours that the options select, in order.

    Raises:
        PipelineError: they contradict each other, are malformed, or select an hour that is no partition.
    """
    if key is not None and (start is not None or end is not None):
        raise PipelineError("Give either --partition or --from and --to, not both.")
    if key is not None:
        hours = [parse_partition_key(key)]
    elif start is not None and end is not None:
        first, last = parse_timestamp(start), parse_timestamp(end)
        if last - first > _LONGEST_RANGE:
            raise PipelineError("The range is longer than twenty years: check --from and --to.")
        try:
            hours = [at_source(hour, source) for hour in hours_between(first, last)]
        except OverflowError:
            raise PipelineError(f"--to is {end!r}, which is after the last supported year: check --to.") from None
    else:
        raise PipelineError("Select partitions with --partition KEY, or with --from TIME --to TIME.")
    return existing_hours(hours, load_settings().capture.start, datetime.now(UTC))
