"""Lift of signals: how much likelier a failure is, by people's labels, where a signal stands than where it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.stats import beta, fisher_exact

from trajectory_pipeline.quality.corrected_rates import LEVEL, EffectiveCounts, effective_counts

MIN_LABELS = 20
"""Fewest labels that lifts are measured on."""
FULL_CONTEXT = 0.8
"""Share of the context window from which on a context counts as nearly full."""
_QUANTILES = (np.arange(1000) + 0.5) / 1000

Signals = Mapping[str, Any]


def _positive(name: str) -> Callable[[Signals], bool | None]:
    return lambda signals: None if signals[name] is None else signals[name] > 0


def _is(name: str, value: bool) -> Callable[[Signals], bool | None]:
    return lambda signals: None if signals[name] is None else signals[name] is value


RULES: Final[Mapping[str, Callable[[Signals], bool | None]]] = {
    "a tool error": _positive("tool_errors"),
    "the last tool call failed": _is("last_tool_call_failed", True),
    "an error that was not recovered": _is("error_recovered", False),
    "a repeated call": _positive("repeated_calls"),
    "a cycle of calls": _positive("longest_cycle"),
    "a nearly full context": lambda signals: (
        None if signals["context_fill"] is None else signals["context_fill"] >= FULL_CONTEXT
    ),
    "negative feedback": _positive("negative_feedback"),
    "positive feedback": _positive("positive_feedback"),
    "a denied approval": _positive("denied_approvals"),
    "a refusal": _positive("refusals"),
    "an empty final answer": _is("empty_final_answer", True),
    "no tool call": lambda signals: signals["tool_calls"] == 0,
}
"""When each signal stands; None where it does not apply to a run, which is then not counted for it."""


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """A run with its signals and whether people call it a failure; ``weight`` is 1 by its inclusion probability."""

    signals: Signals
    failure: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Lift:
    """The lift of one signal.

    Attributes:
        signal: when it stands, in words.
        with_signal: labelled runs where it stands.
        without_signal: labelled runs where it does not.
        failures_with: share of failures among the first.
        failures_without: share of failures among the second.
        lift: the first share by the second; None where either is of no run, or the second is 0.
        low: lower end of the 95 % interval of the lift, of this signal alone.
        high: upper end.
        p_value: Fisher's exact test, times the number of signals after Holm: at most 5 % of tables without any
            effect have a signal below 0.05.
    """

    signal: str
    with_signal: int
    without_signal: int
    failures_with: float | None
    failures_without: float | None
    lift: float | None
    low: float | None
    high: float | None
    p_value: float | None


def signal_lifts(runs: Sequence[LabelledRun]) -> list[Lift]:
    """Return the lift of each signal that stands in a labelled run, highest lower end first; none of too few runs."""
    if len(runs) < MIN_LABELS:
        return []
    lifts: list[Lift] = []
    for signal, rule in RULES.items():
        sides: dict[bool | None, list[LabelledRun]] = {True: [], False: [], None: []}
        for run in runs:
            sides[rule(run.signals)].append(run)
        if sides[True]:
            lifts.append(_lift(signal, sides[True], sides[False]))
    return sorted(_holm(lifts), key=lambda one: (-(one.low or 0.0), one.signal))


def _lift(signal: str, standing: Sequence[LabelledRun], others: Sequence[LabelledRun]) -> Lift:
    if not others:
        with_signal = _counts(standing)
        return Lift(signal, len(standing), 0, with_signal.share, None, None, None, None, None)
    first, second = _counts(standing), _counts(others)
    ratios = np.divide.outer(beta.ppf(_QUANTILES, *first.beta), beta.ppf(_QUANTILES, *second.beta))
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    lift = first.share / second.share if second.share else None
    table = [[round(one.size * one.share), round(one.size * (1 - one.share))] for one in (first, second)]
    return Lift(
        signal,
        len(standing),
        len(others),
        first.share,
        second.share,
        lift,
        float(low) if lift is None else min(float(low), lift),
        float(high) if lift is None else max(float(high), lift),
        float(fisher_exact(table).pvalue),
    )


def _counts(runs: Sequence[LabelledRun]) -> EffectiveCounts:
    return effective_counts([run.failure for run in runs], [run.weight for run in runs])


def _holm(lifts: Sequence[Lift]) -> list[Lift]:
    """Return the lifts with p-values corrected for their number (Holm 1979)."""
    tested = sorted((one for one in lifts if one.p_value is not None), key=lambda one: one.p_value or 0.0)
    corrected, largest = dict[str, float](), 0.0
    for at, one in enumerate(tested):
        largest = max(largest, min(1.0, (one.p_value or 0.0) * (len(tested) - at)))
        corrected[one.signal] = largest
    return [replace(one, p_value=corrected.get(one.signal)) for one in lifts]
