"""Tables on terminals of any width: every cell is whole, and lines with ids are never broken."""

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console

from trajectory_pipeline.cli import console, tables
from trajectory_pipeline.cli.tables import print_table

ID = "run-e7802658-9624-43b0-b11e-a47969ef2839"
CLI = Path(tables.__file__).parent


@pytest.fixture(params=[20, 40, 80, 120, 200])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    screen = Console(file=io.StringIO(), width=request.param, soft_wrap=True, highlight=False)
    monkeypatch.setattr(tables, "out", screen)
    return screen


def test_no_id_is_cut_at_any_width(screen: Console) -> None:
    rows = [[ID, f"agent-{ID}\nof two lines", "some words " * 20 + ID, "12"] for _ in range(3)]
    print_table(("run", "who", "what", "count"), rows, whole=("run", "who"), numbers=("count",))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]  # its file is a StringIO
    assert shown.count(f"agent-{ID}") == 3
    assert sum(f"│ {ID} │" in line for line in shown.splitlines()) == 3
    assert "…" not in shown
    words = "".join(line.split("│")[3].strip() for line in shown.splitlines() if line.count("│") == 5)
    assert words.replace(" ", "") == ("some words " * 20 + ID).replace(" ", "") * 3


def test_table_is_no_wider_than_the_terminal_where_it_fits(screen: Console) -> None:
    print_table(("id", "what"), [["3f2a91bc04de", "some words " * 20]], whole=("id",))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]  # its file is a StringIO
    if screen.width > 40:
        assert max(map(len, shown.splitlines())) <= screen.width


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_every_command_prints_its_tables_so(path: Path) -> None:
    """A table that rich lays out by itself cuts what does not fit."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    makes_tables = any(node.module == "rich.table" for node in imports)
    assert not makes_tables or path.stem in ("tables", "exports")


def test_console_is_the_one_that_commands_print_to() -> None:
    assert tables.out is console.out
