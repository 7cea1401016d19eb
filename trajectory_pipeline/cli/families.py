"""The command ``families``: how often each kind of task succeeds."""

import json
from typing import Any

import click
from rich.table import Column, Table

from trajectory_pipeline.cli.connections import open_connections
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.cli.render_trajectory import plain_text
from trajectory_pipeline.storage.postgres.task_families import family_outcomes


@click.command("families")
@click.option("--family", "family_ids", multiple=True, metavar="ID", help="Only this one, as `search --json` names it.")
@click.option("--most", default=20, show_default=True, type=click.IntRange(1, 100_000), help="Those with most runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(family_ids: tuple[str, ...], most: int, *, as_json: bool) -> None:
    """Show how often each kind of task succeeds, with 95 % intervals.

    Runs of the same kind of task are a task family. The rate is of judged runs that are not `unknown`. The runs of a
    family: `trajectory-pipeline search QUERY --family ID`. See docs/search.md.
    """
    rows = family_outcomes(open_connections().storage.postgres, most, family_ids)
    if as_json:
        out.print_json(json.dumps({"families": rows}, default=str, ensure_ascii=False))
        return
    if not rows:
        out.print(
            "There is no such family."
            if family_ids
            else "No run is in a task family yet: trajectory_embeddings makes families once 50 runs of an organization"
            " are embedded."
        )
        return
    # The id is what one copies.
    table = Table(
        Column("family", no_wrap=True),
        "what its newest judged run did",
        *_numbers("runs", "judged", "success", "95 % interval"),
    )
    for row in rows:
        judged = row["runs"] - row["not_judged"]
        table.add_row(
            row["family_id"],
            plain_text((row["example"] or "").partition("\n")[0]),
            str(row["runs"]),
            str(judged),
            *_rate(row),
        )
    out.print(table, soft_wrap=False)


def _numbers(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _rate(row: dict[str, Any]) -> tuple[str, str]:
    if row["success_rate"] is None:
        return "–", "–"
    return f"{row['success_rate']:.0%}", f"{row['success_low']:.0%}–{row['success_high']:.0%}"
