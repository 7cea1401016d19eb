"""Point 4: peak memory of the process, for any size of partition and length of run."""

from dataclasses import replace

from benchmarks.bench import FIRST_HOUR, Bench, capture_in_child, one_partition
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Result

_LIMIT_MB = 700


def measure(bench: Bench) -> Result:
    """Measure point 4."""
    result = Result("4", "Peak memory of the whole process")
    small, large = bench.size.memory
    # Short runs: only their number matters here, and half a million of the usual length fill 10 GB.
    short = DatabaseSpec(large, first_hour=FIRST_HOUR, extra_loops=0.0, length=0.2)
    # The same number of agents for few runs as for many, so that a row has the same size.
    few = _peak(bench, replace(short, runs=small, agents=short.agent_copies), result, f"{small:,} short runs")
    many = _peak(bench, short, result, f"{large:,} short runs in one partition")
    result.add("largest / smallest partition", many / few, "×", at_most=1.1)
    _peak(bench, one_partition(bench.size.runs), result, f"{bench.size.runs:,} usual runs")
    giant = replace(one_partition(1), giant_messages=bench.size.giant)
    _peak(bench, giant, result, f"one run of {bench.size.giant:,} messages")
    return result


def _peak(bench: Bench, spec: DatabaseSpec, result: Result, what: str) -> float:
    url = bench.letta(spec)
    with bench.sinks() as sinks:
        child = capture_in_child(url, sinks)
    if spec != one_partition(bench.size.runs):
        bench.drop(spec)
    note = f"{child.value['messages']:,} messages, {child.seconds:.1f} s"
    return result.add(what, child.peak_mb, "MB", at_most=_LIMIT_MB, note=note)
