"""The command ``check``: compares the whole history on all sides."""

import sys

import click

from trajectory_pipeline.cli.connections import Connections, open_connections
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.source_protocol import Source
from trajectory_pipeline.text import pluralize


@click.command("check")
def command() -> None:
    """Compare the whole history: source, ledger, Postgres and Parquet, partition by partition.

    \b
    Exit code 0  no difference
              1  there are differences; each is listed
              2  a setting is wrong, or a database or storage cannot be reached
    """  # noqa: D301 - \b keeps click from rewrapping the text
    opened = open_connections()
    sources: list[Source] = [*([opened.source] if opened.has_letta() else ()), *opened.others()]
    differences = sum(_print_report(source, opened) for source in sources)
    sys.exit(1 if differences else 0)


def _print_report(source: Source, opened: Connections) -> int:
    """Print what differs of one source, and return in how many places."""
    report = check_completeness(source, opened.storage, CompletenessScope.from_settings(opened.settings))
    for difference in report.differences:
        out.print(f"✗ {difference}")
    for run in report.stuck:
        hours = run.age.total_seconds() / 3600
        out.print(f"• {run.run_id} has been {run.status} for {hours:.0f} hours; it is captured when it ends")
    for name, when, run_ids in (
        ("after_now", "ended in the future", report.misdated.after_now),
        ("without_time", "has no time at which it ended", report.misdated.without_time),
    ):
        for run_id in run_ids:
            out.print(f"• {name}: {run_id} {when}, so no partition takes it: correct completed_at at the source")
    if report.before_start:
        verb = "is" if report.before_start == 1 else "are"
        out.print(
            f"• {pluralize(report.before_start, 'terminal run')} {verb} before the first partition: set"
            " TRAJECTORY_START to an earlier hour to capture them"
        )
    result = pluralize(len(report.differences), "difference") if report.differences else "no differences"
    of = "" if source.name == LETTA else f"{source.name}: "
    out.print(
        f"{of}{pluralize(report.partitions, 'partition')}, {pluralize(report.runs, 'run')} at the source: {result}."
    )
    return len(report.differences)
