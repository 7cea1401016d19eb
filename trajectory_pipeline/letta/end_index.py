"""Whether the source has an index on when a run ended: Letta makes none, and finding an hour's runs reads the table."""

from dataclasses import dataclass

from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.schema.raw import RUNS, TERMINAL_STATUSES


@dataclass(frozen=True)
class EndIndex:
    """The index on the end of runs.

    Attributes:
        exists: there is one.
        runs: about how many rows the table has, by the server's statistics.
        statement: what the source's owner could run to create it.
    """

    exists: bool
    runs: int
    statement: str


def find_end_index(snapshot: Snapshot) -> EndIndex:
    """Look for an index on ``completed_at`` of the runs.

    Raises:
        SourceError: the source cannot be read.
    """
    table = snapshot.catalog.table(RUNS)
    rows = snapshot.read(
        "Looking for indexes",
        "SELECT count(*) FILTER (WHERE pg_get_indexdef(i.indexrelid) LIKE '%completed_at%') AS indexes,"
        " max(c.reltuples)::bigint AS runs FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i"
        f" ON i.indrelid = c.oid WHERE c.oid = to_regclass('{table}')",
    )
    return EndIndex(
        exists=bool(rows["indexes"][0].as_py()),
        runs=max(rows["runs"][0].as_py() or 0, 0),
        statement=f"CREATE INDEX CONCURRENTLY ix_runs_ended_at ON {table} (({snapshot.ended_at('runs')}))"
        f" WHERE status::text IN ({', '.join(map(literal, TERMINAL_STATUSES))})",
    )
