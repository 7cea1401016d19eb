"""Retention removes expired partitions from both sinks, and nothing else; they stay away.

Real partitions, captured and judged; a prune is interrupted between each two of its steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance import retention
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.maintenance.erase_deleted import erase_partition, partitions_to_erase
from trajectory_pipeline.maintenance.retention import (
    PrunedPartition,
    Retention,
    RetentionTarget,
    find_expired_partitions,
    is_expired,
    prune_partition,
)
from trajectory_pipeline.partition_keys import HOUR as ONE_HOUR
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions, plan_capture, plan_rebuild
from trajectory_pipeline.schema.enums import Criterion, LabelSource
from trajectory_pipeline.schema.labels import Label
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES, VERDICT_ATTEMPTS
from trajectory_pipeline.storage.parquet.cleanup import FileTotals, files_of, hours_with_folders, remove_files
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.erasure import RETAINED_ATTEMPT_COLUMNS, erasable_columns
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline.storage.postgres.partition_writer import PartitionTransaction
from trajectory_pipeline.storage.postgres.verdict_status import unpublished_partitions
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row
from trajectory_pipeline_tests.pipeline.test_source_changes import delete_run, some_run

_SMALL = sorted((size, hour) for hour, size in sample_partitions().items() if size > 4)[:2]
HOUR, YOUNG = sorted(hour for _, hour in _SMALL)
NOW = YOUNG + timedelta(days=30)
AGE = NOW - HOUR - ONE_HOUR
"""The age at which the older of the two partitions goes, to the second."""
BOTH = Retention(AGE, AGE)
ONLY_RAW = Retention(None, AGE)
TABLES = ("trajectories", "quarantine", "verdicts", "partitions")


@pytest.fixture
def judged(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    pipeline = replace(pipeline, judge_url=judge.base_url)
    pipeline.capture(HOUR, YOUNG)
    pipeline.refine(HOUR)
    pipeline.refine(YOUNG)
    return pipeline


def prune(pipeline: Pipeline, retention_ages: Retention = BOTH, now: datetime = NOW) -> list[PrunedPartition]:
    """Prune all that is old enough, as the job does."""
    hours = {partition_key(hour): hour for hour in sample_partitions()}
    due = find_expired_partitions(pipeline.storage, retention_ages, now)
    return [prune_partition(each.target, hours[each.partition_key], pipeline.storage) for each in due]


def held(pipeline: Pipeline, hour: datetime) -> dict[str, list[Row]]:
    """Every row that a partition has in Postgres."""
    return {
        table: pipeline.ask(
            f"SELECT t::text AS line FROM trajectory.{table} t WHERE partition_key = %s ORDER BY 1", partition_key(hour)
        )
        for table in TABLES
    }


def files(pipeline: Pipeline, hour: datetime) -> dict[str, bytes]:
    return {name: content for name, content in pipeline.files().items() if f"hour={hour:%Y-%m-%dT%H}" in name}


def results(pipeline: Pipeline, hour: datetime) -> dict[str, str]:
    rows = pipeline.ask("SELECT asset, result FROM trajectory.partitions WHERE partition_key = %s", partition_key(hour))
    return {row["asset"]: row["result"] for row in rows}


def all_is_gone(pipeline: Pipeline) -> None:
    assert files(pipeline, HOUR) == {}
    assert {name: rows for name, rows in held(pipeline, HOUR).items() if name != "partitions"} == {
        "trajectories": [],
        "quarantine": [],
        "verdicts": [],
    }
    assert results(pipeline, HOUR) == dict.fromkeys(("terminal_runs", "trajectories", "refined_outcomes"), "pruned")
    assert find_expired_partitions(pipeline.storage, BOTH, NOW) == []


def differences(pipeline: Pipeline) -> list[str]:
    """What the completeness check says of the two partitions."""
    found = check_completeness(
        LettaSource(pipeline.letta_url), pipeline.storage, CompletenessScope(HOUR, stuck_after=timedelta(days=1))
    )
    ours = (partition_key(HOUR), partition_key(YOUNG))
    return [words for words in found.differences if words.startswith(ours)]


def stale(pipeline: Pipeline) -> list[datetime]:
    return find_stale_partitions(LettaSource(pipeline.letta_url), pipeline.database, [HOUR, YOUNG])


def change(pipeline: Pipeline, run_id: str) -> None:
    pipeline.change_source(f"UPDATE runs SET metadata_ = '{{\"late\": true}}' WHERE id = '{run_id}'")


def move(pipeline: Pipeline, run_id: str, hour: datetime) -> None:
    pipeline.change_source(f"UPDATE runs SET completed_at = '{hour:%Y-%m-%d %H}:30' WHERE id = '{run_id}'")


# ---- what goes, and what stays -------------------------------------------------------------------------------------


def people_say(pipeline: Pipeline, run_ids: set[str]) -> None:
    given: dict[str, Any] = {"annotator": "ann", "source": LabelSource.TERMINAL, "note": "it quotes"}
    labels = [Label(run_id=run_id, criterion=Criterion.OUTCOME, value="failure", **given) for run_id in run_ids]
    write_labels(pipeline.storage.postgres, labels)


def test_prune_removes_only_expired_partitions(judged: Pipeline) -> None:
    young, young_files = held(judged, YOUNG), files(judged, YOUNG)
    runs = judged.run_ids(HOUR)
    spent = "SELECT attempt_id, cost_usd, input_tokens FROM trajectory.verdict_attempts ORDER BY 1"
    judged.do("UPDATE trajectory.verdict_attempts SET error_message = 'it quotes'")
    people_say(judged, runs | judged.run_ids(YOUNG))
    before, accounts = judged.ask(spent), judged.ask("SELECT * FROM trajectory.spend_totals ORDER BY 1, 2")
    expired = find_expired_partitions(judged.storage, BOTH, NOW)
    assert [(each.target, each.partition_key, each.skip_reason) for each in expired] == [
        ("trajectories", partition_key(HOUR), None),
        ("terminal_runs", partition_key(HOUR), None),
    ]
    done = prune(judged)
    assert [(each.rows, each.files) for each in done] == [(each.rows, each.files) for each in expired]
    assert done[0].rows == 2 * len(runs)
    assert (done[0].files.count, done[1].files.count) == (2, 1)
    all_is_gone(judged)
    assert (held(judged, YOUNG), files(judged, YOUNG)) == (young, young_files)
    assert (judged.ask(spent), judged.ask("SELECT * FROM trajectory.spend_totals ORDER BY 1, 2")) == (before, accounts)
    texts = " || ".join(
        f"coalesce({name}, '')" for name in erasable_columns(VERDICT_ATTEMPTS, RETAINED_ATTEMPT_COLUMNS)
    )
    by_text = judged.ask(f"SELECT run_id, {texts} AS words FROM trajectory.verdict_attempts")
    assert {row["run_id"] for row in by_text if not row["words"]} == runs
    assert {row["run_id"] for row in by_text if row["words"]} == judged.run_ids(YOUNG)
    labels = judged.ask("SELECT run_id, value, note FROM trajectory.labels")
    assert {row["run_id"] for row in labels if row["note"] is None and row["value"] == "failure"} == runs
    assert {row["run_id"] for row in labels if row["note"] == "it quotes"} == judged.run_ids(YOUNG)


def test_prune_removes_quarantined_runs(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run_id = some_run(pipeline)
    pipeline.change_source(
        f"UPDATE messages SET content = '{{\"x\": 1}}' WHERE id = (SELECT min(id) FROM messages"
        f" WHERE run_id = '{run_id}')"
    )
    pipeline.capture(HOUR)
    assert pipeline.database.quarantined(run_id)
    prune(pipeline)
    assert pipeline.database.quarantined(run_id) is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ages=st.tuples(*[st.none() | st.timedeltas(timedelta(0), timedelta(days=60))] * 2),
    now=st.datetimes(HOUR.replace(tzinfo=None), NOW.replace(tzinfo=None)),
)
def test_find_expired_names_no_younger_partition(
    captured_pair: Pipeline, ages: tuple[timedelta | None, timedelta | None], now: datetime
) -> None:
    moment = now.replace(tzinfo=HOUR.tzinfo)
    retention_ages = Retention(*ages)
    found = {
        (each.target, each.partition_key)
        for each in find_expired_partitions(captured_pair.storage, retention_ages, moment)
    }
    expected = {
        (part, partition_key(hour))
        for part, age in (("trajectories", retention_ages.trajectories), ("terminal_runs", retention_ages.raw_rows))
        for hour in (HOUR, YOUNG)
        if age is not None and moment - (hour + ONE_HOUR) >= age
    }
    assert found == expected


@pytest.fixture
def captured_pair(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR, YOUNG)
    return pipeline


def test_is_expired_counts_from_the_end_of_the_hour() -> None:
    end = HOUR + ONE_HOUR
    assert is_expired(HOUR, timedelta(days=1), end + timedelta(days=1))
    assert not is_expired(HOUR, timedelta(days=1), end + timedelta(days=1) - timedelta(microseconds=1))
    assert not is_expired(HOUR, None, end + timedelta(days=10_000))


# ---- crashes -------------------------------------------------------------------------------------------------------


class CrashError(Exception):
    """A process that ends here."""


STEPS = [
    *(("remove_rows", 0, after) for after in (False, True)),
    *(("record_pruned", number, after) for number in range(3) for after in (False, True)),
    *(("remove_files", number, after) for number in range(3) for after in (False, True)),
]


@pytest.mark.parametrize(
    ("step", "number", "after"),
    some_heavy(STEPS, ("remove_rows", 0, False), ("record_pruned", 1, True), ("remove_files", 0, True)),
)
def test_prune_crash_is_completed_by_the_next_prune(
    judged: Pipeline, monkeypatch: pytest.MonkeyPatch, step: str, number: int, *, after: bool
) -> None:
    real, calls = getattr(retention, step), iter(range(100))

    def breaks_off(*values: Any, **more: Any) -> Any:
        now = next(calls) == number
        if now and not after:
            raise CrashError
        result = real(*values, **more)
        if now:
            raise CrashError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(retention, step, breaks_off)
        with pytest.raises(CrashError):
            prune(judged)
    assert stale(judged) == []
    assert differences(judged) == []
    prune(judged)
    all_is_gone(judged)


def test_prune_keeps_files_rematerialized_in_between(judged: Pipeline) -> None:
    opened = iter(range(10))

    class Interrupted(TrajectoryDatabase):
        @contextmanager
        def partition(
            self, asset: str, partition_key: str, *, reads: str | None = None
        ) -> Iterator[PartitionTransaction]:
            if next(opened) == 1:
                judged.capture(HOUR)
            with super().partition(asset, partition_key, reads=reads) as partition:
                yield partition

    prune_partition("trajectories", HOUR, Storage(judged.store, Interrupted(judged.database_url)))
    assert judged.run_ids(HOUR)
    assert differences(judged) == []
    prune(judged)
    all_is_gone(judged)


def test_verdicts_that_a_killed_prune_left_go_with_the_next_publication(
    judged: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks_off(*_: Any) -> Any:
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(retention, "remove_files", breaks_off)
        with pytest.raises(CrashError):
            prune(judged, Retention(AGE, None))
    key = partition_key(HOUR)
    assert unpublished_partitions(judged.database, [key]) == frozenset()
    assert judged.parquet(REFINED_OUTCOMES, HOUR)
    # A person materializes what was pruned, and nobody judges it.
    judged.capture(HOUR)
    assert unpublished_partitions(judged.database, [key]) == {key}
    run = JudgingRun(judged.storage, judged.judge, publish_only=True)
    run.judge_partitions([HOUR])
    run.publish(HOUR)
    assert judged.parquet(REFINED_OUTCOMES, HOUR) == []
    assert unpublished_partitions(judged.database, [key]) == frozenset()


def test_prune_repeated_changes_nothing(judged: Pipeline) -> None:
    prune(judged)
    before = held(judged, HOUR)
    assert prune(judged) == []
    parts: tuple[RetentionTarget, ...] = ("trajectories", "terminal_runs")
    for part in parts:
        assert prune_partition(part, HOUR, judged.storage) == PrunedPartition(0, FileTotals())
    assert held(judged, HOUR) == before


# ---- afterwards ----------------------------------------------------------------------------------------------------


def test_pruned_partition_is_never_stale_or_missing(judged: Pipeline) -> None:
    edited, gone = sorted(judged.run_ids(HOUR))[:2]
    prune(judged)
    change(judged, edited)
    delete_run(judged, gone)
    assert stale(judged) == []
    assert find_stale_partitions(LettaSource(judged.letta_url), judged.database, [HOUR], "erase") == []
    assert differences(judged) == []
    assert partitions_to_erase(judged.database) == {}


def test_pruned_partition_materialized_is_pruned_again(judged: Pipeline) -> None:
    dates = "SELECT run_id, first_captured_at FROM trajectory.trajectories ORDER BY 1"
    before = judged.ask(dates)
    prune(judged)
    (planned,) = plan_capture([HOUR], LettaSource(judged.letta_url), judged.storage, "keep")
    assert planned.what == "new"
    judged.capture(HOUR)
    judged.refine(HOUR)
    assert judged.ask(dates) == before
    assert results(judged, HOUR) == dict.fromkeys(("terminal_runs", "trajectories", "refined_outcomes"), "complete")
    change(judged, before[0]["run_id"])
    assert stale(judged) != []
    prune(judged)
    all_is_gone(judged)


def test_prune_raw_rows_leaves_trajectories_and_verdicts(judged: Pipeline) -> None:
    rows, trajectories = held(judged, HOUR), judged.parquet(TRAJECTORIES, HOUR)
    prune(judged, ONLY_RAW)
    assert judged.parquet(TERMINAL_RUNS, HOUR) == []
    assert judged.parquet(TRAJECTORIES, HOUR) == trajectories
    assert {**held(judged, HOUR), "partitions": []} == {**rows, "partitions": []}
    change(judged, min(judged.run_ids(HOUR)))
    assert stale(judged) == []
    assert differences(judged) == []
    (planned,) = plan_rebuild([HOUR], judged.store)
    assert planned.what == "impossible"
    with pytest.raises(PipelineError, match=r"raw rows of .* were pruned .*: materialize terminal_runs of that part"):
        judged.convert(HOUR)
    assert judged.refine(HOUR).calls == 0
    assert judged.parquet(TRAJECTORIES, HOUR) == trajectories
    judged.capture(HOUR)
    assert differences(judged) == []


def test_prune_trajectories_leaves_raw_rows(judged: Pipeline) -> None:
    raw = judged.parquet(TERMINAL_RUNS, HOUR)
    prune(judged, Retention(AGE, None))
    assert judged.parquet(TERMINAL_RUNS, HOUR) == raw
    change(judged, raw[0]["run_id"])
    assert (stale(judged), differences(judged)) == ([], [])
    judged.convert(HOUR)
    assert judged.run_ids(HOUR) == {row["run_id"] for row in raw}


def test_prune_unconverted_raw_rows_is_refused(pipeline: Pipeline) -> None:
    pipeline.read(HOUR)
    (expired,) = find_expired_partitions(pipeline.storage, ONLY_RAW, NOW)
    (done,) = prune(pipeline, ONLY_RAW)
    assert expired.skip_reason == done.skip_reason == "its trajectories were not made of its raw rows, or are not there"
    assert pipeline.parquet(TERMINAL_RUNS, HOUR)
    pipeline.convert(HOUR)
    assert [each.skip_reason for each in prune(pipeline, ONLY_RAW)] == [None]
    assert pipeline.parquet(TERMINAL_RUNS, HOUR) == []


def test_prune_unconverted_rows_with_expired_trajectories(pipeline: Pipeline) -> None:
    pipeline.read(HOUR)
    assert [each.skip_reason for each in prune(pipeline)] == [None, None]
    assert files(pipeline, HOUR) == {}
    assert stale(pipeline) == [YOUNG]


def test_erase_partition_without_raw_rows_raises(judged: Pipeline) -> None:
    delete_run(judged, min(judged.run_ids(HOUR)))
    judged.capture(HOUR)
    prune(judged, ONLY_RAW)
    assert partitions_to_erase(judged.database) == {partition_key(HOUR): 1}
    with pytest.raises(PipelineError, match="were pruned, and only they tell what is deleted"):
        erase_partition(HOUR, judged.storage)


# ---- runs that move ------------------------------------------------------------------------------------------------


def test_run_moved_out_of_pruned_hour_keeps_capture_time(judged: Pipeline) -> None:
    run_id = min(judged.run_ids(HOUR))
    row = judged.trajectory(run_id)
    assert row
    prune(judged)
    move(judged, run_id, YOUNG)
    assert stale(judged) == [YOUNG]
    judged.capture(YOUNG)
    after = judged.trajectory(run_id)
    assert after
    assert (after["partition_key"], after["first_captured_at"]) == (partition_key(YOUNG), row["first_captured_at"])
    assert (stale(judged), differences(judged)) == ([], [])


def test_prune_keeps_verdicts_of_moved_runs(judged: Pipeline) -> None:
    run_id = min(judged.run_ids(HOUR))
    verdict = "SELECT outcome, summary FROM trajectory.verdicts WHERE run_id = %s"
    before = judged.ask(verdict, run_id)
    move(judged, run_id, YOUNG)
    judged.capture(YOUNG, HOUR)
    prune(judged)
    assert judged.ask(verdict, run_id) == before != []
    assert find_expired_partitions(judged.storage, BOTH, NOW) == []
    prune(judged, Retention(timedelta(0), timedelta(0)))
    assert judged.ask(verdict, run_id) == []


def test_run_moved_into_pruned_hour_departs(judged: Pipeline) -> None:
    run_id = min(judged.run_ids(YOUNG))
    prune(judged)
    move(judged, run_id, HOUR)
    judged.capture(YOUNG)
    assert judged.trajectory(run_id) is None
    # Its verdict leaves the file of the hour that it left.
    judged.refine(YOUNG)
    assert (stale(judged), differences(judged)) == ([], [])


# ---- files ---------------------------------------------------------------------------------------------------------


def test_prune_removes_leftovers_but_not_foreign_files(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    folder = pipeline.folder / "trajectories" / f"hour={HOUR:%Y-%m-%dT%H}"
    (folder / ".writing-1-abc").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    (pipeline.folder / "trajectories" / "hour=of-mine").mkdir()
    prune(pipeline)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert (pipeline.folder / "trajectories" / "hour=of-mine").exists()
    assert find_expired_partitions(pipeline.storage, BOTH, NOW) == []


def test_prune_removes_files_of_another_filesystem(captured_pair: Pipeline) -> None:
    memory = fsspec.filesystem("memory")
    store = ParquetStore(f"memory://{captured_pair.folder.parent.name}-{id(captured_pair)}")
    assert hours_with_folders(store, TERMINAL_RUNS) == []
    store.write(TERMINAL_RUNS, HOUR, captured_pair.store.read(TERMINAL_RUNS, HOUR))
    written = store.write(TERMINAL_RUNS, YOUNG, captured_pair.store.read(TERMINAL_RUNS, YOUNG))
    assert hours_with_folders(store, TERMINAL_RUNS) == [HOUR, YOUNG]
    assert files_of(store, TERMINAL_RUNS, YOUNG) == FileTotals(1, written.bytes)
    assert remove_files(store, TERMINAL_RUNS, YOUNG) == FileTotals(1, written.bytes)
    assert remove_files(store, TERMINAL_RUNS, YOUNG) == FileTotals()
    assert (store.exists(TERMINAL_RUNS, HOUR), store.exists(TERMINAL_RUNS, YOUNG)) == (True, False)
    memory.rm(store.uri.removeprefix("memory://"), recursive=True)
