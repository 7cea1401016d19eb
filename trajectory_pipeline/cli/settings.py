"""The command ``settings``: lists the environment variables."""

import click

from trajectory_pipeline.cli.console import out
from trajectory_pipeline.settings import load_settings, setting_fields


@click.command("settings")
def command() -> None:
    """List the settings: environment variables and what they mean. Exit code 2: one that is set is wrong."""
    for name, field in setting_fields().items():
        out.print(name, style="bold")
        out.print(f"  {field.description}")
    load_settings()
