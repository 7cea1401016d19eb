"""The command ``dev``: the Dagster UI and daemon, after the settings are checked.

Belongs here: the checks and their words. Does not belong here: starting processes (``instance``, ``supervised``).
"""

import os
import signal
import time

from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.cli.dagster_processes import (
    HOST,
    dagster_home,
    free_port,
    prepare_storage,
    start_daemon,
    start_webserver,
)
from trajectory_pipeline.cli.subprocesses import stop_all
from trajectory_pipeline.databases import resolve_databases
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.settings import load_settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.urls import describe_postgres


def run_dev(port: int) -> int:
    """Run until Ctrl-C; returns the exit code.

    Raises:
        PipelineError: a setting, the source or a sink is not as it must be; the text says what to do.
    """
    settings = load_settings()
    with step("Checking the settings") as tell:
        endpoints = resolve_databases(settings, tell)
        with LettaSource(endpoints.letta_url, settings.source.timeout_seconds).snapshot() as snapshot:
            unknown = snapshot.catalog.unknown_columns
        with TrajectoryDatabase(endpoints.database_url).connect():
            pass
        home = dagster_home(settings.storage.data_folder)
    out.print(f"  Source    {describe_postgres(endpoints.letta_url)}", markup=False)
    out.print(f"  Postgres  {describe_postgres(endpoints.database_url)}, schema trajectory", markup=False)
    out.print(f"  Parquet   {settings.storage.parquet_location}", markup=False)
    out.print(f"  Judge     {settings.judge.disabled_reason or settings.judge.model}", markup=False)
    if unknown:
        err.print(f"The source has columns that are not known, and are not read: {', '.join(unknown)}", markup=False)
    if not settings.capture.enabled:
        out.print("  Schedule and sensors are stopped: set ENABLE_TRAJECTORY_CAPTURE=true, or start them in the UI.")
    port = free_port(port)
    out.print(f"  UI        http://{HOST}:{port} (in about half a minute; Ctrl-C ends it)\n")
    environment = {**os.environ, **endpoints.environment(), "DAGSTER_HOME": str(home)}

    def end(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, end)
    prepare_storage(home, environment["DAGSTER_PG_URL"])
    processes = [start_webserver(environment, port, None), start_daemon(environment, None)]
    try:
        while all(process.exit_code is None for process in processes):
            time.sleep(1)
        return max(process.exit_code or 0 for process in processes)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return 0
    finally:
        stop_all(processes)
        endpoints.release()
