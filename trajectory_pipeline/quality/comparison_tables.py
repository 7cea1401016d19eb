"""A comparison of policies as short tables of text."""

from collections.abc import Mapping

from trajectory_pipeline.quality.agreement import Estimate
from trajectory_pipeline.quality.policy_comparison import Measure, PolicyComparison

Rows = list[tuple[str, ...]]


def measure_rows(comparison: PolicyComparison, names: Mapping[str, str]) -> Rows:
    """Return a header, and a row for each policy: what it reached on the panel, with 95 % intervals."""
    rows = [
        (names[one.policy_id], *(_text(measure, one.estimates[measure]) for measure in Measure), str(one.not_judged))
        for one in comparison.policies
    ]
    return [("policy", *Measure, "labelled, not judged"), *rows]


def difference_rows(comparison: PolicyComparison, names: Mapping[str, str]) -> Rows:
    """Return a header, and rows of what each further policy does better or worse than the first."""
    rows: Rows = [
        (names[one.policy_id], measure, _text(measure, difference, signed=True), _reading(measure, difference))
        for one in comparison.policies[1:]
        for measure, difference in one.differences.items()
    ]
    rows += [
        (names[one.policy_id], "right alone", f"{one.right_alone} labels", f"the first alone: {one.first_alone}")
        for one in comparison.policies[1:]
    ]
    return [("policy", "measure", "difference", "reading"), *sorted(rows, key=lambda row: row[0])]


def _text(measure: Measure, estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "–"
    # Prices of small models are fractions of a cent.
    shape = f"{'+' if signed else ''}z.{5 if measure is Measure.COST else 2}f"
    if estimate.low is None or estimate.high is None:
        return format(estimate.value, shape)
    separator = " to " if signed else "–"
    return f"{estimate.value:{shape}} [{estimate.low:{shape}}{separator}{estimate.high:{shape}}]"


def _reading(measure: Measure, difference: Estimate | None) -> str:
    if difference is None:
        return "not defined for both"
    if difference.low is None or difference.high is None:
        if difference.value == 0:
            return "the same"
        return _direction(measure, difference.value > 0)
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    return _direction(measure, difference.low > 0)


def _direction(measure: Measure, more: bool) -> str:
    return "worse" if more == measure.less_is_better else "better"
