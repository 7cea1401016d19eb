"""The checks of quality: what they say of a policy, and of failure modes."""

import dagster as dg
import pytest

from trajectory_pipeline.defs.quality_checks import GATES, GROWING, build_quality_checks, gates_result, growing_result
from trajectory_pipeline.pipeline.failure_modes import GrowingMode
from trajectory_pipeline.quality.corrected_rates import EffectiveCounts
from trajectory_pipeline.quality.failure_modes import Growth
from trajectory_pipeline.quality.gates import Bars, measure_gates
from trajectory_pipeline.schema.enums import Gate
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.defs.dagster_runs import resources_of

OTHERS = {
    Gate.ABSTENTION: EffectiveCounts(0.02, 150),
    Gate.VERIFIED_QUOTES: EffectiveCounts(0.99, 150),
}


@pytest.mark.parametrize(
    ("agreement", "passed", "severity"),
    [
        (EffectiveCounts(137 / 152, 152), True, dg.AssetCheckSeverity.WARN),
        (EffectiveCounts(81 / 152, 152), False, dg.AssetCheckSeverity.ERROR),
        (EffectiveCounts(1.0, 4), False, dg.AssetCheckSeverity.WARN),
        (EffectiveCounts(0.5, 0), False, dg.AssetCheckSeverity.WARN),
    ],
)
def test_gates_fail_below_the_bar_and_warn_of_few_labels(
    agreement: EffectiveCounts, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    result = gates_result(measure_gates("p", {**OTHERS, Gate.AGREEMENT: agreement}, Bars()))
    assert (result.passed, result.severity) == (passed, severity)
    assert ("what_to_do" in result.metadata) is not passed


def test_gates_without_verdicts_have_nothing_to_pass() -> None:
    assert gates_result(None).passed


def test_growing_modes_are_named_with_their_counts() -> None:
    result = growing_result([GrowingMode(Growth("tool_error-1", 9, 0, 1e-6, found=True), "refund: limit")], (100, 400))
    assert not result.passed
    assert result.description == "1 failure mode: tool_error-1 (new); see docs/runbook.md"
    assert "refund: limit" in str(result.metadata["failure_modes"].value)


def test_growing_modes_with_few_runs_are_not_compared() -> None:
    result = growing_result([], (10, 20))
    assert result.passed
    assert result.description == "Too few runs to compare with: 20 in the 28 days before, where 50 are needed"


def test_quality_checks_run_on_a_database_without_verdicts(captured: Settings) -> None:
    results = list(build_quality_checks(captured)(storage=resources_of(captured)["storage"]))
    assert {str(result.check_name): result.passed for result in results} == {GATES.name: True, GROWING.name: True}
