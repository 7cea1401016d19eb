"""Point 8: what loading the definitions costs, against Dagster alone."""

import re
import statistics
import subprocess
import sys

from benchmarks.bench import Bench
from benchmarks.measuring import Result, timed

_LISTED = 15
_BUILDING = """
from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.settings import load_settings
build_defs(load_settings())
"""


def measure(bench: Bench) -> Result:
    """Measure point 8."""
    result = Result("8", "Importing the definitions")
    reference: list[float] = []
    ours: list[float] = []
    tries = 2 * bench.size.tries + 1
    _run("import trajectory_pipeline.definitions")  # compiles what is not compiled yet
    for _ in range(tries):
        with timed(reference):
            _run("import dagster")
        with timed(ours):
            _run("import trajectory_pipeline.definitions")
    dagster = result.add("import dagster", reference, note="a process each, Python's own start included")
    definitions = result.add("import trajectory_pipeline.definitions", ours)
    result.add("definitions / dagster", definitions / dagster, "×", at_most=1.4)
    loading = _seconds_of(_BUILDING, tries)
    result.add("and building them", loading, note="import and build_defs()")
    slowest = import_times("import trajectory_pipeline.definitions")
    result.details["importtime_ms"] = slowest
    for name, own in list(slowest.items())[:5]:
        result.notes.append(f"{own:6.1f} ms in {name} itself")
    return result


def import_times(statement: str) -> dict[str, float]:
    """Return the packages that take longest by themselves, in ms, as ``-X importtime`` tells it, slowest first."""
    output = _run(statement, "-X", "importtime")
    own: dict[str, float] = {}
    for microseconds, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", output, re.MULTILINE):
        package = name.split(".")[0]
        own[package] = own.get(package, 0) + int(microseconds) / 1000
    return dict(sorted(own.items(), key=lambda pair: -pair[1])[:_LISTED])


def _seconds_of(statement: str, tries: int) -> float:
    taken: list[float] = []
    for _ in range(tries):
        with timed(taken):
            _run(statement)
    return statistics.median(taken)


def _run(statement: str, *options: str) -> str:
    done = subprocess.run([sys.executable, *options, "-c", statement], capture_output=True, text=True, check=True)
    return done.stderr
