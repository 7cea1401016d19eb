"""What all measurements share: the result, medians, child processes, and output.

A measurement is a function ``measure(bench: Bench) -> Result`` in a module of its own, listed in ``__main__``.
"""

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Limit:
    """What a figure is to be: at most, or at least, a value."""

    value: float
    least: bool = False

    def holds(self, figure: float) -> bool:
        """Whether a figure keeps it."""
        return figure >= self.value if self.least else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.value:g}"


@dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: was measured, in words.
        value: the figure; of several tries the median.
        unit: ``s``, ``ms``, ``MB``, ``×`` (a ratio of two of the lines above it), or a word for what was counted.
        limit: what it is to be; None for a figure that others refer to.
        note: what a reader has to know to understand it.
        tries: all figures of which the value is the median.
    """

    what: str
    value: float
    unit: str = "s"
    limit: Limit | None = None
    note: str = ""
    tries: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        """Whether it is what it is to be; None without a limit."""
        return None if self.limit is None else self.limit.holds(self.value)


@dataclass
class Result:
    """What one measurement found.

    Attributes:
        point: which one, such as ``1``.
        title: what it is about.
        lines: its figures.
        notes: sentences about all of it: sizes, shares, plans.
        details: whatever else the JSON is to hold.
    """

    point: str
    title: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        what: str,
        value: float | list[float],
        unit: str = "s",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        note: str = "",
    ) -> float:
        """Add a figure (the median, of several) and return it."""
        tries = tuple(value) if isinstance(value, list) else ()
        figure = statistics.median(value) if isinstance(value, list) else value
        limit = None
        if at_most is not None:
            limit = Limit(at_most)
        elif at_least is not None:
            limit = Limit(at_least, least=True)
        self.lines.append(Line(what, figure, unit, limit, note, tries))
        return figure


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    started = time.perf_counter()
    yield
    into.append(time.perf_counter() - started)


def seconds(function: Callable[[], object], times: int) -> list[float]:
    """Return how long each of so many calls took."""
    taken: list[float] = []
    for _ in range(times):
        with timed(taken):
            function()
    return taken


@dataclass(frozen=True)
class Child:
    """What became of a call in a process of its own.

    Attributes:
        value: what the function returned (JSON).
        seconds: the call alone, without starting Python.
        processor_seconds: of its process for the call, all threads included; the server's are not.
        peak_mb: the largest resident memory that the process had, all threads and imports included, in 10⁶ bytes.
    """

    value: Any
    seconds: float
    peak_mb: float
    processor_seconds: float


def in_child(function: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> Child:
    """Call a function in a fresh Python process.

    Args:
        function: ``package.module:name``; called with keyword arguments, returns what JSON can hold.
        environment: variables more.
        arguments: that JSON can hold.

    Raises:
        RuntimeError: the process failed; the text ends with what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measuring", function, json.dumps(arguments)],
        cwd=_REPOSITORY,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{function} failed in its process:\n{done.stderr[-4_000:]}")
    return Child(**json.loads(done.stdout.splitlines()[-1]))


def peak_mb() -> float:
    """Return the largest resident memory that this process has had so far, in 10⁶ bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: that one remembers the process which started this one.
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def machine() -> dict[str, Any]:
    """Describe where this runs, and how busy it is."""
    import psutil

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def table_of(result: Result) -> Table:
    """Return a result as a table for the terminal."""
    table = Table(title=f"{result.point}. {result.title}", title_justify="left", title_style="bold", expand=False)
    for heading, align in (("what", "left"), ("figure", "right"), ("limit", "right"), ("", "left"), ("note", "left")):
        table.add_column(heading, justify=align)  # type: ignore[arg-type]
    for line in result.lines:
        verdict = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[line.met]
        table.add_row(line.what, shown(line.value, line.unit), str(line.limit or ""), verdict, line.note)
    return table


def shown(value: float, unit: str) -> str:
    """Return a figure with its unit, as precise as it makes sense."""
    number = f"{value:,.0f}" if abs(value) >= 100 or (value == int(value) and abs(value) >= 10) else f"{value:.3g}"
    return f"{number} {unit}"


def print_result(console: Console, result: Result) -> None:
    """Print a result."""
    console.print()
    console.print(table_of(result))
    for note in result.notes:
        console.print(f"  {note}", highlight=False)


def as_json(result: Result) -> dict[str, Any]:
    """Return a result as JSON holds it, with what was met."""
    return {**asdict(result), "lines": [{**asdict(line), "met": line.met} for line in result.lines]}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _main(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    started, spent_before = time.perf_counter(), time.process_time()
    value = call(**json.loads(arguments))
    taken, spent = time.perf_counter() - started, time.process_time() - spent_before
    print(json.dumps(asdict(Child(value, taken, peak_mb(), spent))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
