"""The doubts of the heuristic are what the labels of the sample say, and change nothing but the confidence."""

import pytest

from benchmarks.heuristic import (
    FEWEST_RUNS,
    LEAST_LIFT,
    labeled_rows,
    lifts,
    recovery,
    same_purpose_succeeded,
    success_after_last_error,
)
from trajectory_pipeline.conversion.outcome_rules import DOUBTS
from trajectory_pipeline_tests.conversion.raw_runs import call, converted, message, returned, step

FAILED = [message(1, reply="Done.", tool_calls=[call("mail")]), message(2, "tool", tool_returns=[returned("error")])]
DISLIKED = [step(feedback="negative")]


def test_factor_of_each_doubt_is_measured_on_labels() -> None:
    measured = lifts(labeled_rows())
    for doubt in DOUBTS:
        found = measured[doubt.name]
        assert (found.runs >= FEWEST_RUNS, found.lift >= LEAST_LIFT) == (True, True)
        assert doubt.factor == round(found.factor, 2)


def test_error_recovered_is_more_precise_than_before() -> None:
    rows = labeled_rows()
    assert recovery(rows, success_after_last_error) == (9, 8, 9)
    assert recovery(rows, same_purpose_succeeded) == (6, 6, 9)


def test_confidence_is_lowered_by_the_strongest_doubt() -> None:
    assert converted(message(1, reply="Done."))["heuristic_confidence"] == 0.8
    assert converted(*FAILED)["heuristic_confidence"] == 0.68
    assert converted(message(1, reply="Done."), steps=DISLIKED)["heuristic_confidence"] == 0.47
    assert converted(*FAILED, steps=DISLIKED)["heuristic_confidence"] == 0.47


def test_reasoning_says_what_lowered_the_confidence() -> None:
    assert converted(*FAILED, steps=DISLIKED)["heuristic_reasoning"][2:] == [doubt.reason for doubt in DOUBTS]


@pytest.mark.parametrize("stop_reason", ["max_steps", "error", "cancelled", "requires_approval"])
def test_doubts_leave_other_outcomes_alone(stop_reason: str) -> None:
    undoubted = converted(message(1, reply="Done."), stop_reason=stop_reason)
    doubted = converted(*FAILED, steps=DISLIKED, stop_reason=stop_reason)
    assert doubted["heuristic_confidence"] == undoubted["heuristic_confidence"]
    assert doubted["heuristic_reasoning"] == undoubted["heuristic_reasoning"]
