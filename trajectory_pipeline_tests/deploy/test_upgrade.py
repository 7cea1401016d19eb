"""An upgrade of a database and files that an older version made, and both versions at once during a rollout."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.stale_partitions import built_by_older_versions, find_stale_partitions
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.schema_revision import head_revision
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.distributed.equality import check_equal_to_scratch
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.heavy, pytest.mark.process]
PROJECT = Path(__file__).parents[2]
OLD = "f8be494ca4fae46ed5c8fd31ad8fbaee38737c42"
"""The commit since which migrations are only appended."""
OLD_PROGRAM = """
import json, sys
from datetime import datetime
from pathlib import Path
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
order = json.loads(sys.argv[1])
pipeline = Pipeline(order["letta"], order["database"], Path(order["folder"]), order["judge"])
hours = [datetime.fromisoformat(hour) for hour in order["hours"]]
if order["migrate"]:
    migrate(order["database"])
try:
    for number in range(order["rounds"]):
        pipeline.capture(*hours)
        print("round", number, flush=True)
    for hour in hours[:order["judged"]]:
        pipeline.refine(hour)
except PipelineError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def old_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older version's files."""
    folder: Path = tmp_path_factory.mktemp("old")
    archive = subprocess.run(["git", "archive", OLD], cwd=PROJECT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def start_old_version(
    folder: Path, pipeline: Pipeline, hours: list[datetime], *, migrates: bool = False, judged: int = 0, rounds: int = 1
) -> "subprocess.Popen[str]":
    order = {
        "letta": pipeline.letta_url,
        "database": pipeline.database_url,
        "folder": str(pipeline.folder),
        "judge": pipeline.judge_url,
        "hours": [hour.isoformat() for hour in hours],
        "migrate": migrates,
        "judged": judged,
        "rounds": rounds,
    }
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OLD_PROGRAM, json.dumps(order)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(process: "subprocess.Popen[str]") -> str:
    """Return the last line that the older version says, when it has ended."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.splitlines()[-1]


def test_upgrade_goes_on_where_the_older_version_stopped(
    old_version: Path,
    letta_database: str,
    make_database: Callable[[str | None], str],
    judge: SimulatedJudge,
    tmp_path: Path,
) -> None:
    hours = sorted(sample_partitions())[-12:]
    pipeline = Pipeline(letta_database, make_database(None), tmp_path / "parquet", judge.base_url)
    assert last_line(start_old_version(old_version, pipeline, hours, migrates=True, judged=2)) == "round 0"
    paid = "SELECT run_id, verdict_key, verdict_status, outcome, cost_usd FROM trajectory.verdicts ORDER BY 1, 2"
    verdicts = pipeline.ask(paid)
    assert verdicts
    captured = [row["run_id"] for row in pipeline.ask("SELECT run_id FROM trajectory.trajectories ORDER BY 1")]

    migrate(pipeline.database_url)
    # What was captured and paid for can be read at once, and partitions of the older version are named.
    assert pipeline.ask(paid) == verdicts
    assert [row["run_id"] for row in pipeline.ask("SELECT run_id FROM trajectory.outcomes ORDER BY 1")] == captured
    assert len(built_by_older_versions(pipeline.database)) == len(hours)

    # A worker of the older version that is still there changes nothing, and says why.
    before = pipeline.files()
    said = last_line(start_old_version(old_version, pipeline, hours[:1]))
    assert f"is at revision {head_revision()}" in said
    assert pipeline.files() == before

    # The new version goes on: the same rows as a build from scratch, and the old verdicts stay.
    pipeline.capture(*hours)
    scratch = Pipeline(letta_database, make_database("template_trajectory"), tmp_path / "scratch")
    scratch.capture(*hours)
    check_equal_to_scratch(pipeline, scratch, hours, complete=False)
    assert built_by_older_versions(pipeline.database) == []
    assert [row for row in pipeline.ask(paid) if row in verdicts] == verdicts


def test_two_versions_at_work_during_a_rollout_leave_what_the_new_one_makes(
    old_version: Path, letta_database: str, make_database: Callable[[str | None], str], tmp_path: Path
) -> None:
    hours = sorted(sample_partitions())[-4:]
    pipeline = Pipeline(letta_database, make_database(None), tmp_path / "parquet")
    # The older version captures without a pause, and rows change under it.
    old = start_old_version(old_version, pipeline, hours, migrates=True, rounds=10_000)
    try:
        assert old.stdout is not None
        assert old.stdout.readline() == "round 0\n"
        mark(pipeline, "during the rollout", hours)
        migrate(pipeline.database_url)
        # The new version works at once, on the same partitions, while the older one may be in the middle of one.
        pipeline.capture(*hours)
        assert f"is at revision {head_revision()}" in last_line(old)
    finally:
        old.kill()
        old.wait()
    pipeline.capture(*find_stale_partitions(LettaSource(pipeline.letta_url), pipeline.database, hours))
    scratch = Pipeline(letta_database, make_database("template_trajectory"), tmp_path / "scratch")
    scratch.capture(*hours)
    check_equal_to_scratch(pipeline, scratch, hours, complete=False)
