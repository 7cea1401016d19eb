"""Point 11: what a year of hours without runs costs, as the empty hour sensor reports them."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.bench import FIRST_HOUR, Bench
from benchmarks.databases import drop_database
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Result, in_child
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.urls import sqlalchemy_url

HOURS = 8_760
_STORAGE = "dagster_empty_hours"
# With the indexes, and the texts that stand outside the rows.
_SIZE = """
    SELECT sum(pg_total_relation_size(oid)) FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"""


def measure(bench: Bench) -> Result:
    """Measure point 11."""
    result = Result("11", f"A year of empty hours: {HOURS:,}")
    # Its runs ended before the year that is looked at.
    letta_url = bench.letta(DatabaseSpec(300, first_hour=FIRST_HOUR))
    bench.server.ensure_database(_STORAGE)
    storage_url = bench.server.url(_STORAGE)
    try:
        with bench.sinks() as sinks:
            done = in_child(
                f"{__name__}:report_year",
                {
                    "LETTA_PG_URI": letta_url,
                    "TRAJECTORY_DATABASE_URL": sinks.database_url,
                    "TRAJECTORY_STORAGE_URI": str(sinks.folder),
                    "TRAJECTORY_START": f"{FIRST_HOUR + 24 * HOUR:%Y-%m-%dT%H:00}",
                    "TRAJECTORY_JUDGE_MODEL": "none-is-asked",
                    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
                    "DAGSTER_PG_URL": sqlalchemy_url(storage_url, "psycopg2"),
                    "DAGSTER_HOME": "",
                    "DAGSTER_EVENT_BATCH_SIZE": "100",
                    "TRAJECTORY_DATA_FOLDER": str(sinks.folder.with_name(f"{sinks.folder.name}_data")),
                },
            )
            files = sum(1 for path in sinks.folder.rglob("*") if path.is_file()) if sinks.folder.exists() else 0
            ledger = _number(sinks.database_url, "SELECT count(*) FROM trajectory.partitions")
        result.add("all ticks together", done.value["seconds"], note=f"{done.value['ticks']} ticks, one a minute")
        result.add("the longest tick", done.value["longest"])
        result.add("a tick when all is known", done.value["idle"])
        result.add("events in Dagster's log", _number(storage_url, "SELECT count(*) FROM event_logs"), "rows")
        result.add("Dagster's storage grew by", (done.value["bytes_after"] - done.value["bytes_before"]) / 1e6, "MB")
        result.add("rows in the ledger, and files", float(ledger + files), "rows", at_most=0)
    finally:
        drop_database(bench.server, _STORAGE)
    return result


def report_year() -> dict[str, Any]:
    """Tick the sensor until every hour of a year is known to Dagster; returns the seconds and the sizes."""
    import dagster as dg

    from trajectory_pipeline.cli.dagster_processes import dagster_home, prepare_storage
    from trajectory_pipeline.defs.resources import build_resources
    from trajectory_pipeline.defs.sensors.empty_hours import build_empty_hour_sensor
    from trajectory_pipeline.settings import load_settings

    settings = load_settings()
    prepare_storage(dagster_home(Path(settings.storage.data_folder)), os.environ["DAGSTER_PG_URL"])
    now = settings.capture.start + HOURS * HOUR + timedelta(minutes=30)
    sensor = build_empty_hour_sensor(settings, clock=lambda: now)
    with dg.DagsterInstance.get() as instance:
        before, taken, cursor = _bytes(), list[float](), None
        while True:
            started = time.perf_counter()
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, resources=build_resources(settings)
            ) as context:
                done = sensor.evaluate_tick(context)
            taken.append(time.perf_counter() - started)
            if "knows every closed hour" in str(done.skip_message):
                break
            cursor = done.cursor
    return {
        "seconds": sum(taken[:-1]),
        "longest": max(taken[:-1]),
        "idle": taken[-1],
        "ticks": len(taken) - 1,
        "bytes_before": before,
        "bytes_after": _bytes(),
    }


def _bytes() -> int:
    return _number(os.environ["DAGSTER_PG_URL"].replace("+psycopg2", ""), _SIZE)


def _number(url: str, question: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    return int(row[0]) if row else 0
