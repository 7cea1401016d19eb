"""What the Dagster UI shows of a partition's rows: a few of them, sums, and queries that read the same.

Only ids, numbers and words of closed lists: no text that an agent, a person or a judge wrote.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.store import ParquetStore

_ROWS = 5
COLUMNS = {
    TERMINAL_RUNS.name: ("run_id", "run.status", "run.stop_reason"),
    TRAJECTORIES.name: (
        "run_id",
        "execution_status",
        "heuristic_outcome",
        "input_tokens",
        "output_tokens",
        "cost_usd",
    ),
    REFINED_OUTCOMES.name: (
        "run_id",
        "verdict_status",
        "outcome",
        "outcome_confidence",
        "failure_owner",
        "failure_mode",
        "coverage",
    ),
}
"""Columns of the rows that are shown, by asset."""
_SUMS = {TRAJECTORIES.name: ("input_tokens", "output_tokens", "cost_usd")}
_POSTGRES = {TRAJECTORIES.name: "trajectory.trajectories", REFINED_OUTCOMES.name: "trajectory.outcomes"}


@dataclass
class Preview:
    """A few rows of a partition, in the order of ``COLUMNS``, the sums of some columns, and queries by language."""

    rows: list[tuple[object, ...]] = field(default_factory=list)
    sums: dict[str, int | Decimal] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)


def preview(store: ParquetStore, table: Table, hour: datetime) -> Preview:
    """Return what is shown of a partition's file.

    Raises:
        SinkError: it cannot be read.
    """
    columns = COLUMNS[table.name]
    result = Preview(queries=_queries(store, table, hour), sums=dict.fromkeys(_SUMS.get(table.name, ()), 0))
    for batch in store.read_fields(table, hour, columns):
        if not result.sums and len(result.rows) == _ROWS:
            break
        for name in result.sums:
            result.sums[name] += sum(filter(None, batch.column(name).to_pylist()))
        for row in rows_of(batch.slice(0, _ROWS - len(result.rows))):
            values = []
            for name in columns:
                outer, _, inner = name.partition(".")
                values.append(row[outer][inner] if inner else row[outer])
            result.rows.append(tuple(values))
    return result


def _queries(store: ParquetStore, table: Table, hour: datetime) -> dict[str, str]:
    columns, path = ", ".join(COLUMNS[table.name]), store.path_of(table, hour).replace("'", "''")
    queries = {"DuckDB": f"SELECT {columns} FROM read_parquet('{path}')"}
    if table.name in _POSTGRES:
        name, key = _POSTGRES[table.name], partition_key(hour)
        queries = {"Postgres": f"SELECT {columns} FROM {name} WHERE partition_key = '{key}'", **queries}
    return queries
