"""SQL stands in ``storage`` and ``letta`` only; ``demo`` may hold that of its own sample and server."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trajectory_pipeline

ROOT = Path(trajectory_pipeline.__path__[0])
MAY_HOLD_SQL = {"storage", "letta", "demo"}
STATEMENT = re.compile(
    r"^\s*WITH\s+(?:RECURSIVE\s+)?\w+\s+AS\b"
    r"|^\s*EXPLAIN\s+(?:\(|ANALYZE|VERBOSE|SELECT)"
    r"|^\s*(?:SELECT|INSERT\s+INTO|DELETE\s+FROM|TRUNCATE)\s"
    r"|^\s*UPDATE\s+\S+\s+(?:\w+\s+)?SET\b"
    r"|^\s*COPY\s+\S+.*\b(?:FROM|TO)\b"
    r"|^\s*(?:CREATE|ALTER|DROP)\s+(?:TABLE|INDEX|VIEW|SCHEMA|DATABASE)\s"
    r"|\b(?:FROM|INTO|JOIN)\s+trajectory\.\w?",
    re.DOTALL,
)


def statements(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each SQL statement in a string of the source; docstrings are no statements."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in docstrings:
            continue
        text = node.value.decode(errors="replace") if isinstance(node.value, bytes) else node.value
        if isinstance(text, str) and STATEMENT.search(text):
            yield node.lineno, text


def misplaced(root: Path) -> list[str]:
    """Return each statement outside the packages that may hold SQL, as ``file:line: text``."""
    return [
        f"{path.relative_to(root)}:{line}: {text[:60]}"
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in MAY_HOLD_SQL
        for line, text in statements(path.read_text())
    ]


def test_sql_is_in_storage_and_letta_only() -> None:
    assert misplaced(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        'rows = database.rows("SELECT count(*) FROM trajectory.trajectories")',
        'rows = database.rows(f"SELECT * FROM trajectory.{table}")',
        "connection.execute(b'DELETE FROM trajectory.verdicts WHERE run_id = 1')",
        'connection.execute("INSERT INTO trajectory.partitions VALUES (1)")',
        'connection.execute("UPDATE trajectory.verdicts SET erased = true")',
        'snapshot.read("Looking", "EXPLAIN SELECT 1")',
        'snapshot.read("Looking", """\n  WITH some AS (SELECT 1) SELECT * FROM some""")',
        'rows("SELECT clock_timestamp() AS now")',
        'suffix = " LEFT JOIN trajectory.policies p"',
    ],
)
def test_sql_in_another_package_is_found(tmp_path: Path, line: str) -> None:
    for package in ("maintenance", "storage"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "planted.py").write_text(f'"""SELECT in a docstring is text."""\n{line}\n')
    assert [found.split(": ")[0] for found in misplaced(tmp_path)] == ["maintenance/planted.py:2"]
