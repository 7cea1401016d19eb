"""The examples in the README and in docs/ run as they stand on the demonstration's data."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_INSTALLED = {"import polars", "from datasets"}
"""Readers that the environment of the tests does not have. Their examples are not run."""


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return ``(page, text)`` of each fenced block in this language, also where it stands in a list."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [
        (path.name, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for path in PAGES
        for indent, text in fence.findall(path.read_text())
    ]


SQL = _blocks("sql")
PYTHON = [(page, code) for page, code in _blocks("python") if not any(name in code for name in NOT_INSTALLED)]


@pytest.fixture(scope="module")
def materialized(
    make_own_settings: Callable[[], Settings], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Path]:
    """Settings of the captured and converted story, and the folder in which `data/demo/parquet` holds its files."""
    settings = make_own_settings()
    folder = tmp_path_factory.mktemp("examples")
    store = folder / "data" / "demo" / "parquet"
    source, sink = settings.source.postgres_url, settings.storage.database_url
    with psycopg.connect(source) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    STORY.load(source)
    Pipeline(source, sink, store).capture(*STORY.partitions())
    return settings, folder


def test_pages_hold_examples() -> None:
    assert {page for page, _ in SQL} >= {"README.md", "reading-back.md", "runbook.md", "budget.md", "privacy.md"}
    assert {page for page, _ in PYTHON} >= {"README.md", "reading-back.md", "architecture.md"}


@pytest.mark.parametrize(("page", "text"), SQL)
def test_sql_example_runs(page: str, text: str, materialized: tuple[Settings, Path]) -> None:
    settings, _ = materialized
    with psycopg.connect(settings.storage.database_url) as connection:
        for statement in text.split(";\n"):
            connection.execute(statement.encode())


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_example_prints(
    page: str, code: str, materialized: tuple[Settings, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = materialized
    monkeypatch.chdir(folder)
    code = code.replace("postgresql://reader:secret@letta-db:5432/letta", settings.source.postgres_url)
    code = code.replace("DATA/", "data/demo/parquet/")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), {"__name__": "example"})
    assert printed.getvalue().strip()
