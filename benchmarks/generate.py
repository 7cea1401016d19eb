"""The command that generates a Letta database: `python -m benchmarks.generate --help`."""

import signal
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.databases import drop_database
from benchmarks.letta_database.load import DatabaseSpec, generate
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.urls import normalize_postgres_url


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--url", help="An empty Postgres database: postgresql://user:password@host:port/database.")
@click.option(
    "--server",
    type=click.Path(file_okay=False, path_type=Path),
    help="Instead of --url: folder of an embedded server, created if absent; it runs until Ctrl-C.",
)
@click.option("--database", default="letta", help="With --server: the database's name; replaced if it exists.")
@click.option("--runs", default=50_000, help="Terminal runs; about 21 kB of JSON each.")
@click.option("--hours", default=1, help="Over how many partitions they are spread.")
@click.option("--first-hour", type=click.DateTime(["%Y-%m-%dT%H"]), default="2025-06-01T00", help="UTC.")
@click.option("--seed", default=1, help="The same seed makes the same rows.")
@click.option("--giant-messages", default=0, help="Messages of one run more, in the first hour.")
@click.option("--other-messages", default=0, help="Messages of runs that ended before the first hour.")
@click.option("--traced", default=0.0, help="Share of the steps with a recorded LLM call, 42 kB each.")
@click.option("--processes", default=2, help="That write at the same time.")
def main(
    url: str | None,
    server: Path | None,
    database: str,
    runs: int,
    hours: int,
    first_hour: datetime,
    seed: int,
    giant_messages: int,
    other_messages: int,
    traced: float,
    processes: int,
) -> None:
    """Make a Letta-shaped database whose rows are of the sample's kinds.

    50,000 runs are about 290,000 steps, 560,000 messages and 1 GB of JSON, and take a minute or two.
    """
    if (url is None) == (server is None):
        raise click.UsageError("Give either --url or --server.")
    spec = DatabaseSpec(
        runs,
        hours,
        first_hour.replace(tzinfo=UTC),
        seed,
        giant_messages=giant_messages,
        traced=traced,
        other_messages=other_messages,
    )
    with ExitStack() as stack:
        if server is not None:
            running = stack.enter_context(embedded_postgres.start(server, report=click.echo))
            drop_database(running, database)
            running.ensure_database(database)
            url = running.url(database)
        generated = generate(normalize_postgres_url(str(url)), spec, processes=processes)
        for table, rows in generated.rows.items():
            click.echo(f"{rows:>12,} {table}")
        click.echo(f"in {generated.seconds:.1f} s")
        if server is not None:
            click.echo(f"The server of {server} runs until Ctrl-C: {url}")
            signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
