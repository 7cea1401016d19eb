"""Lift of signals: found where it was planted, with an interval, and rarely where there is none."""

import random
from typing import Any

import pytest

from trajectory_pipeline.quality.signal_lift import MIN_LABELS, RULES, LabelledRun, signal_lifts

QUIET: dict[str, Any] = {
    "tool_calls": 2,
    "distinct_tools": 1,
    "tool_errors": 0,
    "last_tool_call_failed": False,
    "error_recovered": None,
    "repeated_calls": 0,
    "longest_cycle": 0,
    "context_fill": None,
    "person_messages": 1,
    "positive_feedback": 0,
    "negative_feedback": 0,
    "denied_approvals": 0,
    "refusals": 0,
    "empty_final_answer": False,
}
ERROR = {**QUIET, "tool_errors": 1, "error_recovered": False}


def runs(signals: dict[str, Any], failures: int, total: int, weight: float = 1.0) -> list[LabelledRun]:
    return [LabelledRun(signals, at < failures, weight) for at in range(total)]


def test_lift_is_the_ratio_of_the_shares_of_failures() -> None:
    (lift, _) = signal_lifts(runs(ERROR, 30, 40) + runs(QUIET, 10, 60))
    assert (lift.with_signal, lift.without_signal, lift.failures_with, lift.failures_without) == (40, 60, 0.75, 1 / 6)
    assert lift.lift == 4.5
    assert lift.low is not None
    assert lift.high is not None
    assert lift.p_value is not None
    assert 2.4 < lift.low < 2.8
    assert 8 < lift.high < 10
    assert lift.p_value < 1e-6


def test_lift_does_not_depend_on_the_sample_by_signal() -> None:
    """Runs with an error were drawn three times as often; weighted or not, the lift is the same."""
    (weighted, _) = signal_lifts(runs(ERROR, 30, 40) + runs(QUIET, 10, 60, weight=3.0))
    assert weighted.lift == 4.5


def test_lift_weighs_a_sample_by_outcome() -> None:
    sample = runs(ERROR, 30, 30) + runs(ERROR, 0, 10, weight=3.0) + runs(QUIET, 10, 10) + runs(QUIET, 0, 50, weight=3.0)
    (lift, _) = signal_lifts(sample)
    assert lift.failures_with == 0.5
    assert lift.failures_without == 10 / 160


def test_lift_without_failures_elsewhere_has_a_lower_end() -> None:
    (lift, _) = signal_lifts(runs(ERROR, 20, 20) + runs(QUIET, 0, 30))
    assert lift.lift is None
    assert lift.low is not None
    assert lift.low > 5


def test_lift_of_a_signal_that_does_not_apply_leaves_the_run_out() -> None:
    recovered = {**ERROR, "error_recovered": True}
    lifts = {
        lift.signal: lift for lift in signal_lifts(runs(ERROR, 9, 10) + runs(recovered, 1, 10) + runs(QUIET, 5, 80))
    }
    unrecovered = lifts["an error that was not recovered"]
    assert (unrecovered.with_signal, unrecovered.without_signal) == (10, 10)


def test_lifts_with_too_few_labels_are_none() -> None:
    assert signal_lifts(runs(ERROR, 5, MIN_LABELS - 1)) == []


@pytest.mark.heavy
def test_lifts_without_effect_are_rarely_significant() -> None:
    """At most 5 % of 200 tables, but for chance: 20 are three standard errors more."""
    alarms = 0
    for seed in range(200):
        draw = random.Random(seed)
        sample = [
            LabelledRun(
                {**QUIET, "tool_errors": int(draw.random() < 0.3), "repeated_calls": int(draw.random() < 0.5)},
                draw.random() < 0.3,
            )
            for _ in range(100)
        ]
        alarms += any(lift.p_value is not None and lift.p_value < 0.05 for lift in signal_lifts(sample))
    assert alarms <= 20


def test_rules_know_every_signal() -> None:
    assert all(rule(QUIET) in (True, False, None) for rule in RULES.values())
