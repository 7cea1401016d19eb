"""Whatever raw rows hold, their partition is converted, shown, planned, judged and erased; counts balance."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from trajectory_pipeline.cli.render_trajectory import render_trajectory
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.judge.transcript.context import parsed
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.erase_deleted import erase_partition
from trajectory_pipeline.maintenance.explain_verdict import explain_verdict
from trajectory_pipeline.pipeline import judging_estimate
from trajectory_pipeline.pipeline.judging_estimate import JudgingEstimate, estimate_judging
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline_tests.conversion.mutations import CANARY, mutated
from trajectory_pipeline_tests.conversion.raw_runs import NOON, batch_of, message, raw_run, step
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.marks import some_heavy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only, some_run
from trajectory_pipeline_tests.pipeline.test_quarantine import HOUR, a_message, quarantine

MARCH = datetime(2026, 3, 1, 12, tzinfo=UTC)
RUNS = 120


def estimate(pipeline: Pipeline, hour: datetime = MARCH) -> JudgingEstimate:
    return estimate_judging(
        [hour], pipeline.storage, pipeline.judge, now=datetime.now(UTC), lookback=timedelta(days=9999)
    )


@pytest.fixture
def judged(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    return replace(pipeline, judge_url=judge.base_url)


@pytest.mark.parametrize("seed", some_heavy([1, 2], 1))
def test_partition_of_any_rows_goes_through_every_stage(judged: Pipeline, seed: int) -> None:
    chance = random.Random(seed)
    raws = [mutated(f"run-{number:03}", chance) for number in range(RUNS)]
    judged.store.write(TERMINAL_RUNS, MARCH, [batch_of(*raws[:50]), batch_of(*raws[50:])])
    counts = judged.convert(MARCH).row_balance
    assert counts.balanced
    assert (counts.runs_in, counts.quarantined > 0, counts.trajectories > RUNS // 2) == (RUNS, True, True)
    assert reconcile_partition(MARCH, judged.storage).differences == ()
    assert estimate(judged).not_rendered == {}
    result = judged.refine(MARCH)
    assert result.errors.get("internal_error", 0) == 0
    for row in judged.ask("SELECT run_id FROM trajectory.trajectories"):
        stored = judged.trajectory(row["run_id"])
        assert stored is not None
        list(render_trajectory(stored, None, {}, {}).renderables)
    for view in judged.ask(
        "SELECT table_name::text AS name FROM information_schema.views WHERE table_schema = %s", "trajectory"
    ):
        judged.ask(f"SELECT v::text FROM trajectory.{view['name']} v")
    stored = judged.trajectory(some_run(judged, "data IS NOT NULL"))
    assert stored is not None
    explained = explain_verdict(
        stored,
        storage=judged.storage,
        find_source=lambda _: LettaSource(judged.letta_url),
        policy=judged.policy,
        redaction_key=None,
    )
    assert "missing" not in explained["shown"]

    assert tables_with_the_word(judged) >= {"trajectories", "quarantine"}
    deleted = [{**raw, "deleted_at": NOON} for raw in raws]
    judged.store.write(TERMINAL_RUNS, MARCH, [batch_of(*deleted)])
    judged.do(
        "INSERT INTO trajectory.partitions (asset, partition_key, result, counts, content_digest, materialized_at,"
        " schema_version) VALUES ('terminal_runs', '2026-03-01-12:00', 'complete', '{}', '', now(), '1')"
    )
    assert erase_partition(MARCH, judged.storage).row_balance.balanced
    assert tables_with_the_word(judged) == set()


def tables_with_the_word(pipeline: Pipeline) -> set[str]:
    tables = ("trajectories", "quarantine")
    found = f"SELECT 1 FROM trajectory.{{}} t WHERE t::text LIKE '%{CANARY}%'"
    return {table for table in tables if pipeline.ask(found.format(table))}


def test_document_stored_by_an_older_version_is_read_whatever_its_numbers(judged: Pipeline) -> None:
    """Numbers that Python does not read by itself."""
    judged.capture(HOUR)
    run_id = some_run(judged)
    odd = "9" * 5000
    for path in ("{turns,0,messages,0,content,0,n}", "{turns,0,messages,0,tool_calls}"):
        judged.do(
            f"UPDATE trajectory.trajectories SET data = jsonb_set(data, '{path}', '[{{\"n\": {odd}}}]') WHERE run_id ="
            f" '{run_id}'"
        )
    with psycopg.connect(judged.database_url) as plain, pytest.raises(ValueError, match="limit"):
        plain.execute("SELECT data FROM trajectory.trajectories").fetchall()
    stored = judged.trajectory(run_id)
    assert stored is not None
    list(render_trajectory(stored, None, {}, {}).renderables)
    assert estimate(judged, HOUR).not_rendered == {}
    assert not judged.refine(HOUR).errors


def test_plan_with_a_transcript_that_cannot_be_rendered_names_its_run(
    judged: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged.capture(HOUR)
    run_id = some_run(judged)
    real = judging_estimate.build_judge_request

    def build(documents, *arguments, **more):  # type: ignore[no-untyped-def]  # stands in for the function
        if parsed(documents[-1])["run_id"] == run_id:
            raise RecursionError("odd \0")
        return real(documents, *arguments, **more)

    monkeypatch.setattr(judging_estimate, "build_judge_request", build)
    found = estimate(judged, HOUR)
    assert found.judged.total() > 0
    assert found.not_rendered == {run_id: "a defect of trajectory-pipeline: RecursionError: odd \\u0000"}
    assert any(run_id in sentence and "cannot be rendered" in sentence for sentence in found.sentences())


def test_price_list_that_refuses_a_count_fails_no_hour(pipeline: Pipeline) -> None:
    """A negative count in one step, in the column and in the details."""
    pipeline.change_source(
        "UPDATE steps SET prompt_tokens_details = '{\"cached_tokens\": -1}', cached_input_tokens = -1"
        f" WHERE run_id IN (SELECT id FROM runs WHERE date_trunc('hour', completed_at) = '{HOUR:%Y-%m-%d %H:%M}')"
    )
    (result,) = pipeline.capture(HOUR)
    assert (result.row_balance.quarantined, result.row_balance.trajectories > 0) == (0, True)


@pytest.mark.parametrize("time", ["20000-01-01", "0044-03-15 BC"])
def test_time_beyond_python_quarantines_its_run_only(pipeline: Pipeline, time: str) -> None:
    run_id, message_id, _ = a_message(pipeline)
    pipeline.change_source(f"UPDATE messages SET created_at = '{time}' WHERE id = '{message_id}'")
    counts = pipeline.capture(HOUR)[0].row_balance
    assert (counts.quarantined, counts.trajectories) == (1, counts.runs_in - 1)
    assert only(quarantine(pipeline))["json_path"] == f"messages[{message_id}].created_at"
    assert run_id not in pipeline.run_ids(HOUR)


def test_run_with_times_beyond_python_is_explained(pipeline: Pipeline) -> None:
    odd = raw_run(message(1, reply="Hi"), steps=[step(updated_at=253_402_300_800_000_000)])
    pipeline.store.write(TERMINAL_RUNS, MARCH, [batch_of(odd)])
    assert pipeline.convert(MARCH).row_balance.trajectories == 1
    stored = pipeline.trajectory("run-1")
    assert stored is not None
    explained = explain_verdict(
        stored,
        storage=pipeline.storage,
        find_source=lambda _: LettaSource(pipeline.letta_url),
        policy=None,
        redaction_key=None,
    )
    assert explained["captured"]["id"] == "run-1"


@pytest.mark.parametrize("message_ids", ['["a\\u0000b"]', "no JSON", "[" * 100_000, '{"a": 1}', "[1, null]"])
def test_agent_with_any_list_of_messages_fails_no_hour(pipeline: Pipeline, message_ids: str) -> None:
    pipeline.change_source(
        "ALTER TABLE agents ALTER message_ids TYPE text", f"UPDATE agents SET message_ids = '{message_ids}'"
    )
    (result,) = pipeline.capture(HOUR)
    assert result.row_balance.trajectories == sample_partitions()[HOUR]


@pytest.mark.parametrize("table", ["runs", "steps", "messages", "run_metrics", "step_metrics", "agents", "agents_tags"])
def test_view_that_shows_rows_twice_gives_each_once(pipeline: Pipeline, table: str) -> None:
    pipeline.change_source(
        f"ALTER TABLE {table} RENAME TO kept",
        f"CREATE VIEW {table} AS SELECT * FROM kept UNION ALL SELECT * FROM kept",
    )
    (result,) = pipeline.capture(HOUR)
    assert result.row_balance.trajectories == sample_partitions()[HOUR]
    rows = pipeline.parquet(TERMINAL_RUNS, HOUR)
    for column, key in (("steps", "id"), ("step_metrics", "id"), ("messages", "id")):
        ids = [each[key] for row in rows for each in row[column]]
        assert len(ids) == len(set(ids))
    assert all(len(row["agent_tags"]) == len(set(row["agent_tags"])) for row in rows)


def test_view_with_two_versions_of_a_run_names_it(pipeline: Pipeline) -> None:
    run_id, *_ = a_message(pipeline)
    other = 'jsonb_populate_record(kept, \'{"stop_reason": "other"}\')'
    pipeline.change_source(
        "ALTER TABLE runs RENAME TO kept",
        f"CREATE VIEW runs AS SELECT * FROM kept UNION ALL SELECT ({other}).* FROM kept WHERE id = '{run_id}'",
    )
    with pytest.raises(SourceError, match=f"{run_id} more than once"):
        pipeline.capture(HOUR)


def test_run_without_an_id_fails_no_hour(pipeline: Pipeline) -> None:
    nothing = "jsonb_populate_record(kept, '{\"id\": null}')"
    pipeline.change_source(
        "ALTER TABLE runs RENAME TO kept",
        f"CREATE VIEW runs AS SELECT * FROM kept UNION ALL SELECT ({nothing}).* FROM kept",
    )
    (result,) = pipeline.capture(HOUR)
    assert result.row_balance.trajectories == sample_partitions()[HOUR]
