"""The command that writes results into `docs/benchmarks-log.md`: `python -m benchmarks.page results.json …`."""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.measuring import Limit, shown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks-log.md"
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(results: tuple[Path, ...]) -> None:
    """Replace the figures of docs/benchmarks-log.md by those of RESULTS, a table for each."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise click.ClickException(f"{PAGE} lacks the lines {_BEGIN} and {_END}.")
    tables = ("\n".join(markdown(json.loads(path.read_text(encoding="utf-8")))) for path in results)
    figures = "\n\n".join(tables)
    PAGE.write_text(f"{before}{_BEGIN}\n{figures}\n{_END}{after}", encoding="utf-8")


def markdown(output: dict[str, Any]) -> list[str]:
    """Return results as lines of Markdown."""
    where = output["machine"]
    sizes = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in output["size"].items())
    lines = [
        f"Measured at {output['at']} on {where['processor']}, {where['cores']} cores, {where['memory_gb']} GB,"
        f" {where['system']}, Python {where['python']}. Load average before {_loads(where['load_average'])},"
        f" after {_loads(output['load_average_after'])}. Sizes: {sizes}.",
        "",
        "| | what | figure | limit | | |",
        "|---|---|---:|---:|---|---|",
    ]
    for result in output["results"]:
        lines.append(f"| **{result['point']}** | **{result['title']}** | | | | |")
        for line in result["lines"]:
            limit = str(Limit(**line["limit"])) if line["limit"] else ""
            met = {None: "", True: "met", False: "**missed**"}[line["met"]]
            cells = (line["what"], shown(line["value"], line["unit"]), limit, met, line["note"])
            lines.append(f"| | {' | '.join(cells)} |")
    lines += [
        "",
        *(f"- {result['point']}: {note}" for result in output["results"] for note in result["notes"]),
    ]
    return lines


def _loads(loads: list[float]) -> str:
    return " / ".join(f"{load:g}" for load in loads)


def _number(value: int | list[int]) -> str:
    return " and ".join(f"{number:,}" for number in value) if isinstance(value, list) else f"{value:,}"


if __name__ == "__main__":
    main()
