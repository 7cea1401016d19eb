"""Point 5: time grows with the rows of the partition, and not with what else the source holds."""

import re
from dataclasses import replace
from typing import Any

import psycopg

from benchmarks.bench import Bench, capture, one_partition
from benchmarks.measuring import Result, timed

_TABLES = ("messages", "steps")
_LOGGED = re.compile(r"LOG:  (?:statement|execute [^:]*): ((?:.*)(?:\n\t.*)*)")
_COPIED = re.compile(r"COPY \((.*)\) TO STDOUT.*", re.DOTALL | re.IGNORECASE)
_LITERAL = re.compile(r"'(?:[^']|'')*'")


def measure(bench: Bench) -> Result:
    """Measure point 5."""
    result = Result("5", "Ten times the rows; twenty million other messages")
    small, large = (one_partition(runs) for runs in bench.size.scale)
    # The same number of agents, whose prompts and tools are in every row: otherwise ten times the runs would have
    # twenty times the bytes.
    small = replace(small, agents=large.agent_copies)
    crowded = replace(large, other_messages=bench.size.others)
    urls = {spec: bench.letta(spec) for spec in (small, large, crowded)}
    taken: dict[Any, list[float]] = {spec: [] for spec in urls}
    for _ in range(bench.size.tries):
        for spec, url in urls.items():
            bench.settle()
            with bench.sinks() as sinks, timed(taken[spec]):
                capture(url, sinks.database_url, str(sinks.folder))
    few = result.add(f"{small.runs:,} runs", taken[small])
    many = result.add(f"{large.runs:,} runs", taken[large])
    factor = large.runs / small.runs
    result.add("time / time", many / few, "×", at_most=1.05 * factor, note=f"of {factor:g} × the rows")
    beside = result.add(f"{large.runs:,} runs with {crowded.other_messages:,} other messages", taken[crowded])
    result.add("with the others / without", beside / many, "×", at_most=1.1, note="1 is the same")
    plans = source_plans(bench, urls[crowded])
    scans = [scan for plan in plans.values() for scan in sequential_scans(plan)]
    result.add("sequential scans of messages or steps", float(len(scans)), "plans", at_most=0)
    result.notes.append(f"EXPLAIN of the {len(plans)} different queries that one partition took.")
    result.details["plans"] = plans
    for spec in (small, crowded):
        if spec != one_partition(bench.size.runs):
            bench.drop(spec)
    return result


def source_plans(bench: Bench, url: str) -> dict[str, Any]:
    """Capture a partition and return the plan of each query that the source was sent, by the query's form.

    The queries are taken from the server's log, so that what is explained is what was really sent.
    """
    name = url.rpartition("/")[2]
    with psycopg.connect(bench.server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET log_statement = 'all'".encode())
        before = bench.server.log.stat().st_size
        with bench.sinks() as sinks:
            capture(url, sinks.database_url, str(sinks.folder))
        with bench.server.log.open("rb") as log:
            log.seek(before)
            logged = log.read().decode()
        connection.execute(f"ALTER DATABASE {name} RESET log_statement".encode())
    queries: dict[str, str] = {}
    for found in _LOGGED.finditer(logged):
        statement = found[1].replace("\n\t", "\n")
        query = _COPIED.sub(r"\1", statement).strip()
        if query.upper().startswith(("SELECT", "WITH")) and "public" in query:
            queries.setdefault(_form(query), query)
    with psycopg.connect(url) as connection:
        return {
            form: connection.execute(b"EXPLAIN (FORMAT JSON) " + query.encode()).fetchall()[0][0][0]["Plan"]
            for form, query in queries.items()
        }


def sequential_scans(plan: dict[str, Any]) -> list[str]:
    """Return the large tables that a plan reads from one end to the other."""
    own = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" and plan["Relation Name"] in _TABLES else []
    return own + [scan for part in plan.get("Plans", []) for scan in sequential_scans(part)]


def _form(query: str) -> str:
    """Return a query without its values: batches differ in nothing else."""
    return re.sub(r"(\?(, )?)+", "?", _LITERAL.sub("?", query))[:400]
