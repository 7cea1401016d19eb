"""Point 9: reading single trajectories, an agent's last ones and filtered ones; pruning in Parquet."""

import contextlib
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture, one_partition
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.many_rows import RARE_MODEL, RARE_TOOL, multiply, multiply_search
from benchmarks.measuring import Result, seconds, timed
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore

_LOOK_UPS = 200
_MULTIPLIED = 1_000
_PARTITIONS = 48
_INSERTED = 5_000
_ONE = "SELECT * FROM trajectory.trajectories WHERE run_id = %s"
_LAST_50 = "SELECT * FROM trajectory.trajectories WHERE agent_id = %s ORDER BY end_time DESC LIMIT 50"
_SHORT = "SELECT run_id, agent_id, end_time, heuristic_outcome FROM trajectory.trajectories WHERE "
_LABELS = (
    "INSERT INTO trajectory.labels (run_id, criterion, item, annotator, revision, value, evidence, source, created_at)"
    " SELECT run_id, 'outcome', '', 'benchmark', 1, 'success', '{}', 'person', now() FROM trajectory.trajectories"
)
_NEWEST = " ORDER BY end_time DESC LIMIT 100"
_FILTERS = {
    "outcome: the newest 100 failures": (_SHORT + "heuristic_outcome = 'failure'" + _NEWEST, []),
    "outcome and time: failures of one day": (
        _SHORT + "heuristic_outcome = 'failure' AND end_time >= '2025-06-01' AND end_time < '2025-06-02'",
        [],
    ),
    "execution: the newest 100 that a step limit cut": (
        _SHORT + "execution_status = 'truncated' AND execution_cause = 'step_limit'" + _NEWEST,
        [],
    ),
    "time: the runs of one hour": (_SHORT + "end_time >= '2025-06-01 07:00' AND end_time < '2025-06-01 08:00'", []),
    "tool, common: the newest 100": (_SHORT + "tools_used @> %s" + _NEWEST, [["calculate"]]),
    "tool, rare: all": (_SHORT + "tools_used @> %s", [[RARE_TOOL]]),
    "tool, rare: the newest 100": (_SHORT + "tools_used @> %s" + _NEWEST, [[RARE_TOOL]]),
    "model, rare: all": (_SHORT + "models @> %s", [[RARE_MODEL]]),
    "model, common, and outcome: the newest 100": (
        _SHORT + "models @> %s AND heuristic_outcome = 'failure'" + _NEWEST,
        [["gpt-4o-mini"]],
    ),
}


def measure(bench: Bench) -> Result:
    """Measure point 9."""
    rows = bench.size.reading
    result = Result("9", f"Reading back, {rows:,} trajectories")
    url = bench.letta(DatabaseSpec(_MULTIPLIED, first_hour=FIRST_HOUR, extra_loops=0.0, length=0.2))
    with bench.sinks() as sinks:
        capture(url, sinks.database_url, str(sinks.folder))
        with psycopg.connect(sinks.database_url, autocommit=True) as connection:
            bench.report(f"Multiplying trajectories to {rows:,} …")
            given = multiply(connection, rows)
            bench.report("… with search texts, embeddings and labels …")
            multiply_search(connection, given, rows, _random_embeddings, "random@1")
            connection.execute(_LABELS)
            connection.execute("VACUUM (ANALYZE) trajectory.labels")
            bench.settle()
            _look_ups(connection, result)
            _filters(connection, result)
            _indexes(connection, result)
        _parquet(bench, sinks, result)
    return result


def _random_embeddings(texts: Sequence[str]) -> Sequence[Any]:
    return list(np.random.default_rng(9).standard_normal((len(texts), 256)))


def _look_ups(connection: psycopg.Connection, result: Result) -> None:
    rng = random.Random(9)
    ids = [row[0] for row in connection.execute("SELECT run_id FROM trajectory.trajectories TABLESAMPLE SYSTEM (1)")]
    agents = [row[0] for row in connection.execute("SELECT DISTINCT agent_id FROM trajectory.trajectories LIMIT 1000")]
    for what, query, values, limit in (
        ("one trajectory by run id", _ONE, rng.choices(ids, k=_LOOK_UPS), 2.0),
        ("the last 50 of an agent, documents included", _LAST_50, rng.choices(agents, k=_LOOK_UPS // 4), 10.0),
    ):
        taken = [_milliseconds(connection, query, [value]) for value in values]
        worst = statistics.quantiles(taken, n=20)[-1]
        result.add(what, taken, "ms", at_most=limit, note=f"95 % within {worst:.2f} ms; round trip and JSON included")


def _milliseconds(connection: psycopg.Connection, query: str, parameters: Sequence[Any]) -> float:
    def ask() -> None:
        connection.execute(query.encode(), parameters).fetchall()

    return 1_000 * seconds(ask, 1)[0]


def _filters(connection: psycopg.Connection, result: Result) -> None:
    sequential = []
    for what, (query, parameters) in _FILTERS.items():
        explained = connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + query.encode(), parameters).fetchall()
        plan = explained[0][0][0]["Plan"]
        indexes = sorted(set(_used(plan, "Index Name")))
        sequential += _used(plan, "Relation Name") if "Seq Scan" in _used(plan, "Node Type") else []
        taken = [_milliseconds(connection, query, parameters) for _ in range(5)]
        result.add(what, taken, "ms", note=f"{plan['Actual Rows']:,.0f} rows by {', '.join(indexes) or 'no index'}")
        result.details[what] = plan
    result.add("sequential scans among the filters", float(len(sequential)), "plans", at_most=0)


def _used(plan: dict[str, Any], what: str) -> list[str]:
    own = [str(plan[what])] if what in plan else []
    return own + [name for part in plan.get("Plans", []) for name in _used(part, what)]


def _indexes(connection: psycopg.Connection, result: Result) -> None:
    """Measure what the indexes of lists cost whoever writes, against the same table without them."""
    taken: dict[str, list[float]] = {"all": [], "without lists'": []}
    for _ in range(3):
        for name, into in taken.items():
            connection.execute("CREATE TABLE written (LIKE trajectory.trajectories INCLUDING ALL)")
            if name != "all":
                for (index,) in connection.execute(
                    "SELECT indexname FROM pg_indexes WHERE tablename = 'written' AND indexdef LIKE '%USING gin%'"
                ).fetchall():
                    connection.execute(f"DROP INDEX {index}".encode())
            with timed(into):
                connection.execute(
                    f"INSERT INTO written SELECT * FROM trajectory.trajectories LIMIT {_INSERTED}".encode()
                )
            connection.execute("DROP TABLE written")
    with_all = result.add(f"inserting {_INSERTED:,} rows, all indexes", taken["all"])
    without = result.add("without those of lists (tools, models)", taken["without lists'"])
    result.add("what they cost a write", with_all / without, "×")


def _parquet(bench: Bench, sinks: Sinks, result: Result) -> None:
    store = ParquetStore(str(sinks.folder))
    few = next(store.read(TRAJECTORIES, FIRST_HOUR)).slice(0, bench.size.runs_an_hour)
    for number in range(1, _PARTITIONS):
        store.write(TRAJECTORIES, FIRST_HOUR + timedelta(hours=number), [few])
    with _large_partition(bench) as large:
        table = f"read_parquet('{sinks.used(TRAJECTORIES.name)}/*/*.parquet', hive_partitioning = true)"
        scan = _scanned(f"SELECT count(*), sum(total_tokens) FROM {table} WHERE hour = '2025-06-01T07'")
        result.add("files that DuckDB opens for one hour", scan["files"], "files", at_most=1, note=f"of {_PARTITIONS}")
        file = f"'{large}'"
        groups = _asked(f"SELECT DISTINCT row_group_id, row_group_num_rows FROM parquet_metadata({file})")
        run_id = _asked(f"SELECT run_id FROM {file} ORDER BY run_id LIMIT 1 OFFSET {bench.size.runs // 2}")
        scan = _scanned(f"SELECT turns FROM {file} WHERE run_id = '{run_id[0][0]}'")
        result.add(
            "row groups that DuckDB reads for one run", scan["groups"], "groups", at_most=1, note=f"of {len(groups)}"
        )
        bytes_read = f"{scan['bytes'] / 1e6:.1f} of {large.stat().st_size / 1e6:.0f} MB"
        result.add("one run's turns out of the large partition", 1_000 * scan["seconds"], "ms", note=bytes_read)
        rows = [count for _, count in groups]
        result.notes.append(f"Row groups of the large partition: {min(rows):,} to {max(rows):,} rows.")


@contextlib.contextmanager
def _large_partition(bench: Bench) -> Iterator[Path]:
    with bench.sinks() as sinks:
        capture(bench.letta(one_partition(bench.size.runs)), sinks.database_url, str(sinks.folder))
        yield next(sinks.used(TRAJECTORIES.name).glob("*/*.parquet"))


def _scanned(query: str) -> dict[str, float]:
    """Return what DuckDB says it read for a query: files, row groups, bytes, seconds."""
    profile = json.loads(_asked(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")[0][1])
    scan = next(_scans(profile["operator"]))
    return {
        "files": float(scan["extra_info"]["Total Files Read"]),
        "groups": float(scan["row_groups_scanned"]),
        "bytes": float(profile["io"]["total_bytes_read"]),
        "seconds": float(scan["timing"]),
    }


def _asked(query: str) -> list[tuple[Any, ...]]:
    import duckdb

    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def _scans(operators: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for operator in operators:
        if operator["type"] == "TABLE_SCAN":
            yield operator
        yield from _scans(operator.get("children", []))
