"""Compares policies on one panel: the labelled runs on which each of them gave a usable answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from trajectory_pipeline.quality.agreement import (
    Estimate,
    agreement,
    agreement_on,
    kappa,
    kappa_of_tables,
    percentile_estimate,
    precision,
    recall,
    resampled,
    share,
    tables_by_cluster,
)
from trajectory_pipeline.quality.judge_quality import ANSWERED, Compared, compared_runs
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.schema.labels import LabelledVerdict

Table = npt.NDArray[np.float64]
_VALUES = tuple(Outcome)
_SUCCESS, _FAILURE, _UNKNOWN = map(_VALUES.index, (Outcome.SUCCESS, Outcome.FAILURE, Outcome.UNKNOWN))


class Measure(StrEnum):
    """What policies are compared by. All but the cost are shares or coefficients of the outcome."""

    AGREEMENT = "agreement"
    KAPPA = "kappa"
    SUCCESS_AGREEMENT = "success_agreement"
    FAILURE_RECALL = "failure_recall"
    FAILURE_PRECISION = "failure_precision"
    ABSTENTION = "abstention"
    COST = "usd_per_verdict"

    @property
    def less_is_better(self) -> bool:
        """Whether the policy with the lower value is the better one."""
        return self in (Measure.ABSTENTION, Measure.COST)


@dataclass(frozen=True, slots=True)
class PolicyMeasures:
    """What one policy reached on the panel.

    Attributes:
        estimates: None where a measure is not defined: nobody labelled a failure, or a price is not known.
        differences: from the first policy, over the same runs; empty for the first one itself.
        right_alone: labels that it gives and the first policy does not; ``first_alone`` the other way round.
        not_judged: labelled runs on which it gave no usable answer. They are not on the panel.
    """

    policy_id: str
    estimates: Mapping[Measure, Estimate | None]
    differences: Mapping[Measure, Estimate | None]
    right_alone: int
    first_alone: int
    not_judged: int


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """The panel, and each policy on it, in the order in which they were given."""

    runs: int
    labels: int
    policies: Sequence[PolicyMeasures]


def compare_policies(rows: Mapping[str, Sequence[LabelledVerdict]]) -> PolicyComparison:
    """Compare policies by the same labels of outcomes.

    Intervals of 95 % are bootstrapped over conversations, each drawn for all policies at once. A difference that no
    resample changes has no interval: the answers do not differ in this.

    Args:
        rows: by policy, every label of an outcome with the verdict under it; the same labels for each policy.

    Raises:
        ValueError: there is no run that all of them judged.
    """
    answered = [{row.label.run_id for row in labels if row.verdict_status in ANSWERED} for labels in rows.values()]
    panel = set.intersection(*answered) if answered else set()
    if not panel:
        raise ValueError("there is no labelled run on which each policy gave a usable answer")
    labelled = {row.label.run_id for labels in rows.values() for row in labels}
    on_panel = [[row for row in labels if row.label.run_id in panel] for labels in rows.values()]
    compared = [compared_runs(labels) for labels in on_panel]
    tables = [tables_by_cluster([one.pair for one in runs], _VALUES) for runs in compared]
    costs = [_costs_by_cluster(labels) for labels in on_panel]
    policies = [
        PolicyMeasures(
            policy_id,
            _estimates(compared[place], costs[place]),
            _differences(tables[0], tables[place], costs[0], costs[place]) if place else {},
            *_alone(compared[place], compared[0]),
            len(labelled - answered[place]),
        )
        for place, policy_id in enumerate(rows)
    ]
    return PolicyComparison(len(panel), len(compared[0]), policies)


def _estimates(runs: Compared, costs: Table | None) -> dict[Measure, Estimate | None]:
    pairs = [one.pair for one in runs]
    return {
        Measure.AGREEMENT: agreement(pairs),
        Measure.KAPPA: kappa(pairs),
        Measure.SUCCESS_AGREEMENT: agreement_on(Outcome.SUCCESS, pairs),
        Measure.FAILURE_RECALL: recall(Outcome.FAILURE, pairs),
        Measure.FAILURE_PRECISION: precision(Outcome.FAILURE, pairs),
        Measure.ABSTENTION: share([(pair.second == Outcome.UNKNOWN, pair) for pair in pairs]),
        Measure.COST: None if costs is None else _estimate(_mean_cost, _resampled(costs)),
    }


def _differences(
    first: Table, other: Table, first_costs: Table | None, other_costs: Table | None
) -> dict[Measure, Estimate | None]:
    both = _resampled(np.stack([first, other], axis=1))
    differences = {measure: _estimate(_difference_of(of), both) for measure, of in _STATISTICS.items()}
    differences[Measure.COST] = (
        None
        if first_costs is None or other_costs is None
        else _estimate(_difference_of(_mean_cost), _resampled(np.stack([first_costs, other_costs], axis=1)))
    )
    return differences


def _difference_of(statistic: Callable[[Table], Table]) -> Callable[[Table], Table]:
    def difference(tables: Table) -> Table:
        both: Table = statistic(tables[:, 1]) - statistic(tables[:, 0])
        return both

    return difference


def _resampled(by_cluster: Table) -> Table:
    """Return the sum over clusters, then that for each resample of them."""
    return np.concatenate([by_cluster.sum(axis=0)[None], resampled(by_cluster)])


def _estimate(statistic: Callable[[Table], Table], sums: Table) -> Estimate | None:
    """Return a statistic with its interval; None where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, *drawn = statistic(sums)
    if not np.isfinite(whole):
        return None
    estimate = percentile_estimate(float(whole), np.array(drawn))
    return Estimate(estimate.value, None, None) if estimate.low == estimate.high else estimate


def _agreement(tables: Table) -> Table:
    diagonal: Table = np.einsum("kii->k", tables)
    return diagonal / _total(tables)


def _total(tables: Table) -> Table:
    total: Table = tables.sum(axis=(1, 2))
    return total


def _success_agreement(tables: Table) -> Table:
    differ = tables[:, _SUCCESS, :].sum(axis=1) + tables[:, :, _SUCCESS].sum(axis=1)
    agreed: Table = 1 - (differ - 2 * tables[:, _SUCCESS, _SUCCESS]) / _total(tables)
    return agreed


_STATISTICS: Mapping[Measure, Callable[[Table], Table]] = {
    Measure.AGREEMENT: _agreement,
    Measure.KAPPA: lambda tables: kappa_of_tables(tables, 1.0 - np.eye(len(_VALUES))),
    Measure.SUCCESS_AGREEMENT: _success_agreement,
    Measure.FAILURE_RECALL: lambda tables: tables[:, _FAILURE, _FAILURE] / tables[:, _FAILURE, :].sum(axis=1),
    Measure.FAILURE_PRECISION: lambda tables: tables[:, _FAILURE, _FAILURE] / tables[:, :, _FAILURE].sum(axis=1),
    Measure.ABSTENTION: lambda tables: tables[:, :, _UNKNOWN].sum(axis=1) / _total(tables),
}


def _costs_by_cluster(rows: Sequence[LabelledVerdict]) -> Table | None:
    """Return, by cluster, the cost of its verdicts in USD and their number: (clusters, 2); None where one is unknown.

    However many people labelled a run, its verdict was paid for once.
    """
    costs: dict[str, tuple[str, Decimal | None]] = {}
    for row in rows:
        costs[row.label.run_id] = (row.cluster or row.label.run_id, row.cost_usd)
    sums: dict[str, list[float]] = {}
    for cluster, cost in costs.values():
        if cost is None:
            return None
        one = sums.setdefault(cluster, [0.0, 0.0])
        one[0] += float(cost)
        one[1] += 1
    return np.array(list(sums.values()))


def _mean_cost(sums: Table) -> Table:
    mean: Table = sums[:, 0] / sums[:, 1]
    return mean


def _alone(runs: Compared, first: Compared) -> tuple[int, int]:
    """Return how many labels this policy gives and the first does not, and the other way round."""
    right = [one.pair.first == one.pair.second for one in runs]
    first_right = [one.pair.first == one.pair.second for one in first]
    return (
        sum(one and not other for one, other in zip(right, first_right, strict=True)),
        sum(other and not one for one, other in zip(right, first_right, strict=True)),
    )
