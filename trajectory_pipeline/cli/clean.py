"""The command ``clean``: deletes what the pipeline stored in its data folder."""

import shutil
from pathlib import Path

import click

from trajectory_pipeline.databases import remove_embedded_server
from trajectory_pipeline.settings import load_settings

DEMO_FOLDER = Path("data") / "demo"
"""Separate from the default data folder, so that the demonstration never mixes with real data."""


@click.command("clean")
@click.option("--demo", "only_demo", is_flag=True, help="Delete only the demonstration's folder.")
@click.confirmation_option(prompt="This deletes the embedded server with all its data, and the other files. Continue?")
def command(*, only_demo: bool) -> None:
    """Delete the data folder: embedded server, Parquet and Dagster's files."""
    remove_data(DEMO_FOLDER)
    if not only_demo:
        remove_data(load_settings().storage.data_folder)


def remove_data(folder: Path) -> None:
    """Delete what the pipeline stored in a data folder; other files in it stay.

    Raises:
        EmbeddedPostgresError: the embedded server is in use.
    """
    remove_embedded_server(folder.absolute() / "postgres")
    for path in (folder / "parquet", folder / "dagster"):
        if path.is_dir():
            shutil.rmtree(path)
    (folder / "dagster.log").unlink(missing_ok=True)
