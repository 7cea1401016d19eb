"""The command ``report``: makes the report as one HTML file."""

from datetime import datetime
from pathlib import Path

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out, step
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, parse_timestamp


@click.command("report")
@click.option("--from", "start", metavar="TIME", help="Start of the range. Default: the first run.")
@click.option("--to", "end", metavar="TIME", help="End of the range, exclusive. Default: the last run.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="HTML file. Default: in the storage.")
def command(start: str | None, end: str | None, output: Path | None) -> None:
    """Make the report: how runs ended, what they achieved, what they cost, and where they fail.

    One HTML file that needs no network. Without --output, it is written to the storage as
    trajectory_report/report.html, with its tables as Parquet. Secrets are replaced as for the judge.
    """
    from trajectory_pipeline.report.publish import make_report, publish_report
    from trajectory_pipeline.storage.artifacts import write_file

    first, after_last = start and _hour(start), end and _hour(end, up=True)
    if first and after_last and first >= after_last:
        raise PipelineError(f"--from ({start}) must be before --to ({end}).")
    opened = open_sinks()
    database, privacy = opened.storage.postgres, opened.settings.privacy
    with step("Report"):
        key = privacy.configured_redaction_key
        report = make_report(
            database, privacy.redaction, key, first or None, after_last or None, opened.settings.quality
        )
        if output is None:
            location = publish_report(opened.storage.parquet, report).uri
        else:
            try:
                write_file(output, report.html.encode())
            except OSError as error:
                raise PipelineError(f"{output} cannot be written: {error.strerror}. Name another file.") from error
            location = str(output)
    (totals,) = report.tables["totals"]
    out.print(f"{totals['runs']} runs, {totals['judged']} judged: {location}")


def _hour(text: str, *, up: bool = False) -> datetime:
    moment = parse_timestamp(text)
    hour = floor_to_hour(moment)
    return hour + HOUR if up and hour < moment else hour
