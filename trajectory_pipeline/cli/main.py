"""The commands.

Belongs here: arguments, help and exit codes. Does not belong here: what the commands do (the modules beside this one).
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import click

from trajectory_pipeline import __version__
from trajectory_pipeline.errors import PipelineError

ASSETS = ("terminal_runs", "trajectories", "refined_outcomes")

_EXAMPLES = """
\b
Try it, with nothing installed and no key:
  trajectory-pipeline demo

\b
Use it, with a Letta server of yours:
  export LETTA_PG_URI=postgresql://reader:…@letta-db:5432/letta
  export TRAJECTORY_DATABASE_URL=postgresql://me:…@my-db:5432/agents
  trajectory-pipeline migrate
  trajectory-pipeline materialize --from 2026-11-20 --to 2026-11-21
  trajectory-pipeline dev

Settings come from the environment (or a file .env in the working directory); `trajectory-pipeline settings` lists
them.
"""


class _Sentences(click.Group):
    """A group whose commands answer what a person can mend by a sentence, not by a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            _fail(error, 2)


def _fail(error: BaseException, code: int) -> NoReturn:
    from trajectory_pipeline.cli.console import err

    err.print("[red]Error[/red]: ", end="")
    err.print(str(error), markup=False)
    sys.exit(code)


@click.group(cls=_Sentences, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trajectory-pipeline")
def main() -> None:
    """Turn every finished run of a Letta server into a trajectory, and have an LLM judge what came of it."""
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")


@main.command()
@click.option(
    "--once", is_flag=True, help="Do not stay: end when all is done, with exit code 0 only if it is complete."
)
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI; another one if it is taken.")
@click.option("--reset", is_flag=True, help="Begin with nothing: remove what an earlier demonstration left.")
def demo(*, once: bool, port: int, reset: bool) -> None:
    """Show the whole pipeline on this machine: real Letta rows, an embedded Postgres, a simulated judge.

    Makes nothing outside the folder data/demo. Exit code 0: every terminal run of the sample is in both sinks, with a
    verdict or a stated reason for none.
    """
    from trajectory_pipeline.cli.demo import DEMO_FOLDER, run_demo

    if reset:
        _remove(DEMO_FOLDER)
    try:
        complete = run_demo(stay=not once, port=port)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if complete else 1)


@main.command()
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI; another one if it is taken.")
def dev(port: int) -> None:
    """Run the Dagster UI and daemon on this project, after the settings are checked.

    Schedule and sensors run by default where ENABLE_TRAJECTORY_CAPTURE is true; else they are there, stopped.
    """
    from trajectory_pipeline.cli.dev import run_dev

    sys.exit(run_dev(port))


@main.command("load-sample")
@click.option("--url", help="Postgres to load it into. Default: LETTA_PG_URI, else the embedded server.")
@click.option("--create", is_flag=True, help="Create the database if it does not exist.")
def load_sample_command(url: str | None, *, create: bool) -> None:
    """Load the sample, real rows of a Letta 0.16.8 server, into an empty database.

    A database that holds the sample already is left as it is; one that holds other runs is refused.
    """
    from trajectory_pipeline.cli.console import out, step
    from trajectory_pipeline.demo.letta_sample.load import load_sample

    with step("Sample") as tell:
        if url is None:
            from trajectory_pipeline.databases import resolve_databases
            from trajectory_pipeline.settings import load_settings

            url = resolve_databases(load_settings(), tell).letta_url
        counts = load_sample(url, create_database=create, report=tell)
    there = "was there already" if counts.already_loaded else "is loaded"
    out.print(
        f"The sample {there}: {counts.runs} runs ({counts.terminal_runs} terminal) in {counts.partitions} partitions,"
        f" {counts.steps} steps, {counts.messages} messages."
    )


@main.command()
def migrate() -> None:
    """Make the schema `trajectory` in TRAJECTORY_DATABASE_URL, or bring it up to date."""
    from trajectory_pipeline.cli.console import out
    from trajectory_pipeline.databases import resolve_databases
    from trajectory_pipeline.settings import load_settings
    from trajectory_pipeline.storage.postgres.migrate import migrate as run_migrations
    from trajectory_pipeline.urls import describe_postgres

    settings = load_settings()
    url = settings.storage.database_url or resolve_databases(settings).database_url
    before, after = run_migrations(url)
    change = f"is at revision {after}" if before == after else f"went from {before or 'nothing'} to revision {after}"
    out.print(f"The schema trajectory in {describe_postgres(url)} {change}.", markup=False)


@main.command()
@click.option(
    "--select",
    "assets",
    multiple=True,
    type=click.Choice(ASSETS),
    help="An asset; again for more. Default: all that can be materialised.",
)
@click.option("--partition", "key", metavar="KEY", help="One partition, for example 2026-11-21-09:00.")
@click.option("--from", "start", metavar="TIME", help="First moment of a range; every hour touched is included.")
@click.option("--to", "end", metavar="TIME", help="End of the range, itself not included.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done to each partition.")
def materialize(assets: tuple[str, ...], key: str | None, start: str | None, end: str | None, *, dry_run: bool) -> None:
    """Materialise partitions without the UI, which shows them all the same.

    A range is half-open; a time without an offset is UTC. Runs in this process, in Dagster's own instance.

    \b
    Exit code 0  the sinks are true (quarantined runs and failed verdicts are reported)
              1  a partition failed
              2  bad input

    \b
    Examples:
      trajectory-pipeline materialize --partition 2026-11-21-09:00
      trajectory-pipeline materialize --from 2026-11-20 --to 2026-11-21T12:00 --select trajectories
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.cli import maintenance
    from trajectory_pipeline.cli.materialize import run

    hours = _hours(key, start, end)
    sys.exit(maintenance.dry_run(assets, hours) if dry_run else run(assets, hours))


@main.command()
@click.option("--partition", "key", metavar="KEY", help="One partition, for example 2026-11-21-09:00.")
@click.option("--from", "start", metavar="TIME", help="First moment of a range; every hour touched is included.")
@click.option("--to", "end", metavar="TIME", help="End of the range, itself not included.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, money as text.")
def plan(key: str | None, start: str | None, end: str | None, *, as_json: bool) -> None:
    """Say what judging partitions would ask and cost, and what the caps would hold back.

    Asks no judge and writes nothing: transcripts are rendered and measured. Without a range, it takes the days of
    TRAJECTORY_JUDGE_LOOKBACK_DAYS, as the refinement sensor does.

    \b
    Examples:
      trajectory-pipeline plan
      trajectory-pipeline plan --from 2026-11-20 --to 2026-11-21 --json
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.cli.plan import show_plan

    show_plan(_horizon() if key is start is end is None else _hours(key, start, end), as_json=as_json)


def _horizon() -> list[datetime]:
    from trajectory_pipeline.partition_keys import floor_to_hour, hours_between
    from trajectory_pipeline.settings import load_settings

    settings, now = load_settings(), datetime.now(UTC)
    return list(
        hours_between(
            max(floor_to_hour(settings.capture.start), now - timedelta(days=settings.judge.lookback_days)), now
        )
    )


def _hours(key: str | None, start: str | None, end: str | None) -> list[datetime]:
    from trajectory_pipeline.defs.partitions import existing_hours
    from trajectory_pipeline.partition_keys import hours_between, parse_partition_key, parse_timestamp
    from trajectory_pipeline.settings import load_settings

    if key is not None and (start is not None or end is not None):
        raise PipelineError("Give either --partition or --from and --to, not both.")
    if key is not None:
        hours = [parse_partition_key(key)]
    elif start is not None and end is not None:
        first, last = parse_timestamp(start), parse_timestamp(end)
        if last - first > timedelta(days=366 * 20):
            raise PipelineError("The range is longer than twenty years: check --from and --to.")
        try:
            hours = list(hours_between(first, last))
        except OverflowError:
            raise PipelineError(f"{end!r} lies beyond the last year that there is: check --to.") from None
    else:
        raise PipelineError("Say which partitions: --partition KEY, or --from TIME --to TIME.")
    return existing_hours(hours, load_settings().capture.start, datetime.now(UTC))


@main.command()
def check() -> None:
    """Compare the whole history: source, ledger, Postgres and Parquet, partition by partition.

    \b
    Exit code 0  equal on all sides
              1  something differs, and is named
              2  something cannot be reached
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.cli import maintenance

    sys.exit(maintenance.check())


@main.command()
@click.option("--dry-run", is_flag=True, help="Only say which partitions hold what is deleted at the source.")
def erase(*, dry_run: bool) -> None:
    """Erase at once what is deleted at the source and was kept until now.

    Needs TRAJECTORY_DELETED_CONTENT=erase, and not the source. The capture sensor has the same done by itself.
    """
    from trajectory_pipeline.cli import maintenance

    sys.exit(maintenance.erase(only_say=dry_run))


@main.command()
@click.option("--dry-run", is_flag=True, help="Only list what is old enough: partitions, rows, files, bytes.")
def prune(*, dry_run: bool) -> None:
    """Remove at once what is older than TRAJECTORY_RETENTION_DAYS or TRAJECTORY_RAW_RETENTION_DAYS from both sinks.

    Needs at least one of them, and not the source. A daily schedule does the same. What is pruned comes back only when
    it is materialised explicitly, until the next prune.

    \b
    Exit code 0  all that is old enough is gone, or would be
              1  some partitions failed
              2  no age is set, or a sink cannot be reached
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.cli import maintenance

    sys.exit(maintenance.prune(only_say=dry_run))


@main.command()
@click.argument("run_id")
def show(run_id: str) -> None:
    """Show the trajectory of a run: turns, tools, errors, outcome and verdict."""
    from trajectory_pipeline.cli.materialize import show_run

    show_run(run_id)


@main.command()
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="As JSON, whole.")
def explain(run_id: str, *, as_json: bool) -> None:
    """Explain how a run came to its verdict: rows, trajectory, what the judge was shown, said, and what was checked."""
    from trajectory_pipeline.cli.explain import explain_run

    explain_run(run_id, as_json=as_json)


@main.command()
def settings() -> None:
    """List the settings: environment variables and what they mean. Exit code 2: one that is set is wrong."""
    from trajectory_pipeline.cli.console import out
    from trajectory_pipeline.settings import load_settings, setting_fields

    for name, field in setting_fields().items():
        out.print(f"[bold]{name}[/bold]")
        out.print(f"  {field.description}", markup=False)
    load_settings()


@main.command()
def doctor() -> None:
    """Look at settings, source, sinks and judge, and say what to do; changes nothing, asks no judge.

    \b
    Exit code 0  all of it can work
              1  something cannot
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.cli.console import out
    from trajectory_pipeline.cli.doctor import run_checks

    marks = {"ok": "[green]✓[/green]", "advice": "[yellow]•[/yellow]", "wrong": "[red]✗[/red]"}
    wrong = False
    for finding in run_checks():
        out.print(f"{marks[finding.state]} [bold]{finding.what}[/bold]: ", end="")
        out.print(finding.words, markup=False)
        wrong = wrong or finding.state == "wrong"
    sys.exit(1 if wrong else 0)


@main.command()
@click.argument("database", type=click.Choice(["trajectory", "letta", "dagster"]), default="trajectory")
def url(database: str) -> None:
    """Print the URL of a database in use, password and all, for a client of yours.

    \b
    Example:
      psql "$(trajectory-pipeline url)"
    """  # noqa: D301 - \b is click's mark for text that is not wrapped
    from trajectory_pipeline.databases import running_databases
    from trajectory_pipeline.settings import load_settings

    endpoints = running_databases(load_settings())
    urls = {"trajectory": endpoints.database_url, "letta": endpoints.letta_url, "dagster": endpoints.dagster_url}
    click.echo(urls[database])


@main.command()
@click.option("--demo", "only_demo", is_flag=True, help="Only what the demonstration left.")
@click.confirmation_option(prompt="This removes the embedded server with all it holds, and the files beside it. Go on?")
def clean(*, only_demo: bool) -> None:
    """Remove what is kept on this machine: the embedded server, Parquet and Dagster's files in the data folder."""
    from trajectory_pipeline.cli.demo import DEMO_FOLDER
    from trajectory_pipeline.settings import load_settings

    _remove(DEMO_FOLDER)
    if not only_demo:
        _remove(load_settings().storage.data_folder)


def _remove(folder: Path) -> None:
    import shutil

    from trajectory_pipeline.demo import embedded_postgres

    server = folder.absolute() / "postgres"
    if server.exists():
        embedded_postgres.remove(server)
    for name in ("parquet", "dagster", "dagster.log"):
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
