"""A comparison of policies as short tables of text."""

from collections.abc import Mapping

from trajectory_pipeline.quality.agreement import Estimate
from trajectory_pipeline.quality.policy_comparison import Measure, PolicyComparison, PolicyMeasures

Rows = list[tuple[str, ...]]


def measure_rows(comparison: PolicyComparison, names: Mapping[str, str]) -> Rows:
    """Return a header, and a row for each measure: what each policy reached on the panel, with 95 % intervals."""
    policies = comparison.policies
    rows: Rows = [(measure, *(_text(measure, one.estimates[measure]) for one in policies)) for measure in Measure]
    not_judged = ("labelled, not judged", *(str(one.not_judged) for one in policies))
    return [("measure", *(names[one.policy_id] for one in policies)), *rows, not_judged]


def difference_rows(other: PolicyMeasures) -> Rows:
    """Return a header, and rows of what a policy does better or worse than the first."""
    rows: Rows = [
        (measure, _text(measure, difference, signed=True), _reading(measure, difference))
        for measure, difference in other.differences.items()
    ]
    return [("measure", "difference", "reading"), *rows]


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
