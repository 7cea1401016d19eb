"""The command ``doctor``: looks at settings, databases and indexes, and says what to do; changes nothing.

Belongs here: what is looked at, and the advice. Does not belong here: any mending.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.fingerprint import fingerprints
from trajectory_pipeline.letta.run_counts import find_stuck_runs
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour
from trajectory_pipeline.pipeline.stale_partitions import built_by_older_versions
from trajectory_pipeline.schema.raw import RUNS, TERMINAL_STATUSES
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.capture_lag import lag_since
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres

_SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class HealthCheck:
    """One thing that was looked at.

    Attributes:
        what: was looked at.
        state: ``ok``, ``advice`` (it works, and could be better) or ``wrong`` (it cannot work).
        words: what was found, and what to do.
    """

    what: str
    state: str
    words: str


def run_checks() -> Iterator[HealthCheck]:
    """Yield what is found, one by one, as it is found."""
    try:
        settings = load_settings()
        endpoints = resolve_databases(settings)
    except PipelineError as error:
        yield HealthCheck("settings", "wrong", str(error))
        return
    yield HealthCheck("settings", "ok", "every setting can be read")
    yield from _source(settings, endpoints)
    yield _tried("trajectory database", lambda: _database(endpoints))
    yield from _lag(endpoints)
    yield _tried("Parquet storage", lambda: _storage(settings))
    if settings.judge.disabled_reason:
        yield HealthCheck("judge", "advice", settings.judge.disabled_reason)
    else:
        yield HealthCheck("judge", "ok", f"{settings.judge.model} at {settings.judge.base_url or 'OpenAI'}; not called")


def _tried(what: str, look: Callable[[], HealthCheck]) -> HealthCheck:
    try:
        return look()
    except PipelineError as error:
        return HealthCheck(what, "wrong", str(error))


def _source(settings: Settings, endpoints: Databases) -> Iterator[HealthCheck]:
    try:
        with LettaSource(endpoints.letta_url, settings.source.timeout_seconds).snapshot() as snapshot:
            unknown = snapshot.catalog.unknown_columns
            yield HealthCheck("source", "ok", f"{describe_postgres(endpoints.letta_url)} can be read")
            if unknown:
                yield HealthCheck("source columns", "advice", f"not known, and not read: {', '.join(unknown)}")
            yield _index(snapshot)
            yield _cost_of_comparing(snapshot)
            stuck = find_stuck_runs(snapshot, timedelta(hours=settings.source.stuck_hours))
            if stuck:
                oldest = max(run.age for run in stuck)
                yield HealthCheck(
                    "runs that never ended",
                    "advice",
                    f"{len(stuck)} are created or running for more than {settings.source.stuck_hours} hours, the"
                    " oldest,"
                    f" {stuck[0].run_id}, for {oldest.total_seconds() / 3600:.0f};"
                    " they are not captured before they end",
                )
    except PipelineError as error:
        yield HealthCheck("source", "wrong", str(error))


def _index(snapshot: Snapshot) -> HealthCheck:
    """Letta has no index on when a run ended: finding an hour's runs reads the whole table."""
    rows = snapshot.read(
        "Looking for indexes",
        "SELECT count(*) FILTER (WHERE pg_get_indexdef(i.indexrelid) LIKE '%completed_at%') AS indexes,"
        " max(c.reltuples)::bigint AS runs FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i"
        f" ON i.indrelid = c.oid WHERE c.oid = to_regclass('{snapshot.catalog.table(RUNS)}')",
    )
    indexes, runs = rows["indexes"][0].as_py(), max(rows["runs"][0].as_py() or 0, 0)
    if indexes:
        return HealthCheck("index on the end of runs", "ok", "there is one")
    return HealthCheck(
        "index on the end of runs",
        "advice",
        f"there is none, so finding an hour's runs reads all of runs (about {runs} rows). The source's owner could:"
        f" CREATE INDEX CONCURRENTLY ix_runs_ended_at ON {snapshot.catalog.table(RUNS)}"
        f" (({snapshot.ended_at('runs')})) WHERE status::text IN ({', '.join(map(literal, TERMINAL_STATUSES))})",
    )


def _cost_of_comparing(snapshot: Snapshot) -> HealthCheck:
    now = datetime.now(UTC)
    began = time.monotonic()
    found = fingerprints(snapshot, floor_to_hour(now - timedelta(hours=48)), floor_to_hour(now) + HOUR)
    seconds = time.monotonic() - began
    return HealthCheck(
        "cost of a sensor tick",
        "ok" if seconds < _SLOW_SECONDS else "advice",
        f"comparing the last 48 hours ({len(found)} with runs) took {seconds:.2f} s at the source",
    )


def _database(endpoints: Databases) -> HealthCheck:
    database = TrajectoryDatabase(endpoints.database_url)
    row = database.rows(
        "SELECT (SELECT count(*) FROM trajectory.trajectories) AS trajectories,"
        " (SELECT count(*) FROM trajectory.quarantine) AS quarantined,"
        " has_schema_privilege('trajectory', 'USAGE') AND has_table_privilege('trajectory.trajectories', 'INSERT')"
        " AS writable"
    )[0]
    if not row["writable"]:
        words = "this user may not write the schema trajectory: GRANT it, or use its owner"
        return HealthCheck("trajectory database", "wrong", words)
    return HealthCheck(
        "trajectory database",
        "ok",
        f"{describe_postgres(endpoints.database_url)}, migrated; {row['trajectories']} trajectories,"
        f" {row['quarantined']} in quarantine",
    )


def _lag(endpoints: Databases) -> Iterator[HealthCheck]:
    """How long after their end the runs of the last day were captured: what the sensor is for."""
    with contextlib.suppress(PipelineError):  # said of the database above
        lag = lag_since(TrajectoryDatabase(endpoints.database_url), timedelta(days=1))
        if lag is not None:
            words = (
                f"{pluralize(lag.runs, 'run')} of the last day: half of them within {lag.median.total_seconds():.0f}"
                " s of"
                f" their end, all within {lag.longest.total_seconds():.0f} s"
            )
            yield HealthCheck("capture lag", "ok", words)
        older = built_by_older_versions(TrajectoryDatabase(endpoints.database_url))
        if older:
            yield HealthCheck(
                "versions",
                "advice",
                f"{pluralize(len(older), 'partition')} of trajectories, from {older[0]} to {older[-1]}, were built with"
                " an older schema: materialise trajectories of them again (a backfill in the UI, or"
                " `trajectory-pipeline materialize --select trajectories`); that reads their raw rows in Parquet, not"
                " the source",
            )


def _storage(settings: Settings) -> HealthCheck:
    ParquetStore(settings.storage.parquet_location).probe()
    return HealthCheck("Parquet storage", "ok", f"{settings.storage.parquet_location} can be written")
