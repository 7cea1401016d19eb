"""Point 7: a partition again, unchanged, and with one run edited."""

from collections import defaultdict

import psycopg

from benchmarks.bench import Bench, Sinks, capture, one_partition
from benchmarks.measuring import Result, timed

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
    written: dict[str, list[float]] = defaultdict(list)
    merged: dict[str, dict[str, int]] = {}

    def once(name: str, sinks: Sinks) -> None:
        bench.settle()
        before = _written_ahead(bench)
        with timed(taken[name]):
            merged[name] = capture(url, sinks.database_url, str(sinks.folder))
        written[name].append((_written_ahead(bench) - before) / 1e6)

    for _ in range(bench.size.tries):
        with bench.sinks() as sinks:
            once("first", sinks)
            once("again", sinks)
            with psycopg.connect(url) as connection:
                connection.execute(_EDIT)
            once("edited", sinks)
    runs = merged["first"]["runs"]
    first = result.add(f"{runs:,} runs, the first time", taken["first"])
    again = result.add("again, unchanged", taken["again"], note=f"{merged['again']['unchanged']:,} rows left alone")
    result.add("again / first", again / first, "×", at_most=0.1)
    result.add("with one run edited", taken["edited"], note=f"{_EDITED}; {merged['edited']['updated']} row updated")
    whole = result.add("written by Postgres (WAL), the first time", written["first"], "MB")
    result.add("again, unchanged: written", written["again"], "MB")
    one = result.add("one run edited: written", written["edited"], "MB")
    result.add("edited / first, written", one / whole, "×", at_most=0.01, note=f"one of {runs:,} rows")
    return result


def _written_ahead(bench: Bench) -> float:
    """Return how many bytes the server has written to its log so far: what a write costs it, whoever is waiting."""
    with psycopg.connect(bench.server.url("postgres")) as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    return float(row[0]) if row else 0.0
