"""What labels say of stored verdicts: the demonstration's judge, its maps in SQL, and a judge that must not pass."""

import random

import pytest

from trajectory_pipeline.pipeline.verdict_quality import (
    group_rates,
    lifts_of_signals,
    outcome_labels,
    policy_gates,
    update_calibrations,
)
from trajectory_pipeline.quality.calibration import CalibrationMap, success_score
from trajectory_pipeline.quality.gates import Bars
from trajectory_pipeline.schema.enums import CalibrationMethod, Gate, GateResult, Outcome
from trajectory_pipeline.storage.postgres.calibrations import read_calibrations
from trajectory_pipeline.storage.postgres.labels import read_labels, withdraw_labels
from trajectory_pipeline.storage.postgres.verdict_quality import current_policy
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


def policy(pipeline: Pipeline) -> str:
    current = current_policy(pipeline.database)
    assert current is not None
    return current


def execute(pipeline: Pipeline, statement: str) -> None:
    with pipeline.database.connect() as connection:
        connection.execute(statement.encode())


def make_confidences_varied(pipeline: Pipeline) -> None:
    """Give verdicts confidences from their run ids, and make every fifth one wrong."""
    execute(
        pipeline,
        "UPDATE trajectory.verdicts SET outcome_confidence = (hashtext(run_id) & 1023) / 1023.0,"
        " outcome = CASE WHEN hashtext(run_id || 'x') & 7 < 2 AND outcome = 'success' THEN 'failure'"
        " WHEN hashtext(run_id || 'x') & 7 < 2 AND outcome = 'failure' THEN 'success' ELSE outcome END",
    )


def test_gates_pass_the_scripted_judge(own_story: Pipeline) -> None:
    status = policy_gates(own_story.database, Bars())
    assert status is not None
    assert status.result is GateResult.PASSED, status.sentence
    measured = {gate.gate: gate for gate in status.gates}
    assert measured[Gate.SELF_AGREEMENT].result is GateResult.NOT_MEASURED
    assert measured[Gate.AGREEMENT].size > 130


def test_gates_fail_a_judge_that_agrees_by_half(own_story: Pipeline) -> None:
    """The heuristic's outcomes as verdicts: most runs are called a success."""
    execute(
        own_story,
        "UPDATE trajectory.verdicts v SET outcome = t.heuristic_outcome FROM trajectory.trajectories t"
        " WHERE t.run_id = v.run_id AND v.verdict_status = 'judged'",
    )
    status = policy_gates(own_story.database, Bars())
    assert status is not None
    assert status.result is GateResult.FAILED
    assert "has not passed its gates: agreement: " in status.sentence


def test_gates_fail_a_judge_that_quotes_falsely(own_story: Pipeline) -> None:
    execute(
        own_story,
        "UPDATE trajectory.verdicts SET requirements = replace(requirements::text, '\"valid\": true',"
        " '\"valid\": false')::jsonb WHERE hashtext(run_id) & 3 = 0",
    )
    status = policy_gates(own_story.database, Bars())
    assert status is not None
    assert [gate.gate for gate in status.gates if gate.result is GateResult.FAILED] == [Gate.VERIFIED_QUOTES]


def test_gates_without_labels_are_not_enough(own_story: Pipeline) -> None:
    withdraw_labels(own_story.database, [label.key for label in read_labels(own_story.database)])
    status = policy_gates(own_story.database, Bars())
    assert status is not None
    assert (status.result, status.gates[0].result) == (GateResult.NOT_ENOUGH, GateResult.NOT_MEASURED)


def test_gates_measure_self_agreement_on_repetitions(own_story: Pipeline) -> None:
    columns = own_story.ask(
        "SELECT string_agg(quote_ident(column_name), ', ') AS names FROM information_schema.columns"
        " WHERE table_schema = 'trajectory' AND table_name = 'verdicts'"
        " AND column_name NOT IN ('verdict_key', 'repetition', 'outcome')"
    )[0]["names"]
    execute(
        own_story,
        f"INSERT INTO trajectory.verdicts (verdict_key, repetition, outcome, {columns})"
        f" SELECT verdict_key || '-1', 1, CASE WHEN hashtext(run_id) & 1 = 0 THEN outcome ELSE 'unknown' END, {columns}"
        " FROM trajectory.verdicts",
    )
    status = policy_gates(own_story.database, Bars())
    assert status is not None
    again = next(gate for gate in status.gates if gate.gate is Gate.SELF_AGREEMENT)
    assert again.result is GateResult.FAILED
    assert again.share is not None
    assert 0.3 < again.share < 0.7


def test_gates_of_an_empty_database_are_none(trajectory_database: str) -> None:
    from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

    assert policy_gates(TrajectoryDatabase(trajectory_database), Bars()) is None


def test_outcome_labels_are_those_of_whoever_labelled_most(own_story: Pipeline) -> None:
    labels = outcome_labels(own_story.database, policy(own_story))
    assert len(labels) == 152
    assert {one.label.annotator for one in labels} == {"A"}


def test_update_calibrations_keeps_one_current_map_and_raw_values(own_story: Pipeline) -> None:
    make_confidences_varied(own_story)
    before = own_story.ask("SELECT run_id, outcome_confidence FROM trajectory.verdicts ORDER BY 1")
    assert update_calibrations(own_story.database) == {}
    first = read_calibrations(own_story.database, policy(own_story))
    assert [row["target"] for row in first] == ["correct", "success"]
    update_calibrations(own_story.database)
    assert read_calibrations(own_story.database, policy(own_story)) == first
    labels = read_labels(own_story.database)
    withdraw_labels(own_story.database, [label.key for label in labels if label.run_id < "run-3"])
    update_calibrations(own_story.database)
    second = read_calibrations(own_story.database, policy(own_story))
    assert [row["labels"] for row in second] < [row["labels"] for row in first]
    kept = own_story.ask("SELECT count(*) AS maps FROM trajectory.calibrations")
    assert kept[0]["maps"] == 4
    assert own_story.ask("SELECT run_id, outcome_confidence FROM trajectory.verdicts ORDER BY 1") == before


def test_update_calibrations_without_labels_says_what_is_missing(own_story: Pipeline) -> None:
    make_confidences_varied(own_story)
    update_calibrations(own_story.database)
    withdraw_labels(own_story.database, [label.key for label in read_labels(own_story.database)])
    missing = update_calibrations(own_story.database)
    assert set(missing) == {f"{policy(own_story)} correct", f"{policy(own_story)} success"}
    assert read_calibrations(own_story.database, policy(own_story)) == []
    rows = own_story.ask("SELECT probability_correct, outcome_confidence FROM trajectory.calibrated_outcomes")
    assert all(row["probability_correct"] is None and row["outcome_confidence"] is not None for row in rows)


def test_calibrated_outcomes_apply_the_stored_maps(own_story: Pipeline) -> None:
    make_confidences_varied(own_story)
    update_calibrations(own_story.database)
    correct, success = (
        # A row's columns are of any type.
        CalibrationMap(CalibrationMethod.LOGISTIC, tuple(row["scores"]), tuple(row["probabilities"]))  # type: ignore[arg-type]
        for row in read_calibrations(own_story.database, policy(own_story))
    )
    rows = own_story.ask("SELECT * FROM trajectory.calibrated_outcomes")
    assert len(rows) > 130
    for row in rows:
        confidence = row["outcome_confidence"]
        assert row["probability_correct"] == pytest.approx(float(correct([confidence])[0]))
        score = success_score(row["outcome"], confidence)
        assert row["probability_success"] == pytest.approx(float(success([score])[0]))
        assert (row["correct_map"], row["success_map"]) == (correct.digest, success.digest)


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_outcomes_of_any_map_equal_python(own_story: Pipeline, seed: int) -> None:
    """Steps and slopes at any knots, confidences at and beyond them."""
    make_confidences_varied(own_story)
    update_calibrations(own_story.database)
    draw = random.Random(seed)
    scores = sorted({round(draw.uniform(0.1, 0.9), 2) for _ in range(draw.randint(1, 12))})
    any_map = CalibrationMap(CalibrationMethod.ISOTONIC, tuple(scores), tuple(draw.random() for _ in scores))
    execute(
        own_story,
        f"UPDATE trajectory.calibrations SET scores = ARRAY{list(any_map.scores)}::float8[],"
        f" probabilities = ARRAY{list(any_map.probabilities)}::float8[] WHERE target = 'correct'",
    )
    execute(
        own_story,
        f"UPDATE trajectory.verdicts SET outcome_confidence = (ARRAY{[*scores, 0.0, 1.0]}::float8[])"
        f"[1 + (hashtext(run_id) & 1023) % {len(scores) + 2}] WHERE hashtext(run_id) & 1024 = 0",
    )
    for row in own_story.ask("SELECT outcome_confidence, probability_correct FROM trajectory.calibrated_outcomes"):
        assert row["probability_correct"] == pytest.approx(float(any_map([row["outcome_confidence"]])[0]))


def test_group_rates_of_a_census_are_those_of_people(own_story: Pipeline) -> None:
    rates = group_rates(own_story.database, policy(own_story), None, None)
    labels = outcome_labels(own_story.database, policy(own_story))
    (success, failure) = (rate.corrected for rate in rates if rate.grouping == "all")
    assert success.rate == pytest.approx(sum(one.label.value == Outcome.SUCCESS for one in labels) / 152)
    assert failure.rate == pytest.approx(sum(one.label.value == Outcome.FAILURE for one in labels) / 152)
    assert (success.low, success.high) == (success.rate, success.rate)
    for grouping in ("agent", "week", "agent and week"):
        of_success = [one for one in rates if one.grouping == grouping and one.outcome is Outcome.SUCCESS]
        assert sum(one.corrected.runs for one in of_success) == 152


def test_group_rates_without_labels_are_raw_alone(own_story: Pipeline) -> None:
    withdraw_labels(own_story.database, [label.key for label in read_labels(own_story.database)])
    rates = group_rates(own_story.database, policy(own_story), None, None)
    assert all(rate.corrected.rate is None for rate in rates)
    assert any(rate.judged_rate for rate in rates)


def test_lifts_find_what_predicts_failures_of_the_story(own_story: Pipeline) -> None:
    lifts = {lift.signal: lift for lift in lifts_of_signals(own_story.database, policy(own_story))}
    failed_last = lifts["the last tool call failed"]
    assert failed_last.lift is not None
    assert failed_last.lift > 1
    assert all(lift.with_signal + lift.without_signal <= 152 for lift in lifts.values())
