"""The command that runs the measurements: `python -m benchmarks --help`."""

import importlib
import json
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.bench import SIZES, Size, open_bench
from benchmarks.measuring import Result, as_json, machine, print_result

MODULES = {
    "1": "to_parquet",
    "2": "to_postgres",
    "3": "against_orm",
    "4": "memory",
    "5": "growth",
    "6": "many_partitions",
    "7": "unchanged",
    "8": "imports",
    "9": "reading_back",
    "10": "judging",
    "11": "empty_hours",
    "12": "large_report",
    "13": "shapes",
    "15": "serving",
    "16": "exports",
}

_FILE_WIDTH = 150


def _sized(name: str, changes: tuple[str, ...]) -> Size:
    values: dict[str, Any] = dict(vars(SIZES[name]))
    for change in changes:
        field, _, value = change.partition("=")
        if field not in values:
            raise click.BadParameter(f"{field!r} is none of {', '.join(values)}", param_hint="--set")
        numbers = tuple(int(number) for number in value.split(","))
        values[field] = numbers if isinstance(values[field], tuple) else numbers[0]
    return Size(**values)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("points", nargs=-1, type=click.Choice(list(MODULES)))
@click.option("--size", "name", type=click.Choice(list(SIZES)), default="laptop")
@click.option("--set", "changes", multiple=True, metavar="NAME=NUMBER", help="Another size, such as runs=10000.")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), help="File for the results.")
@click.option("--scratch", type=click.Path(file_okay=False, path_type=Path), help="Folder for all data, then removed.")
def main(
    points: tuple[str, ...], name: str, changes: tuple[str, ...], target: Path | None, scratch: Path | None
) -> None:
    """Measure the POINTS given, or all."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    size = _sized(name, changes)
    folder = Path(tempfile.mkdtemp(prefix="benchmarks-")) if scratch is None else scratch / "benchmarks"
    where = machine()
    console.print(
        f"{where['processor']}, {where['cores']} cores, {where['memory_gb']} GB, load {where['load_average']}"
    )
    results: list[Result] = []
    started = time.monotonic()
    try:
        with open_bench(size, folder, lambda words: console.print(words, style="dim", highlight=False)) as bench:
            for point in points or MODULES:
                module = importlib.import_module(f"benchmarks.{MODULES[point]}")
                results.append(module.measure(bench))
                print_result(console, results[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if target is not None:
            output = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": where,
                "load_average_after": machine()["load_average"],
                "size": vars(size),
                "results": [as_json(result) for result in results],
            }
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(output, indent=2) + "\n", encoding="utf-8")
    console.print(f"\n{len(results)} measurements in {time.monotonic() - started:.0f} s", style="dim")


if __name__ == "__main__":
    main()
