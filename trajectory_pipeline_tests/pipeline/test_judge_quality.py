"""``judge_quality`` through the store: labels and verdicts in, numbers and tables out."""

import random
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.pipeline.judge_quality import materialize_quality
from trajectory_pipeline.schema.enums import Criterion, LabelSource
from trajectory_pipeline.schema.labels import Label
from trajectory_pipeline.schema.quality import Comparison, Metric, Slice
from trajectory_pipeline.storage.postgres.judge_quality import read_confusions, read_quality
from trajectory_pipeline.storage.postgres.labels import read_labels, write_labels
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.storage.rows import HOUR, KEY, Row, stage, trajectory

OUTCOMES = ("success", "partial_success", "failure", "unknown")


def rows_of(pipeline: Pipeline, **wanted: Any) -> list[Row]:
    rows = read_quality(pipeline.storage.postgres)
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def one(pipeline: Pipeline, metric: Metric, **wanted: Any) -> Row:
    (row,) = rows_of(pipeline, metric=metric, **({"slice": Slice.ALL, "criterion": Criterion.OUTCOME} | wanted))
    return row


def test_quality_of_the_story_is_measured_and_stored(story: Pipeline) -> None:
    result = materialize_quality(story.storage)
    people = one(story, Metric.AGREEMENT, comparison=Comparison.PEOPLE)
    kappa = one(story, Metric.KAPPA, comparison=Comparison.PEOPLE, slice=Slice.ANNOTATORS, slice_value="A, B")
    assert (people["value"], people["runs"]) == (pytest.approx(0.90), 40)
    assert kappa["value"] == pytest.approx(0.82, abs=0.005)
    assert kappa["low"] < 0.82 < kappa["high"]
    judge = one(story, Metric.AGREEMENT, comparison=Comparison.JUDGE_PEOPLE)
    assert judge["value"] > 0.9
    assert {row["slice"] for row in rows_of(story, comparison=Comparison.JUDGE_PEOPLE)} >= {
        "agent",
        "length",
        "language",
    }
    assert one(story, Metric.EXACT_STEP, criterion=Criterion.FIRST_WRONG_STEP)["value"] > 0.8
    assert one(story, Metric.MATCHED_REQUIREMENTS, criterion=Criterion.REQUIREMENT)["value"] == 1
    assert rows_of(story, comparison=Comparison.JUDGE_ITSELF) == []
    counted = sum(row["pairs"] for row in read_confusions(story.storage.postgres) if row["criterion"] == "outcome")
    assert counted == 192
    stored = pq.read_table(story.folder / "judge_quality" / "judge_quality.parquet")
    assert stored.num_rows == len(result.quality) == len(read_quality(story.storage.postgres))


def test_quality_measured_twice_is_the_same(story: Pipeline) -> None:
    first = materialize_quality(story.storage)
    assert materialize_quality(story.storage) == first
    assert read_labels(story.storage.postgres, sources=[LabelSource.LETTA_FEEDBACK])


def test_quality_without_labels_is_empty(pipeline: Pipeline) -> None:
    result = materialize_quality(pipeline.storage)
    assert (result.labels, result.quality, read_quality(pipeline.storage.postgres)) == (0, [], [])


# ---- planted judges, through the store ------------------------------------------------------------------------------

PLANTED = ("perfect", "chance", "right_80", "biased", "false_quotes", "drifting")


def planted(judge: str, truth: str, week: int, rng: random.Random) -> tuple[str | None, bool]:
    """What a judge says of a run, and whether its quotes hold."""
    right = {"chance": 0.25, "right_80": 0.8, "drifting": (0.95, 0.4)[week]}.get(judge, 1.0)
    if judge == "biased" and truth == "failure":
        return ("success" if rng.random() < 0.6 else "failure"), True
    if judge == "false_quotes" and rng.random() < 0.5:
        return None, False
    return (truth if rng.random() < right else rng.choice([word for word in OUTCOMES if word != truth])), True


@pytest.mark.heavy
def test_planted_judges_are_told_apart_through_the_store(pipeline: Pipeline) -> None:
    rng = random.Random(5)
    database = pipeline.storage.postgres
    runs = [(f"run-{number}", rng.choices(OUTCOMES, (60, 10, 25, 5))[0], number % 2) for number in range(240)]
    with database.partition("trajectories", KEY) as partition:
        with partition.staging() as staging:
            for run_id, _, week in runs:
                row = trajectory(
                    run_id, end_time=HOUR.replace(day=6 + 7 * week), conversation_id=f"c-{int(run_id[4:]) // 2}"
                )
                stage(staging, row, b'{"turns": []}')
        partition.merge()
    label = Label(run_id="", criterion=Criterion.OUTCOME, annotator="ann", source=LabelSource.CSV, value="")
    write_labels(database, [replace(label, run_id=run_id, value=truth) for run_id, truth, _ in runs])
    with open_verdicts(database) as verdicts:
        for judge in PLANTED:
            pipeline.do(
                "INSERT INTO trajectory.policies (policy_id, definition, model, is_current, first_used_at)"
                f" VALUES ('{judge}', '{{}}', '{judge}', false, now())"
            )
            for run_id, truth, week in runs:
                said, holds = planted(judge, truth, week, rng)
                verdicts.save_verdicts([stored_verdict(judge, run_id, said, holds=holds)], "worker")
    materialize_quality(pipeline.storage)

    def metric(judge: str, name: Metric, **wanted: Any) -> Row:
        return one(pipeline, name, policy_id=judge, **wanted)

    def contains(row: Row, truth: float) -> bool:
        return bool(row["low"] <= truth <= row["high"])

    assert metric("perfect", Metric.AGREEMENT)["value"] == metric("perfect", Metric.KAPPA)["value"] == 1
    assert metric("perfect", Metric.AGREEMENT)["low"] > 0.96
    assert contains(metric("chance", Metric.KAPPA), 0)
    assert contains(metric("right_80", Metric.AGREEMENT), 0.8)
    assert metric("right_80", Metric.KAPPA)["low"] > metric("chance", Metric.KAPPA)["high"]
    assert metric("biased", Metric.FAILURE_PRECISION)["value"] == 1
    assert contains(metric("biased", Metric.FAILURE_RECALL), 0.4)
    # It is right where it decides; its quotes do not hold, so it often cannot.
    assert contains(metric("false_quotes", Metric.VALID_CITATIONS), 0.5)
    assert metric("perfect", Metric.VALID_CITATIONS)["low"] > 0.96
    assert metric("false_quotes", Metric.ABSTENTION)["low"] > metric("perfect", Metric.ABSTENTION)["high"]
    early, late = (
        metric("drifting", Metric.AGREEMENT, slice=Slice.WEEK, slice_value=week) for week in ("2026-W45", "2026-W46")
    )
    assert contains(early, 0.95)
    assert contains(late, 0.4)
    assert late["high"] < early["low"]


def stored_verdict(judge: str, run_id: str, said: str | None, *, holds: bool) -> Row:
    cited = [{"message_id": "message-1", "quote": "text", "valid": holds}]
    return {
        "run_id": run_id,
        "verdict_key": f"{judge}-{run_id}",
        "policy_id": judge,
        "partition_key": KEY,
        "content_digest": "text",
        "verdict_status": "judged" if said else "insufficient_evidence",
        "outcome": said,
        "requirements": [{"statement": "It is done", "status": "met", "evidence": cited}],
        "simulated": True,
        "shown_run_ids": [run_id],
        "shown_digests": ["text"],
        "erased": False,
    }


def test_repeated_verdicts_give_the_agreement_of_a_judge_with_itself(pipeline: Pipeline) -> None:
    database = pipeline.storage.postgres
    run_ids = [f"run-{number}" for number in range(20)]
    with database.partition("trajectories", KEY) as partition:
        with partition.staging() as staging:
            for run_id in run_ids:
                stage(staging, trajectory(run_id), b'{"turns": []}')
        partition.merge()
    label = Label(run_id="", criterion=Criterion.OUTCOME, annotator="ann", source=LabelSource.CSV, value="success")
    write_labels(database, [replace(label, run_id=run_id) for run_id in run_ids])
    pipeline.do(
        "INSERT INTO trajectory.policies (policy_id, definition, model, is_current, first_used_at)"
        " VALUES ('policy', '{}', 'model', true, now())"
    )
    with open_verdicts(database) as verdicts:
        for number, run_id in enumerate(run_ids):
            for repetition in range(3):
                said = "failure" if repetition == 2 and number < 5 else ("success", "failure")[number % 2]
                row = stored_verdict("policy", run_id, said, holds=True)
                key = f"{row['verdict_key']}-{repetition}"
                verdicts.save_verdicts([{**row, "verdict_key": key, "repetition": repetition}], "worker")
    materialize_quality(pipeline.storage)
    again = one(pipeline, Metric.AGREEMENT, comparison=Comparison.JUDGE_ITSELF)
    # Runs 0, 2 and 4 were judged otherwise the third time: two of three pairs differ.
    assert again["value"] == pytest.approx(1 - 3 * 2 / 3 / 20)
    assert (again["runs"], again["pairs"]) == (20, 60)
    assert one(pipeline, Metric.AGREEMENT, comparison=Comparison.JUDGE_PEOPLE)["runs"] == 20
