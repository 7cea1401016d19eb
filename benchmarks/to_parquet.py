"""Point 1: both datasets to Parquet, against reading the same rows and discarding them."""

import shutil

from benchmarks.bench import FIRST_HOUR, Bench, one_partition
from benchmarks.measuring import Result
from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.runtime.threads import read_ahead
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore

COPY_OUT = tuple(rf"\copy public.{table} TO '/dev/null'" for table in ("runs", "steps", "messages"))


def measure(bench: Bench) -> Result:
    """Measure point 1."""
    result = Result("1", "Raw rows and trajectories to Parquet")
    url = bench.letta(one_partition(bench.size.runs))
    folder = bench.scratch / "to_parquet"
    reference: list[float] = []
    raw: list[float] = []
    converted: list[float] = []
    reference_cpu: list[float] = []
    raw_cpu: list[float] = []
    converted_cpu: list[float] = []
    bench.psql(url, *COPY_OUT)
    for _ in range(bench.size.tries):
        bench.settle()
        with bench.timed(reference, reference_cpu):
            bench.psql(url, *COPY_OUT)
        with bench.timed(raw, raw_cpu):
            write_raw(url, str(folder))
        with bench.timed(converted, converted_cpu):
            convert(str(folder))
        shutil.rmtree(folder)
    copied = result.add(r"psql \copy of runs, steps and messages to nowhere", reference)
    result.add("terminal_runs", raw)
    result.add("trajectories", converted)
    both = result.add("both", [a + b for a, b in zip(raw, converted, strict=True)])
    result.add("both / \\copy", both / copied, "×", at_most=3.5, note="aiming at 2.5")
    copied_cpu = result.add(
        "the same, processor time: \\copy", reference_cpu, note="of all processes, the server's too"
    )
    both_cpu = result.add("both", [a + b for a, b in zip(raw_cpu, converted_cpu, strict=True)])
    result.add("both / \\copy, processor time", both_cpu / copied_cpu, "×")
    result.notes.append(
        f"{bench.size.runs:,} runs in one partition; one dataset after the other, in one process, as the stages do."
    )
    return result


def write_raw(letta_url: str, folder: str) -> None:
    """Write one partition's raw rows, without any database but the source."""
    with (
        LettaSource(letta_url).snapshot() as snapshot,
        snapshot.prefetch_terminal_runs(FIRST_HOUR, FIRST_HOUR + HOUR) as present,
        read_ahead(present) as batches,
    ):
        ParquetStore(folder).write(TERMINAL_RUNS, FIRST_HOUR, batches)


def convert(folder: str) -> None:
    """Write one partition's trajectories, checked and typed, without any database."""
    store = ParquetStore(folder)
    key = partition_key(FIRST_HOUR)
    with (
        read_ahead(store.read(TERMINAL_RUNS, FIRST_HOUR)) as raw,
        read_ahead(convert_batch(batch, key).trajectories for batch in raw) as converted,
    ):
        store.write(TRAJECTORIES, FIRST_HOUR, converted)
