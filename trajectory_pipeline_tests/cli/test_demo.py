"""The command ``demo``: it takes nothing from the settings that would reach data or a judge of the user's."""

import os
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.cli import demo
from trajectory_pipeline.databases import TRAJECTORY_DATABASE
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.settings import setting_fields
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs

OURS = {*setting_fields(), "DAGSTER_HOME"}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The settings that each demonstration would run with, instead of running it."""
    found: list[dict[str, str]] = []

    def run(**_: object) -> bool:
        found.append({name: value for name, value in os.environ.items() if name in OURS})
        return True

    monkeypatch.setattr(demo, "_run_demo", run)
    return found


def test_demo_forgets_settings_of_the_environment(run_command: Command, given: list[dict[str, str]]) -> None:
    result = run_command("demo", "--once", **dict.fromkeys(OURS - {"TRAJECTORY_DATA_FOLDER"}, "mine"))
    assert result.exit_code == 0
    assert given == [{"TRAJECTORY_DATA_FOLDER": "data/demo"}]
    for name in ("LETTA_PG_URI", "TRAJECTORY_DATABASE_URL", "OPENAI_API_KEY", "TRAJECTORY_STORAGE_URI"):
        assert name in squeezed(result)


def test_demo_does_not_read_a_file_of_settings(
    run_command: Command, given: list[dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("LETTA_PG_URI=postgresql://letta-db/letta\nTRAJECTORY_DATA_FOLDER=data\n")
    assert run_command("demo", "--once").output == ""
    assert given == [{"TRAJECTORY_DATA_FOLDER": "data/demo"}]


def test_demo_resets_no_folder_but_its_own(run_command: Command, given: list[dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "data" / "parquet").mkdir(parents=True)
    result = run_command("demo", "--reset", TRAJECTORY_DATA_FOLDER="data")
    assert (result.exit_code, given) == (2, [])
    assert "unset TRAJECTORY_DATA_FOLDER" in squeezed(result)
    assert (tmp_path / "data" / "parquet").is_dir()


def test_clean_leaves_only_what_it_did_not_make(run_command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("parquet/trajectories/part-0.parquet", "exports/sft/train.jsonl", "mine/notes.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    for name in ("dagster.log", "service.log"):
        (folder / name).write_text("x")
    assert run_command("clean", "--yes").exit_code == 0
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["mine", "mine/notes.txt"]


@pytest.mark.heavy
def test_demo_refuses_a_folder_with_other_trajectories_however_often_it_is_tried(
    run_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    with embedded_postgres.start(folder / "postgres") as server:
        server.ensure_database(TRAJECTORY_DATABASE)
        migrate(server.url(TRAJECTORY_DATABASE))
        with psycopg.connect(server.url(TRAJECTORY_DATABASE)) as connection:
            add_runs(connection, [Run("run-mine", "refund of a late parcel")])
        for _ in range(2):
            result = run_command("demo", "--once", TRAJECTORY_DATA_FOLDER=folder)
            assert result.exit_code == 2
            assert "holds trajectories that are not the demonstration's: unset" in squeezed(result)
