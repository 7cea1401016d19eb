"""The command ``families``: how often each kind of task succeeds."""

import json
from typing import Any

import click
from rich.text import Text

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.render_trajectory import plain_text
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.storage.postgres.task_families import family_outcomes
from trajectory_pipeline.urls import describe_postgres


@click.command("families")
@click.option("--family", "family_ids", multiple=True, metavar="ID", help="Only this one, as `search --json` names it.")
@click.option("--most", default=20, show_default=True, type=click.IntRange(1, 100_000), help="So many, with most runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(family_ids: tuple[str, ...], most: int, *, as_json: bool) -> None:
    """Show how often each kind of task succeeds, with 95 % intervals.

    Runs of the same kind of task are a task family. `3 of 4` says that three succeeded of four judged runs that are not
    `unknown`; the others are counted as left out. The runs of a family: `trajectory-pipeline search QUERY --family ID`.
    See docs/search.md.
    """
    database = open_sinks().storage.postgres
    rows = family_outcomes(database, max(most, len(family_ids)), family_ids)
    if unknown := sorted(set(family_ids) - {row["family_id"] for row in rows}):
        raise PipelineError(
            f"There is no task family {', '.join(unknown)} in {describe_postgres(database.url)}: `trajectory-pipeline"
            " families` lists those that there are."
        )
    if as_json:
        out.print_json(json.dumps({"families": rows}, default=str, ensure_ascii=False))
        return
    if not rows:
        out.print(
            "No run is in a task family yet: trajectory_embeddings makes families once 50 runs of an organization are"
            " embedded."
        )
        return
    numbers = ("runs", "success", "left out")
    print_table(
        ("family", "what its newest judged run did", *numbers),
        [_row(row) for row in rows],
        whole=("family", *numbers),
        numbers=numbers,
    )


def _row(row: dict[str, Any]) -> tuple[str | Text, ...]:
    rate = "–"
    if row["success_rate"] is not None:
        decided = row["success"] + row["partial_success"] + row["failure"]
        rate = f"{row['success']} of {decided}, {row['success_rate']:.0%}"
        rate += f"\n{row['success_low']:.0%}–{row['success_high']:.0%}"
    left_out = ((row["unknown"], "unknown"), (row["not_judged"], "not judged"))
    return (
        row["family_id"],
        plain_text((row["example"] or "").partition("\n")[0]),
        str(row["runs"]),
        rate,
        "\n".join(f"{count} {name}" for count, name in left_out if count),
    )
