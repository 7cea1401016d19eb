"""Point 6: the overhead of a partition, in one Dagster run over many."""

import cProfile
import os
import pstats
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture_in_child
from benchmarks.databases import drop_database
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Child, Result, in_child
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.urls import sqlalchemy_url

_PROFILED = 48
_ONE_PLANNED_EVENT = {"DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1"}
_PARTS = (
    ("commits and statements of Dagster's storage", "psycopg2"),
    ("SQLAlchemy", "sqlalchemy"),
    ("Dagster", "dagster"),
    ("the ledger and the trajectories in Postgres", "psycopg"),
    ("the source", "adbc"),
    ("Parquet and Arrow", "pyarrow"),
    ("waiting for the disk", "fsync"),
    ("this project", "trajectory_pipeline"),
)


def measure(bench: Bench) -> Result:
    """Measure point 6."""
    hours, runs = bench.size.hours, bench.size.hours * bench.size.runs_an_hour
    result = Result("6", f"{hours:,} partitions in one Dagster run")
    spread = bench.letta(DatabaseSpec(runs, hours, first_hour=FIRST_HOUR))
    together = bench.letta(DatabaseSpec(runs, first_hour=FIRST_HOUR))
    bare = _spent(bench, lambda sinks: capture_in_child(together, sinks, verified=True))
    stages = _spent(bench, lambda sinks: capture_in_child(spread, sinks, hours, verified=True))
    alone = _spent(bench, lambda sinks: _dagster_run(bench, spread, sinks, 1))
    dagster = _spent(bench, lambda sinks: _dagster_run(bench, spread, sinks, hours))
    fewer = _spent(bench, lambda sinks: _dagster_run(bench, spread, sinks, hours, environment=_ONE_PLANNED_EVENT))
    result.add(f"{runs:,} runs in one partition", bare.seconds, note="the bare cost of the rows; no Dagster")
    result.add(f"the same in {hours:,} partitions, without Dagster", stages.seconds)
    result.add("the first partition alone, one Dagster run", alone.seconds, note="what a run costs however small it is")
    result.add(f"all {hours:,} partitions, one Dagster run", dagster.seconds, note="in process, storage in Postgres")
    result.add("a partition over its rows", 1000 * (dagster.seconds - bare.seconds) / hours, "ms")
    result.add("of which the run itself", 1000 * alone.seconds / hours, "ms")
    result.add("of which Dagster, a partition", 1000 * (dagster.seconds - alone.seconds - stages.seconds) / hours, "ms")
    one_event = 1000 * (fewer.seconds - alone.seconds - stages.seconds) / hours
    result.add("the same with one planned event for all of them", one_event, "ms", note="docs/deploy.md")
    result.add("of which ours", 1000 * (stages.seconds - bare.seconds) / hours, "ms", at_most=50)
    for words, part in (("our process", "process"), ("the server", "server")):
        over = 1000 * (getattr(dagster, part) - getattr(bare, part)) / hours
        least = 1000 * (getattr(fewer, part) - getattr(bare, part)) / hours
        ours = 1000 * (getattr(stages, part) - getattr(bare, part)) / hours
        note = f"{ours:.0f} ms ours; {least:.0f} ms with one planned event"
        result.add(f"a partition over its rows, processor time of {words}", over, "ms", note=note)
    with bench.sinks() as sinks:
        parts = _dagster_run(bench, spread, sinks, min(hours, _PROFILED), profiled=True).value["parts"]
    result.details["profile"] = parts
    shares = ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share >= 0.02)
    result.notes.append(f"Where a Dagster run of {min(hours, _PROFILED)} partitions spends its time: {shares}.")
    return result


@dataclass(frozen=True)
class _Spent:
    """What one way took: by the clock, and of the processors' time, in seconds."""

    seconds: float
    process: float
    server: float


def _spent(bench: Bench, way: Callable[[Sinks], Child]) -> _Spent:
    with bench.sinks() as sinks:
        before = bench.server_processor_seconds()
        done = way(sinks)
        server = bench.server_processor_seconds() - before
    return _Spent(done.value.get("seconds", done.seconds), done.value.get("processor", done.processor_seconds), server)


def _dagster_run(
    bench: Bench,
    letta_url: str,
    sinks: Sinks,
    hours: int,
    *,
    profiled: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Child:
    storage = f"dagster_{sinks.folder.name}"
    bench.server.ensure_database(storage)
    try:
        return in_child(
            "benchmarks.many_partitions:run_in_dagster",
            {
                "LETTA_PG_URI": letta_url,
                "TRAJECTORY_DATABASE_URL": sinks.database_url,
                "TRAJECTORY_STORAGE_URI": str(sinks.folder),
                "DAGSTER_PG_URL": sqlalchemy_url(bench.server.url(storage), "psycopg2"),
                "DAGSTER_HOME": "",
                **environment,
                "TRAJECTORY_DATA_FOLDER": str(sinks.folder.with_name(f"{sinks.folder.name}_data")),
            },
            hours=hours,
            profiled=profiled,
        )
    finally:
        drop_database(bench.server, storage)


def run_in_dagster(hours: int, profiled: bool) -> dict[str, Any]:
    """Materialize a range in one run of Dagster in this process, as a backfill does; return what it took."""
    import time

    import dagster as dg

    from trajectory_pipeline.cli.dagster_processes import dagster_home, prepare_storage
    from trajectory_pipeline.definitions import build_defs
    from trajectory_pipeline.defs.asset_keys import CAPTURE
    from trajectory_pipeline.defs.partitions import range_tags
    from trajectory_pipeline.defs.sensors.run_requests import TRAJECTORY_JOB
    from trajectory_pipeline.settings import load_settings

    settings = load_settings()
    prepare_storage(dagster_home(Path(settings.storage.data_folder)), os.environ["DAGSTER_PG_URL"])
    job = build_defs(settings).resolve_job_def(TRAJECTORY_JOB)
    profile = cProfile.Profile()
    with dg.DagsterInstance.get() as instance:
        if profiled:
            profile.enable()
        started, spent_before = time.perf_counter(), time.process_time()
        run = job.execute_in_process(
            instance=instance,
            tags=range_tags(FIRST_HOUR, FIRST_HOUR + (hours - 1) * HOUR),
            asset_selection=CAPTURE,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        seconds, processor = time.perf_counter() - started, time.process_time() - spent_before
        profile.disable()
    if not run.success:
        raise RuntimeError("the Dagster run failed")
    return {"seconds": seconds, "processor": processor, "parts": _parts(profile) if profiled else {}}


def _parts(profile: cProfile.Profile) -> dict[str, float]:
    """Return the share of the time that is spent in each part itself, what is called from there not included."""
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for (file, _, name), numbers in stats.items():
        text = f"{file} {name}"
        part = next((words for words, mark in _PARTS if mark in text), "the rest")
        spent[part] = spent.get(part, 0.0) + numbers[2]
    total = sum(spent.values())
    return {part: own / total for part, own in sorted(spent.items(), key=lambda pair: -pair[1])}
