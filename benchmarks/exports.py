"""Point 16: exports to each form: speed, and memory that does not grow with the number of runs."""

import contextlib
import threading
from pathlib import Path

import psutil

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Result, in_child
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.pipeline.export import ExportOptions, NothingSelectedError, export_dataset
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.storage.storage import Storage

_LIMIT_MB = 500
_ATIF_PER_SECOND = 1_000
_HOURS = 10
_BETWEEN_LOOKS = 0.5
"""Seconds: each look takes some hundredths of one from what is measured."""


def measure(bench: Bench) -> Result:
    """Measure point 16."""
    few, many = bench.size.exported
    result = Result("16", f"Exports, {few:,} and {many:,} trajectories, secrets redacted")
    for runs in (few, many):
        url = bench.letta(DatabaseSpec(runs, first_hour=FIRST_HOUR, hours=_HOURS))
        with bench.sinks() as sinks:
            bench.report(f"Capturing {runs:,} runs …")
            capture(url, sinks.database_url, str(sinks.folder), _HOURS)
            bench.settle()
            for kind in ExportFormat:
                _measure(bench, sinks, kind, runs, result)
    return result


def _measure(bench: Bench, sinks: Sinks, kind: ExportFormat, runs: int, result: Result) -> None:
    # Removed at the end only: ext4 takes ten times as long to create a file just after others were deleted.
    target = bench.scratch / f"export-{kind}-{runs}"
    child = in_child(
        f"{__name__}:export",
        database_url=sinks.database_url,
        folder=str(sinks.folder),
        target=str(target),
        form=kind.value,
    )
    rate = runs / child.seconds
    bench.report(f"… {kind}: {rate:,.0f} runs/s, {child.value['peak_mb']:.0f} MB")
    result.add(
        f"{kind}, {runs:,}",
        rate,
        "runs/s",
        at_least=_ATIF_PER_SECOND if kind is ExportFormat.ATIF else None,
        note=f"{child.seconds:.1f} s, {child.value['records']:,} records, {child.value['megabytes']:.0f} MB",
    )
    result.add(f"{kind}, {runs:,}: memory of all its processes", child.value["peak_mb"], "MB", at_most=_LIMIT_MB)


def export(database_url: str, folder: str, target: str, form: str, redaction: str = "secrets") -> dict[str, float]:
    """Write a dataset; returns its records and size, and the most memory that all processes together had."""
    storage = Storage.at(folder, database_url)
    options = ExportOptions(
        ExportFormat(form), redaction=RedactionMode(redaction), redaction_key=b"of this measurement"
    )
    with _Peak() as peak, storage.pooled() as pooled:
        try:
            records = sum(export_dataset(pooled, target, ExportFilters(), options).records.values())
        except NothingSelectedError:
            # Few generated runs have no pair of a success and a failure of the same task.
            records = 0
    size = sum(file.stat().st_size for file in Path(target).rglob("*") if file.is_file())
    return {"records": records, "megabytes": size / 1e6, "peak_mb": peak.megabytes}


class _Peak:
    """The most memory that this process and those that it started had together; pages that they share count once."""

    def __init__(self) -> None:
        self.megabytes = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(_BETWEEN_LOOKS):
            total = 0
            for process in (own, *own.children(recursive=True)):
                # One that ends meanwhile has none.
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_full_info().pss
            self.megabytes = max(self.megabytes, total / 1e6)
