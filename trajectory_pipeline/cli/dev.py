"""The command ``dev``: checks the settings, then runs the Dagster UI and daemon."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import click

from trajectory_pipeline.cli.connections import open_connections
from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.cli.dagster_processes import (
    assets_page,
    dagster_home,
    port_option,
    prepare_storage,
    project_folder,
    run_until_interrupted,
    start_code_servers,
    start_daemon,
    start_webserver,
    stopping,
)
from trajectory_pipeline.cli.listening import listen_nearby, port_of
from trajectory_pipeline.cli.shared_workspace import shared_workspace
from trajectory_pipeline.cli.signals import interrupt_on_signals
from trajectory_pipeline.urls import describe_postgres


@click.command("dev")
@port_option
def command(port: int) -> None:
    """Check the settings, then run the Dagster UI and daemon on every entry of the project's workspace.yaml.

    Schedule and sensors run by default if ENABLE_TRAJECTORY_CAPTURE is true; otherwise they are stopped.
    """
    with step("Checking the settings") as report:
        opened = open_connections(report)
        settings, databases = opened.settings, opened.databases
        unknown: Sequence[str] = ()
        if has_letta := opened.has_letta():
            with opened.source.snapshot() as snapshot:
                unknown = snapshot.catalog.unknown_columns
        with opened.storage.postgres.connect():
            pass
        home = dagster_home(settings.storage.data_folder)
    letta = describe_postgres(databases.letta_url) if has_letta else "no Letta database"
    out.print(f"  Source    {', '.join([letta, *(source.name for source in opened.others())])}")
    out.print(f"  Postgres  {describe_postgres(databases.database_url)}, schema trajectory")
    out.print(f"  Parquet   {opened.storage.parquet.shown_uri}")
    out.print(f"  Judge     {settings.judge.disabled_reason or settings.judge.name}")
    if unknown:
        err.print(f"The source has unknown columns, which are not read: {', '.join(unknown)}")
    if not settings.capture.enabled:
        out.print("  Schedule and sensors are stopped: set ENABLE_TRAJECTORY_CAPTURE=true, or start them in the UI.")
    environment = {**os.environ, **databases.environment(), "DAGSTER_HOME": str(home)}
    with interrupt_on_signals(), ExitStack() as stack:
        stack.callback(databases.release)
        workspace = stack.enter_context(shared_workspace(project_folder() / "workspace.yaml"))
        listening = stack.enter_context(listen_nearby(port))
        out.print(f"  UI        {assets_page(port_of(listening))} (in about half a minute; Ctrl-C stops it)\n")
        prepare_storage(home, environment["DAGSTER_PG_URL"])
        processes = [
            *start_code_servers(environment, workspace, None),
            start_webserver(environment, workspace.file, listening, None),
            start_daemon(environment, workspace.file, None),
        ]
        stack.enter_context(stopping(processes))
        exit_code = run_until_interrupted(processes)
    sys.exit(exit_code or 0)
