"""The examples in the README and in docs/ run as they stand on the demonstration's data."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from trajectory_pipeline.cli.main import main
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.pipeline.export import ExportOptions, export_dataset
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline_tests.exports.collector import running_collector
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_INSTALLED = {"import polars", "from inspect_scout import"}
"""Readers that the environment of the tests does not have. Their examples are not run here."""
ELSEWHERE = {"class LinesSource"}
"""A module that ``sources/test_own_source.py`` uses."""
DATASETS = {
    "data/good-runs": ExportFormat.SFT,
    "all-runs": ExportFormat.ATIF,
    "records": ExportFormat.TRAJECTORY_V1,
    "tables": ExportFormat.PARQUET,
}
"""What the commands of the pages write, by the folder that the examples open."""


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return ``(page, text)`` of each fenced block in this language, also where it stands in a list."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [
        (path.name, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for path in PAGES
        for indent, text in fence.findall(path.read_text())
    ]


SQL = _blocks("sql")
PYTHON = [
    (page, code) for page, code in _blocks("python") if not any(name in code for name in NOT_INSTALLED | ELSEWHERE)
]


def test_pages_hold_examples() -> None:
    assert {page for page, _ in SQL} >= {"README.md", "reading-back.md", "runbook.md", "budget.md", "privacy.md"}
    assert {page for page, _ in PYTHON} >= {"README.md", "reading-back.md", "architecture.md"}


@pytest.mark.parametrize(("page", "text"), SQL)
def test_sql_example_runs(page: str, text: str, story: Pipeline) -> None:
    with psycopg.connect(story.database_url) as connection:
        for statement in text.split(";\n"):
            connection.execute(statement.encode())


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_example_prints(
    page: str, code: str, story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demo").symlink_to(story.folder.parent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAJECTORY_DATA_FOLDER", "data/demo")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    good = ExportFilters(outcomes=("success",), judged_only=True)
    for folder, form in DATASETS.items():
        if f'"{folder}' in code:
            export_dataset(story.storage, str(tmp_path / folder), good, ExportOptions(form))
    code = code.replace("postgresql://reader:secret@letta-db:5432/letta", story.letta_url)
    code = code.replace("DATA/", "data/demo/parquet/")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), {"__name__": "example"})
    assert printed.getvalue().strip()


@pytest.mark.heavy
def test_export_command_of_the_page_writes_its_dataset(
    own_story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word by word, but for the collector's address; no bucket is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETTA_PG_URI", own_story.letta_url)
    monkeypatch.setenv("TRAJECTORY_DATABASE_URL", own_story.database_url)
    monkeypatch.setenv("TRAJECTORY_DATA_FOLDER", str(own_story.folder.parent))
    page = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    lines = re.findall(r"^trajectory-pipeline (export .+)$", page, re.MULTILINE)
    (shown,) = re.findall(r"trajectory-pipeline (export .+)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert shown in lines
    commands = [shlex.split(line) for line in lines if "://bucket" not in line]
    assert {command[1] for command in commands} >= {"sft", "atif", "trajectory-v1", "scout", "otel", "parquet"}
    with running_collector() as collector:
        for command in commands:
            here = [collector.url if argument.startswith("http://localhost:") else argument for argument in command]
            result = CliRunner().invoke(main, here, prog_name="trajectory-pipeline")
            assert result.exit_code == 0, (command, result.output)
            assert (tmp_path / command[2] / "manifest.json").exists()
        assert collector.spans


def test_each_picture_is_shown_small_and_made_by_the_tests() -> None:
    """`make screenshots` renews a picture by its name: one that no test makes would grow old."""
    pages = "".join(path.read_text() for path in PAGES)
    tests = "".join(path.read_text() for path in (ROOT / "trajectory_pipeline_tests" / "browser").glob("*.py"))
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert f"images/{picture.name})" in pages
        name, _, variant = picture.stem.partition("report-")
        of_a_window = f'f"{picture.stem.rpartition("-")[0]}-{{'
        made = f'"{picture.stem}"' in tests or of_a_window in tests or (not name and f'"{variant}":' in tests)
        assert made, picture.name
        assert picture.stat().st_size < 250_000
