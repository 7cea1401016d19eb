"""The contract with readers and with a second writer: whole versions only, and of two writers one after the other.

Every run of the partition carries the number of its version. Readers in a process of their own read it in a loop,
in Postgres by one statement and in Parquet by two libraries, while it is materialized again and again.
"""

import json
import subprocess
import sys
from datetime import datetime

import pytest

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.crashes.expected import assert_complete
from trajectory_pipeline_tests.crashes.processes import Workers
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.process, pytest.mark.heavy]

VERSIONS = 60
BUSY = max(sample_partitions().items(), key=lambda item: item[1])[0]


@pytest.fixture
def hours() -> list[datetime]:
    return [BUSY]


@pytest.mark.timeout(280)
def test_readers_see_only_whole_versions(pipeline: Pipeline, crew: Workers, hours: list[datetime]) -> None:
    mark(pipeline, "first", hours)
    pipeline.capture(BUSY)
    path = pipeline.store.path_of(TRAJECTORIES, BUSY)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "trajectory_pipeline_tests.crashes.reader",
            pipeline.database_url,
            partition_key(BUSY),
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdout is not None
        assert json.loads(reader.stdout.readline()) == {"expected": sample_partitions()[BUSY]}
        worker = crew.start(pipeline, hours, rounds=VERSIONS, marked="version")
        assert crew.result(worker, patience=250) == {"pid": worker, "done": True}
        told, _ = reader.communicate("\n")
    seen = json.loads(told)
    assert seen["wrong"] == []
    assert min(seen["seen"].values()) > 20
    assert seen["versions"] > 20


def test_two_processes_leave_one_whole_version(pipeline: Pipeline, crew: Workers, hours: list[datetime]) -> None:
    for number in range(5):
        mark(pipeline, f"before {number}", hours)
        both = [crew.start(pipeline, hours, rounds=2, marked=f"by {name} {number}") for name in ("one", "another")]
        for worker in both:
            assert crew.result(worker) == {"pid": worker, "done": True}
        rows = pipeline.ask("SELECT DISTINCT project_id FROM trajectory.trajectories")
        in_parquet = {row["project_id"] for row in pipeline.parquet(TRAJECTORIES, BUSY)}
        assert {row["project_id"] for row in rows} == in_parquet
        assert in_parquet in [{f"by {name} {number}-1"} for name in ("one", "another")]
    assert_complete(pipeline, hours)
