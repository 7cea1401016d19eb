"""Point 16: exports to each form: speed, and memory that does not grow with the number of runs."""

import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Result
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.storage.export_target import MANIFEST

_LIMIT_MB = 500
_ATIF_PER_SECOND = 1_000
_HOURS = 10
_NOTHING_SELECTED = 1
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
    exported = export(sinks, target, kind)
    rate = runs / exported.seconds
    bench.report(f"… {kind}: {rate:,.0f} runs/s, {exported.peak_mb:.0f} MB")
    result.add(
        f"{kind}, {runs:,}",
        rate,
        "runs/s",
        at_least=_ATIF_PER_SECOND if kind is ExportFormat.ATIF else None,
        note=f"{exported.seconds:.1f} s with the start of Python, {exported.records:,} records,"
        f" {exported.megabytes:.0f} MB",
    )
    result.add(f"{kind}, {runs:,}: memory of all its processes", exported.peak_mb, "MB", at_most=_LIMIT_MB)


@dataclass(frozen=True)
class Exported:
    """What one command did.

    Attributes:
        megabytes: of its files.
        peak_mb: the most memory that its processes had together; pages that they share count once.
    """

    seconds: float
    records: int
    megabytes: float
    peak_mb: float


def export(sinks: Sinks, target: Path, kind: ExportFormat) -> Exported:
    """Run the command as a user does.

    Raises:
        RuntimeError: it failed; that nothing is selected is no failure: few generated runs have pairs.
    """
    command = [str(Path(sys.executable).with_name("trajectory-pipeline")), "export", kind.value, str(target)]
    environment = {
        **os.environ,
        "TRAJECTORY_DATABASE_URL": sinks.database_url,
        "TRAJECTORY_STORAGE_URI": str(sinks.folder),
    }
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(command, env=environment, stdout=said, stderr=said)
        while True:
            # One that ends meanwhile has no memory.
            with contextlib.suppress(psutil.NoSuchProcess):
                of_all = (process, *process.children(recursive=True))
                peak = max(peak, sum(each.memory_full_info().pss for each in of_all) / 1e6)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(_BETWEEN_LOOKS)
                break
        seconds = time.perf_counter() - started
        said.seek(0)
        text = said.read().decode()
    if process.returncode == _NOTHING_SELECTED:
        return Exported(seconds, 0, 0, peak)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {text}")
    manifest = json.loads((target / MANIFEST).read_bytes())
    size = sum(file["bytes"] for file in manifest["files"].values())
    return Exported(seconds, sum(manifest["records"].values()), size / 1e6, peak)
