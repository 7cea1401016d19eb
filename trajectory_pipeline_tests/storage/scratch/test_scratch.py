"""Scratch files hold what memory would hold alike, show in no folder, and a full disk is an error of the disk."""

import hashlib
import resource
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.exports.splits import groups_of
from trajectory_pipeline.schema.exports import SelectedRun
from trajectory_pipeline.storage.scratch.pair_sides import PairSides
from trajectory_pipeline.storage.scratch.run_groups import RunGroups
from trajectory_pipeline.storage.scratch.run_selection import RunSelection
from trajectory_pipeline.storage.scratch.text_index import TextIndex

NAMES = st.sampled_from(["a", "b", "ä", "\U0001f600", "B", "ab", ""])
RUNS = st.lists(st.builds(SelectedRun, st.uuids().map(str), NAMES, NAMES, NAMES, NAMES, st.none() | NAMES))
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def selected(run_id: str, partition_key: str) -> SelectedRun:
    return SelectedRun(run_id, partition_key, "digest", None, run_id, None)


@SHARED_FOLDER
@given(RUNS)
def test_groups_are_those_of_all_keys_in_memory(tmp_path: Path, runs: list[SelectedRun]) -> None:
    expected = groups_of({one.run_id: one.group_keys for one in runs})
    with closing(RunGroups(tmp_path, (one.group_keys for one in runs))) as groups:
        assert {one.run_id: groups.name_of(one.group_keys[0]) for one in runs} == expected


@SHARED_FOLDER
@given(RUNS)
def test_selection_gives_back_what_was_selected(tmp_path: Path, runs: list[SelectedRun]) -> None:
    with closing(RunSelection(tmp_path, iter(runs))) as selection:
        assert len(selection) == len(runs)
        assert sorted(selection, key=lambda one: one.run_id) == sorted(runs, key=lambda one: one.run_id)
        assert sum(number for _, number in selection.partitions()) == len(runs)
        for key, number in selection.partitions():
            found = selection.find(key, [one.run_id for one in runs])
            assert sorted(found) == sorted(one.run_id for one in runs if one.partition_key == key)
            assert len(found) == number


def test_run_is_found_in_its_own_partition_only(tmp_path: Path) -> None:
    with closing(RunSelection(tmp_path, [selected("run-1", "a"), selected("run-2", "b")])) as selection:
        assert list(selection.find("a", ["run-1", "run-2", "run-3"])) == ["run-1"]


def test_sides_of_a_task_come_surest_first(tmp_path: Path) -> None:
    with closing(PairSides(tmp_path)) as sides:
        for run_id, score, succeeded in (("b", 0.5, True), ("a", 0.5, True), ("c", 0.9, True), ("e", 0.4, False)):
            sides.add("task 2", score, run_id, {"run": run_id}, run_id.encode(), succeeded=succeeded)
        sides.add("task 1", 0.1, "d", {"run": "d"}, b"d", succeeded=False)
        assert list(sides.tasks()) == ["task 2", "task 1"]
        assert [run["run"] for _, _, run in sides.successes("task 2")] == ["c", "a", "b"]
        assert [sides.record(number) for number, _, _ in sides.failures("task 1")] == [b"d"]


def test_file_shows_in_no_folder(tmp_path: Path) -> None:
    with closing(TextIndex(tmp_path)):
        assert list(tmp_path.iterdir()) == []


def test_disk_without_room_is_an_error_of_the_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    texts = ((hashlib.sha256(str(number).encode()).hexdigest(), f"run-{number}") for number in range(200_000))
    with closing(TextIndex(tmp_path)) as index:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        try:
            with pytest.raises(OSError, match="disk"):
                index.add(texts)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
