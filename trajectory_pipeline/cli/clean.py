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
@click.confirmation_option(
    prompt="This deletes the embedded server with all its data, Parquet files, exported datasets and logs. Continue?"
)
def command(*, only_demo: bool) -> None:
    """Delete what is in the data folder: embedded server, Parquet files, exported datasets, Dagster's files and logs.

    What you put there yourself stays, and so does what was exported to another folder.
    """
    remove_data(DEMO_FOLDER)
    if not only_demo:
        remove_data(load_settings().storage.data_folder)


def remove_data(folder: Path) -> None:
    """Delete what the pipeline stored in a data folder; other files in it stay.

    Raises:
        EmbeddedPostgresError: the embedded server is in use.
    """
    remove_embedded_server(folder.absolute() / "postgres")
    for name in ("parquet", "exports", "dagster"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in ("dagster.log", "dagster.log.1", "service.log"):
        (folder / name).unlink(missing_ok=True)
