"""The three stages on the whole sample: no row is lost, none is there twice, no value is invented.

The sample goes through all stages once and is checked, then through all of them again, which must change and cost
nothing.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture import TerminalRunsResult
from trajectory_pipeline.pipeline.convert import TrajectoriesResult
from trajectory_pipeline.pipeline.judge import JudgingResult
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Scalar, Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.letta_sample import (
    sample_counts,
    sample_partitions,
    sample_terminal_run_ids,
)
from trajectory_pipeline_tests.pipeline.materializing import SCORES, Pipeline, Row, only
from trajectory_pipeline_tests.server_databases import create_database, drop_database


@dataclass
class Sample:
    pipeline: Pipeline
    read: dict[datetime, TerminalRunsResult]
    converted: dict[datetime, TrajectoriesResult]
    refined: dict[datetime, JudgingResult]
    usage: dict[str, Any]
    rows: dict[str, Row]
    """Every row of ``trajectories`` in Parquet, by run."""


@pytest.fixture(scope="module")
def sample(
    postgres_server: EmbeddedServer,
    _templates: EmbeddedServer,
    running_judge: SimulatedJudge,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sample]:
    names = {"template_letta": "whole_letta", "template_trajectory": "whole_trajectory"}
    for template, name in names.items():
        create_database(postgres_server, name, template)
    letta, trajectory = (postgres_server.url(name) for name in names.values())
    pipeline = Pipeline(letta, trajectory, tmp_path_factory.mktemp("parquet"), running_judge.base_url)
    running_judge.reset_calls()
    hours = list(sample_partitions())
    with pipeline.storage.pooled() as storage:
        read = {hour: pipeline.read(hour, storage=storage) for hour in hours}
        converted = {hour: pipeline.convert(hour, storage=storage) for hour in hours}
        refined = {hour: pipeline.refine(hour, storage=storage) for hour in hours}
    rows = {row["run_id"]: row for hour in hours for row in pipeline.parquet(TRAJECTORIES, hour)}
    yield Sample(pipeline, read, converted, refined, running_judge.calls(0), rows)
    for name in names.values():
        drop_database(postgres_server, name)


def test_sample_every_terminal_run_is_in_both_sinks_once(sample: Sample) -> None:
    expected = sample_terminal_run_ids()
    assert len(expected) == 317
    in_parquet = [row["run_id"] for hour in sample.read for row in sample.pipeline.parquet(TRAJECTORIES, hour)]
    in_postgres = [row["run_id"] for row in sample.pipeline.ask("SELECT run_id FROM trajectory.trajectories")]
    for found in (in_parquet, in_postgres):
        assert len(found) == 317
        assert set(found) == expected


def test_sample_each_run_is_in_the_partition_of_its_end(sample: Sample) -> None:
    assert {hour: result.written.rows for hour, result in sample.read.items()} == sample_partitions()
    counted = sample.pipeline.ask("SELECT partition_key, count(*) AS runs FROM trajectory.trajectories GROUP BY 1")
    assert {row["partition_key"]: row["runs"] for row in counted} == {
        partition_key(hour): runs for hour, runs in sample_partitions().items()
    }


def test_sample_every_step_and_message_is_in_a_turn(sample: Sample) -> None:
    terminal = "run_id IN (SELECT id FROM runs WHERE status IN ('completed', 'failed', 'cancelled'))"
    with psycopg.connect(sample.pipeline.letta_url) as source:
        messages = {row[0] for row in source.execute(f"SELECT id FROM messages WHERE {terminal}".encode())}
        steps = {row[0] for row in source.execute(f"SELECT id FROM steps WHERE {terminal}".encode())}
    in_turns = [m["message_id"] for row in sample.rows.values() for turn in row["turns"] for m in turn["messages"]]
    own = [
        turn["step_id"]
        for row in sample.rows.values()
        for turn in row["turns"]
        if turn["step_id"] and turn["step_run_id"] is None
    ]
    assert (len(in_turns), len(own)) == (len(messages), len(steps))
    assert (set(in_turns), set(own)) == (messages, steps)


def test_sample_reconciles_without_quarantine(sample: Sample) -> None:
    assert sample.pipeline.ask("SELECT * FROM trajectory.quarantine") == []
    for hour, result in sample.converted.items():
        assert result.row_balance.balanced
        assert result.row_balance.quarantined == 0
        verification = reconcile_partition(hour, sample.pipeline.storage)
        assert verification.differences == ()
        assert verification.raw == verification.parquet == verification.postgres
        assert verification.raw["runs"] == result.row_balance.runs_in == result.merge_stats.inserted  # type: ignore[union-attr]


def with_stubs(value: Any) -> Any:
    """A document with the bytes of its images replaced, by a second, plain rule."""
    if isinstance(value, list):
        return [with_stubs(item) for item in value]
    if not isinstance(value, dict):
        return value
    source = value.get("source")
    if value.get("type") == "image" and isinstance(source, dict) and "data" in source:
        content = base64.b64decode(source["data"])
        stub = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return {**value, "source": {**{k: v for k, v in source.items() if k != "data"}, "stub": stub}}
    return {key: with_stubs(item) for key, item in value.items()}


def test_sample_documents_of_both_sinks_differ_in_images_only(sample: Sample) -> None:
    stored = {
        row["run_id"]: row["data"] for row in sample.pipeline.ask("SELECT run_id, data FROM trajectory.trajectories")
    }
    images = 0
    for run_id, row in sample.rows.items():
        whole = json.loads(write_json(trajectory_document(row)))
        assert stored[run_id] == with_stubs(whole), run_id
        images += stored[run_id] != whole
    assert images > 0


def test_sample_columns_of_both_sinks_are_equal(sample: Sample) -> None:
    shared = [column for column in TRAJECTORIES.columns if len(column.sinks) == len(Sink)]
    for stored in sample.pipeline.ask("SELECT * FROM trajectory.trajectories"):
        row = sample.rows[stored["run_id"]]
        for column in shared:
            expected = row[column.name]
            assert stored[column.name] == expected, (stored["run_id"], column.name)


def test_sample_ledger_has_every_partition_of_every_asset(sample: Sample) -> None:
    for asset in (TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES):
        ledger = sample.pipeline.database.ledger(asset.name)
        assert set(ledger) == {partition_key(hour) for hour in sample.read}
        for hour in sample.read:
            entry = ledger[partition_key(hour)]
            path = sample.pipeline.store.path_of(asset, hour)
            with Path(path).open("rb") as file:
                assert entry.content_digest == hashlib.file_digest(file, "sha256").hexdigest()
            assert entry.result == "complete"
            assert (entry.fingerprint is not None) == (asset is TERMINAL_RUNS)
    counts = sample_counts()
    runs = [entry.counts["runs"] for entry in sample.pipeline.database.ledger(TERMINAL_RUNS.name).values()]
    assert (sum(runs), len(runs)) == (counts.terminal_runs, counts.partitions)


# ---- verdicts -----------------------------------------------------------------------------------------------------


def test_sample_every_trajectory_has_a_verdict_or_a_reason(sample: Sample) -> None:
    rows = sample.pipeline.ask("SELECT * FROM trajectory.outcomes")
    assert len(rows) == 317
    statuses = Counter(row["verdict_status"] for row in rows)
    assert set(statuses) == {"judged", "insufficient_evidence", "not_eligible"}
    assert statuses == sum((result.statuses for result in sample.refined.values()), Counter())
    for row in rows:
        assert (row["verdict_status"] == "not_eligible") == (row["error_class"] == "no_messages")
        assert row["simulated"] == (row["verdict_status"] != "not_eligible")


def test_sample_unjudged_verdicts_have_null_scores(sample: Sample) -> None:
    rows = sample.pipeline.ask("SELECT * FROM trajectory.verdicts")
    for row in rows:
        judged = row["verdict_status"] == "judged"
        for name in SCORES:
            assert (row[name] is not None) == judged, (row["run_id"], name)
        if judged:
            assert row["outcome"] in ("success", "partial_success", "failure", "unknown")
            assert 0 <= row["learning_value"] <= 1
            assert 0 <= row["coverage"] <= 1
            heuristic = sample.rows[row["run_id"]]["heuristic_outcome"]
            assert row["disagrees"] == (row["outcome"] != heuristic)


def test_sample_every_citation_is_in_the_shown_text(sample: Sample) -> None:
    cited: Counter[str] = Counter()
    for row in sample.pipeline.ask("SELECT requirements FROM trajectory.verdicts WHERE requirements IS NOT NULL"):
        for requirement in row["requirements"]:
            assert requirement["status"] == requirement["judged_status"]
            for citation in requirement["evidence"]:
                assert citation["valid"], citation
                cited[citation["message_id"].partition("-")[0]] += 1
    # Errors that the server recorded are evidence too.
    assert cited["message"] > 0
    assert cited["run"] > 0


def test_sample_usage_of_the_judge_equals_the_spend_ledger(sample: Sample) -> None:
    ours = only(
        sample.pipeline.ask(
            "SELECT count(*) AS calls, sum(cost_usd) AS cost, sum(input_tokens) AS input, sum(output_tokens) AS output,"
            " sum(cached_input_tokens) AS cached FROM trajectory.verdict_attempts"
        )
    )
    usage = sample.usage
    assert ours["calls"] == usage["received"] == sum(result.calls for result in sample.refined.values())
    assert ours["cost"] == Decimal(usage["cost_usd"])
    assert ours["cost"] == sum((result.cost_usd for result in sample.refined.values()), Decimal(0))
    assert (ours["input"], ours["output"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert ours["cached"] == usage["cached_tokens"]
    verdicts = only(
        sample.pipeline.ask("SELECT sum(cost_usd) AS cost, sum(attempts) AS calls FROM trajectory.verdicts")
    )
    assert verdicts == {"cost": ours["cost"], "calls": ours["calls"]}


def test_sample_verdicts_of_both_sinks_are_equal(sample: Sample) -> None:
    stored = {row["run_id"]: row for row in sample.pipeline.ask("SELECT * FROM trajectory.verdicts")}
    seen = 0
    for hour in sample.refined:
        for row in sample.pipeline.parquet(REFINED_OUTCOMES, hour):
            seen += 1
            for column in REFINED_OUTCOMES.in_sink(Sink.PARQUET):
                value = row[column.name]
                if column.type is Scalar.JSON and value is not None:
                    value = json.loads(value)
                assert value == stored[row["run_id"]][column.name], column.name
    assert seen == len(stored) == 317


def test_sample_run_is_judged_with_earlier_runs_of_its_chain(sample: Sample) -> None:
    chained = {run_id for run_id, row in sample.rows.items() if row["continues_run_id"] in sample.rows}
    assert chained
    known = sample.pipeline.ask("SELECT run_id, shown_run_ids FROM trajectory.verdicts WHERE windows > 0")
    shown = {row["run_id"]: row["shown_run_ids"] for row in known}
    assert chained & shown.keys()
    for run_id in chained & shown.keys():
        assert shown[run_id][-2:] == [sample.rows[run_id]["continues_run_id"], run_id]


# ---- again --------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_sample_materialized_again_is_unchanged_and_free(sample: Sample, running_judge: SimulatedJudge) -> None:
    pipeline = sample.pipeline
    tables = {
        "trajectories": "run_id",
        "quarantine": "run_id",
        "verdicts": "run_id, verdict_key",
        "verdict_attempts": "attempt_id",
        "policies": "policy_id",
    }

    def state() -> dict[str, list[Row]]:
        return {
            table: pipeline.ask(f"SELECT * FROM trajectory.{table} ORDER BY {key}") for table, key in tables.items()
        }

    before, files = state(), pipeline.files()
    received = running_judge.calls(0)["received"]
    for hour in sample.read:
        assert not pipeline.read(hour).written.replaced
        again = pipeline.convert(hour)
        assert again.written is not None
        assert not again.written.replaced
        assert again.merge_stats is not None
        assert (again.merge_stats.inserted, again.merge_stats.updated, again.merge_stats.removed) == (0, 0, 0)
        refined = pipeline.refine(hour)
        assert refined.written is not None
        assert not refined.written.replaced
        assert (refined.judged, refined.calls, refined.cost_usd) == (0, 0, 0)
        assert refined.reused == again.row_balance.runs_in
    assert running_judge.calls(0)["received"] == received
    assert pipeline.files() == files
    assert state() == before
