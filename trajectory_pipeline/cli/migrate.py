"""The command ``migrate``: creates or upgrades the schema ``trajectory``."""

import click

from trajectory_pipeline.cli.connections import databases_of
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.urls import describe_postgres


@click.command("migrate")
def command() -> None:
    """Create the schema `trajectory` in TRAJECTORY_DATABASE_URL, or upgrade it to the current revision."""
    settings = load_settings()
    url = settings.storage.database_url or databases_of(settings).database_url
    before, after = migrate(url)
    change = f"is at revision {after}" if before == after else f"went from {before or 'nothing'} to revision {after}"
    out.print(f"The schema trajectory in {describe_postgres(url)} {change}.")
