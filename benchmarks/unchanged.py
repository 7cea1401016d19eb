"""Point 7: the same partition again, unchanged, and with one run edited."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from benchmarks.bench import Bench, Sinks, capture, one_partition
from benchmarks.measuring import Result, timed
from trajectory_pipeline.schema.types import SCHEMA_NAME

_EDITED = "a step's feedback, as a person gives it in Letta's UI"
_EDIT = (
    "UPDATE public.steps SET feedback = 'positive' WHERE id = (SELECT min(s.id) FROM public.steps s"
    " JOIN public.runs r ON r.id = s.run_id WHERE r.status = 'completed' AND s.feedback IS NULL)"
)


def measure(bench: Bench) -> Result:
    """Measure point 7."""
    result = Result("7", "The same partition again; one of its runs edited")
    url = bench.letta(one_partition(bench.size.runs))
    taken: dict[str, list[float]] = defaultdict(list)
    written: dict[str, list[_Log]] = defaultdict(list)
    merged: dict[str, dict[str, int]] = {}
    touched: dict[str, int] = {}

    def once(name: str, sinks: Sinks, *, checkpoint: bool = True) -> None:
        if checkpoint:
            bench.settle()
        before, rows_before = _log(bench), _rows_written(sinks)
        with timed(taken[name]):
            merged[name] = capture(url, sinks.database_url, str(sinks.folder))
        written[name].append(_log(bench).since(before))
        touched[name] = _rows_written(sinks) - rows_before

    def edit() -> None:
        with psycopg.connect(url) as connection:
            connection.execute(_EDIT)

    for _ in range(bench.size.tries):
        with bench.sinks() as sinks:
            once("first", sinks)
            # As autovacuum does a minute later: who first reads new rows, or vacuums them, has their pages logged.
            _vacuum(sinks)
            once("again", sinks)
            edit()
            once("edited", sinks)
            edit()
            once(_BETWEEN, sinks, checkpoint=False)
    runs = merged["first"]["runs"]
    first = result.add(f"{runs:,} runs, the first time", taken["first"])
    again = result.add("again, unchanged", taken["again"], note=f"{merged['again']['unchanged']:,} rows left alone")
    result.add("again / first", again / first, "×", at_most=0.05)
    result.add("with one run edited", taken["edited"], note=f"{_EDITED}; {merged['edited']['updated']} row updated")
    result.add("rows written in Postgres, the first time", touched["first"], "rows", note="of all tables of the sink")
    result.add(
        "one run edited: rows written",
        touched["edited"],
        "rows",
        at_most=_ROWS_OF_AN_EDIT,
        note="its trajectory, the versions, two ledger entries; two notes, made and dropped",
    )
    whole = result.add("written by Postgres (WAL), the first time", _megabytes(written["first"]), "MB")
    result.add("again, unchanged: written", _megabytes(written["again"]), "MB")
    for name, words in (("edited", "one run edited, after a checkpoint"), (_BETWEEN, "one more, none between")):
        last = written[name][-1]
        share = f"{last.pages} images of pages among {last.records} records"
        one = result.add(f"{words}: written", _megabytes(written[name]), "MB", note=share)
    result.add("edited / first, written", one / whole, "×", at_most=0.01, note=f"one of {runs:,} rows")
    return result


_BETWEEN = "edited between checkpoints"
_ROWS_OF_AN_EDIT = 8


@dataclass(frozen=True)
class _Log:
    """What the server has written to its log.

    Attributes:
        bytes: in all.
        records: how many.
        pages: images of whole pages among them: what is touched first after a checkpoint, whatever of it changes.
    """

    bytes: float
    records: int
    pages: int

    def since(self, before: "_Log") -> "_Log":
        return _Log(self.bytes - before.bytes, self.records - before.records, self.pages - before.pages)


def _megabytes(logs: Sequence[_Log]) -> list[float]:
    return [log.bytes / 1e6 for log in logs]


def _log(bench: Bench) -> _Log:
    """Return what a write costs the server, whoever is waiting."""
    with psycopg.connect(bench.server.url("postgres")) as connection:
        row = connection.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, wal_records, wal_fpi FROM pg_stat_wal"
        ).fetchone()
    return _Log(float(row[0]), int(row[1]), int(row[2])) if row else _Log(0, 0, 0)


def _rows_written(sinks: Sinks) -> int:
    """Return how many rows were inserted, updated and deleted in the sink's tables so far."""
    with psycopg.connect(sinks.database_url) as connection:
        row = connection.execute(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables WHERE schemaname = %s",
            [SCHEMA_NAME],
        ).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def _vacuum(sinks: Sinks) -> None:
    with psycopg.connect(sinks.database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
