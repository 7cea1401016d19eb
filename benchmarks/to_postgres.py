"""Point 2: both sinks, against reading the rows and writing finished documents with psql."""

from pathlib import Path

from benchmarks.bench import Bench, capture, one_partition
from benchmarks.measuring import Result
from benchmarks.to_parquet import COPY_OUT

# INCLUDING ALL: indexes, and lz4 on the documents.
_TABLE = (
    "DROP TABLE IF EXISTS documents",
    "CREATE TABLE documents (LIKE trajectory.trajectories INCLUDING ALL)",
)


def measure(bench: Bench) -> Result:
    """Measure point 2."""
    result = Result("2", "Both sinks, Parquet and Postgres")
    url = bench.letta(one_partition(bench.size.runs))
    file = bench.scratch / "documents.copy"
    out: list[float] = []
    out_cpu: list[float] = []
    ours: list[float] = []
    ours_cpu: list[float] = []
    into: list[float] = []
    into_cpu: list[float] = []
    for _ in range(bench.size.tries):
        bench.settle()
        with bench.timed(out, out_cpu):
            bench.psql(url, *COPY_OUT)
        with bench.sinks() as sinks:
            with bench.timed(ours, ours_cpu):
                capture(url, sinks.database_url, str(sinks.folder))
            bench.psql(sinks.database_url, rf"\copy trajectory.trajectories TO '{file}'", *_TABLE)
            bench.settle()
            with bench.timed(into, into_cpu):
                bench.psql(sinks.database_url, rf"\copy documents FROM '{file}'")
        result.details["documents_bytes"] = file.stat().st_size
        Path(file).unlink()
    copied_out = result.add(r"psql \copy of runs, steps and messages to nowhere", out)
    copied_in = result.add(r"psql \copy of the finished documents into lz4 jsonb, same indexes", into)
    both = result.add("terminal_runs and trajectories, Parquet and Postgres", ours)
    result.add("both sinks / both \\copy", both / (copied_out + copied_in), "×", at_most=1.2)
    copied_cpu = result.add(
        r"the same, processor time: both \copy",
        [a + b for a, b in zip(out_cpu, into_cpu, strict=True)],
        note="of all processes, the server's too",
    )
    both_cpu = result.add("both sinks", ours_cpu)
    result.add("both sinks / both \\copy, processor time", both_cpu / copied_cpu, "×")
    return result
