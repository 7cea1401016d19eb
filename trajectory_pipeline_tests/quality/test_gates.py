"""Gates: a bar is compared with the interval, and too few labels are a result of their own."""

import pytest

from trajectory_pipeline.quality.corrected_rates import EffectiveCounts
from trajectory_pipeline.quality.gates import Bars, GateStatus, measure_gates
from trajectory_pipeline.schema.enums import Gate, GateResult

GOOD = {
    Gate.AGREEMENT: EffectiveCounts(0.95, 150),
    Gate.ABSTENTION: EffectiveCounts(0.05, 150),
    Gate.VERIFIED_QUOTES: EffectiveCounts(0.98, 150),
    Gate.SELF_AGREEMENT: EffectiveCounts(0.97, 100),
}


def status(**changed: EffectiveCounts | None) -> GateStatus:
    measured = {**GOOD, **{Gate[name.upper()]: counts for name, counts in changed.items()}}
    return measure_gates("p", {gate: counts for gate, counts in measured.items() if counts is not None}, Bars())


@pytest.mark.parametrize(
    ("share", "size", "result"),
    [
        (137 / 152, 152, GateResult.PASSED),
        (81 / 152, 152, GateResult.FAILED),
        (0.75, 10_000, GateResult.NOT_ENOUGH),
        (1.0, 3, GateResult.NOT_ENOUGH),
        (0.0, 3, GateResult.FAILED),
        (1.0, 20, GateResult.PASSED),
    ],
)
def test_agreement_is_judged_by_its_interval(share: float, size: float, result: GateResult) -> None:
    measured = status(agreement=EffectiveCounts(share, size))
    assert (measured.gates[0].result, measured.result) == (result, result)


@pytest.mark.parametrize(
    ("share", "size", "result"),
    [(0.05, 150, GateResult.PASSED), (0.4, 150, GateResult.FAILED), (0.2, 50, GateResult.NOT_ENOUGH)],
)
def test_abstention_is_wanted_below_its_bar(share: float, size: float, result: GateResult) -> None:
    assert status(abstention=EffectiveCounts(share, size)).result is result


def test_status_passes_where_self_agreement_was_never_measured() -> None:
    measured = status(self_agreement=None)
    assert measured.result is GateResult.PASSED
    assert measured.sentence == "Policy p has passed its gates; self agreement: not measured."


@pytest.mark.parametrize("gate", [Gate.AGREEMENT, Gate.ABSTENTION, Gate.VERIFIED_QUOTES])
def test_status_without_a_measure_is_not_passed(gate: Gate) -> None:
    assert status(**{gate: None}).result is GateResult.NOT_ENOUGH
    assert status(**{gate: EffectiveCounts(0.5, 0.0)}).result is GateResult.NOT_ENOUGH


def test_status_names_what_failed_and_what_was_wanted() -> None:
    sentence = status(agreement=EffectiveCounts(81 / 152, 152)).sentence
    assert sentence == (
        "Policy p has not passed its gates: agreement: 53% (95 % interval 45% to 61%, 152 verdicts),"
        " wanted at least 75%: failed."
    )
