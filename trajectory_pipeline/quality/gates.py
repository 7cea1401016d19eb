"""Gates: whether a policy's verdicts are good enough to be used, by bars on what was measured of them.

A bar is compared with the end of a 95 % interval, never with the measured share: three right of three prove little.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import beta

from trajectory_pipeline.quality.corrected_rates import LEVEL, EffectiveCounts
from trajectory_pipeline.schema.enums import Gate, GateResult


@dataclass(frozen=True, slots=True)
class Bars:
    """The bars, as shares; docs/verdict-quality.md gives the reason of each default.

    Attributes:
        agreement: lowest agreement with people on whether a run is a success.
        abstention: highest share of verdicts that decide nothing.
        verified_quotes: lowest share of citations that are found where the judge says.
        self_agreement: lowest agreement of the judge with itself, asked again.
    """

    agreement: float = 0.75
    abstention: float = 0.2
    verified_quotes: float = 0.9
    self_agreement: float = 0.8


@dataclass(frozen=True, slots=True)
class MeasuredGate:
    """One gate of one policy.

    Attributes:
        gate: what is measured.
        bar: that it is compared with.
        result: passed or failed, where the interval is on one side of the bar; else not enough, or not measured.
        share: as measured; None where nothing was.
        low: lower end of the 95 % interval.
        high: upper end.
        size: number of verdicts that it rests on; fewer where labels have unequal weights.
    """

    gate: Gate
    bar: float
    result: GateResult
    share: float | None
    low: float | None
    high: float | None
    size: float

    @property
    def sentence(self) -> str:
        """The result in words."""
        name = self.gate.replace("_", " ")
        if self.share is None:
            return f"{name}: not measured"
        side = "at most" if self.gate is Gate.ABSTENTION else "at least"
        measured = f"{self.share:.0%} (95 % interval {self.low:.0%} to {self.high:.0%}, {self.size:.0f} verdicts)"
        return f"{name}: {measured}, wanted {side} {self.bar:.0%}: {self.result.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class GateStatus:
    """All gates of one policy."""

    policy_id: str
    gates: tuple[MeasuredGate, ...]

    @property
    def result(self) -> GateResult:
        """Failed if one gate is; passed if all are, but for a self-agreement that was never measured."""
        results = {gate.gate: gate.result for gate in self.gates}
        if GateResult.FAILED in results.values():
            return GateResult.FAILED
        if results[Gate.SELF_AGREEMENT] is GateResult.NOT_MEASURED:
            del results[Gate.SELF_AGREEMENT]
        return GateResult.PASSED if set(results.values()) == {GateResult.PASSED} else GateResult.NOT_ENOUGH

    @property
    def sentence(self) -> str:
        """The result in words, with the gates behind it."""
        behind = [gate.sentence for gate in self.gates if gate.result is not GateResult.PASSED]
        passed = self.result is GateResult.PASSED
        said = f"Policy {self.policy_id} has {'passed' if passed else 'not passed'} its gates"
        return f"{said}{('; ' if passed else ': ') if behind else ''}{'; '.join(behind)}."


def measure_gates(policy_id: str, measured: Mapping[Gate, EffectiveCounts], bars: Bars) -> GateStatus:
    """Return the gates of a policy; one that was not measured is missing from ``measured``, or has size 0."""
    return GateStatus(policy_id, tuple(_measure(gate, measured.get(gate), getattr(bars, gate)) for gate in Gate))


def _measure(gate: Gate, counts: EffectiveCounts | None, bar: float) -> MeasuredGate:
    if counts is None or not counts.size:
        return MeasuredGate(gate, bar, GateResult.NOT_MEASURED, None, None, None, 0.0)
    low, high = (float(beta.ppf(tail, *counts.beta)) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    above, below = low >= bar, high < bar
    if gate is Gate.ABSTENTION:
        above, below = high <= bar, low > bar
    result = GateResult.PASSED if above else GateResult.FAILED if below else GateResult.NOT_ENOUGH
    low, high = min(low, counts.share), max(high, counts.share)
    return MeasuredGate(gate, bar, result, counts.share, low, high, counts.size)
