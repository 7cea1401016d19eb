"""Tables for the terminal that show every cell whole: an id that is cut can be neither copied nor searched for."""

from collections.abc import Collection, Iterable, Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from trajectory_pipeline.cli.console import out

_NARROWEST = 12
"""Cells that a column of words has at least; a longer word goes on in the next line."""


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    whole: Collection[str] = (),
    numbers: Collection[str] = (),
) -> None:
    """Print a table. Where the terminal is too narrow for it, its lines are longer than the terminal's.

    Args:
        headers: of the columns.
        rows: texts of the cells; text of agents or users as ``plain_text``.
        whole: headers of columns whose lines are never broken: ids, and names that are typed again.
        numbers: headers of columns that are aligned to the right.
    """
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    table, width = Table(), 1
    for at, header in enumerate(headers):
        lines = [header, *(line for row in cells for line in row[at].plain.splitlines())]
        longest = max(map(cell_len, lines))
        narrowest = longest if header in whole else min(longest, _NARROWEST)
        width += narrowest + 3
        table.add_column(
            header,
            justify="right" if header in numbers else "left",
            no_wrap=header in whole,
            overflow="fold",
            min_width=narrowest,
        )
    for row in cells:
        table.add_row(*row)
    if width > out.width:
        table.width = width
    out.print(table, soft_wrap=False, crop=False)


def grid() -> Table:
    """Return a table of two columns without lines, names and values; long words go on in the next line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
