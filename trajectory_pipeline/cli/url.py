"""The command ``url``: prints a database URL for another client."""

import click

from trajectory_pipeline.databases import running_databases
from trajectory_pipeline.settings import load_settings


@click.command("url")
@click.argument("database", type=click.Choice(["trajectory", "letta", "dagster"]), default="trajectory")
def command(database: str) -> None:
    """Print the URL of a database in use, password included, for a client of your own.

    \b
    Example:
      psql "$(trajectory-pipeline url)"
    """  # noqa: D301 - \b keeps click from rewrapping the text
    databases = running_databases(load_settings())
    urls = {"trajectory": databases.database_url, "letta": databases.letta_url, "dagster": databases.dagster_url}
    click.echo(urls[database])
