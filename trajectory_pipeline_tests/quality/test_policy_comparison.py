"""The contract of comparing policies: the same runs for each, paired intervals that cover, and cost beside quality."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from trajectory_pipeline.quality.agreement import Estimate
from trajectory_pipeline.quality.comparison_tables import difference_rows, measure_rows
from trajectory_pipeline.quality.policy_comparison import Measure, PolicyComparison, compare_policies
from trajectory_pipeline.schema.enums import Criterion, LabelSource
from trajectory_pipeline.schema.labels import LabelledVerdict, StoredLabel

OUTCOMES = ("success", "partial_success", "failure", "unknown")
TRUTHS = ("success", "success", "success", "failure", "failure", "partial_success")


def labelled(number: int, truth: str, said: str | None, **more: Any) -> LabelledVerdict:
    """Return the label of a run and the verdict under some policy; ``said`` None: not judged."""
    label = StoredLabel(
        run_id=f"run-{number}",
        criterion=Criterion.OUTCOME,
        annotator=more.pop("annotator", "ann"),
        source=LabelSource.CSV,
        value=truth,
        **STORED,
    )
    empty = dict.fromkeys(LabelledVerdict.__slots__)
    values = {
        "cluster": f"conversation-{number}",
        "verdict_status": None if said is None else "judged",
        "outcome": said,
        "cost_usd": Decimal("0.001"),
        **more,
    }
    return LabelledVerdict(**{**empty, **values, "label": label})


STORED: dict[str, Any] = {
    "revision": 1,
    "content_digest": "text",
    "created_at": datetime(2026, 11, 1, tzinfo=UTC),
    "superseded_at": None,
}


def world(rng: random.Random, count: int, *rights: float) -> tuple[dict[str, list[LabelledVerdict]], float]:
    """Return policies that are right at these rates, where the second often errs with the first; and the difference."""
    rows: dict[str, list[LabelledVerdict]] = {str(place): [] for place in range(len(rights))}
    for number in range(count):
        truth, luck = rng.choice(TRUTHS), rng.random()
        for place, right in enumerate(rights):
            draw = luck if rng.random() < 0.5 else rng.random()
            said = truth if draw < right else rng.choice([word for word in OUTCOMES if word != truth])
            rows[str(place)].append(labelled(number, truth, said))
    return rows, rights[1] - rights[0]


def test_better_policy_is_told_from_an_equal_one() -> None:
    rows, _ = world(random.Random(1), 300, 0.6, 0.8, 0.6)
    comparison = compare_policies(rows)
    better, equal = (one.differences[Measure.AGREEMENT] for one in comparison.policies[1:])
    assert better is not None
    assert better.low is not None
    assert better.low > 0
    assert equal is not None
    assert equal.low is not None
    assert equal.high is not None
    assert equal.low < 0 < equal.high
    readings = [dict(row[::2] for row in difference_rows(one)) for one in comparison.policies[1:]]
    assert [one["agreement"] for one in readings] == ["better", "no difference shown"]


@pytest.mark.heavy
def test_paired_interval_holds_the_planted_difference() -> None:
    rng, held = random.Random(2), 0
    for _ in range(100):
        rows, truth = world(rng, 60, 0.65, 0.75)
        difference = compare_policies(rows).policies[1].differences[Measure.AGREEMENT]
        assert difference is not None
        assert difference.low is not None
        assert difference.high is not None
        held += difference.low <= truth <= difference.high
    # Of 100 worlds at 95 %: fewer than 86 come by chance once in 5,000 times.
    assert held >= 86


def test_pairing_makes_the_interval_narrower_than_two_alone() -> None:
    """Two policies that differ on few runs are compared on these, not on the luck of which runs were labelled."""
    rng = random.Random(3)
    truths = [rng.choice(TRUTHS) for _ in range(100)]
    first = [truth if rng.random() < 0.6 else "unknown" for truth in truths]
    second = [truth if place < 8 else said for place, (truth, said) in enumerate(zip(truths, first, strict=True))]
    comparison = compare_policies(
        {
            name: [labelled(number, truth, word) for number, (truth, word) in enumerate(zip(truths, said, strict=True))]
            for name, said in (("first", first), ("second", second))
        }
    )
    alone, difference = (
        comparison.policies[1].estimates[Measure.AGREEMENT],
        comparison.policies[1].differences[Measure.AGREEMENT],
    )
    assert width(difference) < width(alone) / 2
    assert comparison.policies[1].first_alone == 0
    assert comparison.policies[1].right_alone == sum(
        one == truth != other for truth, other, one in zip(truths, first, second, strict=True)
    )


def width(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_panel_is_what_every_policy_judged() -> None:
    first = [labelled(number, "success", "success") for number in range(10)]
    second = [labelled(number, "success", None if number < 3 else "success") for number in range(10)]
    comparison = compare_policies({"first": first, "second": second})
    assert (comparison.runs, comparison.labels) == (7, 7)
    assert [one.not_judged for one in comparison.policies] == [0, 3]
    with pytest.raises(ValueError, match="no labelled run"):
        compare_policies({"first": first, "second": [labelled(number, "success", None) for number in range(10)]})


def test_cost_is_counted_once_a_run_and_not_where_a_price_is_unknown() -> None:
    def rows(*costs: Decimal | None) -> list[LabelledVerdict]:
        return [
            labelled(number, "success", "success", annotator=name, cost_usd=cost)
            for number, cost in enumerate(costs)
            for name in ("ann", "bob")
        ]

    cheap, dear = rows(*[Decimal("0.001")] * 4), rows(*[Decimal("0.003")] * 3, Decimal("0.007"))
    comparison = compare_policies({"cheap": cheap, "dear": dear, "unknown": rows(Decimal(1), None, None, None)})
    _, second, third = comparison.policies
    estimate, difference = second.estimates[Measure.COST], second.differences[Measure.COST]
    assert estimate is not None
    assert difference is not None
    assert (estimate.value, difference.value) == (pytest.approx(0.004), pytest.approx(0.003))
    assert (third.estimates[Measure.COST], third.differences[Measure.COST]) == (None, None)
    names = {name: name for name in ("cheap", "dear", "unknown")}
    assert next(row[3] for row in measure_rows(comparison, names) if row[0] == "usd_per_verdict") == "–"
    readings = dict(row[::2] for row in difference_rows(second))
    assert readings["usd_per_verdict"] == "worse"
    assert readings["agreement"] == "the same"
    assert readings["failure_recall"] == "not defined for both"


def test_shares_are_those_of_the_labels_by_hand() -> None:
    said = ("success", "failure", "success", "failure", "unknown", "success")
    truth = ("success", "success", "failure", "failure", "failure", "success")
    rows = [labelled(number, one, other) for number, (one, other) in enumerate(zip(truth, said, strict=True))]
    perfect = [replace(row, outcome=row.label.value) for row in rows]
    first, second = compare_policies({"judge": rows, "perfect": perfect}).policies
    values = {measure: estimate.value for measure, estimate in first.estimates.items() if estimate}
    assert values[Measure.AGREEMENT] == pytest.approx(3 / 6)
    assert values[Measure.SUCCESS_AGREEMENT] == pytest.approx(4 / 6)
    assert values[Measure.FAILURE_RECALL] == pytest.approx(1 / 3)
    assert values[Measure.FAILURE_PRECISION] == pytest.approx(1 / 2)
    assert values[Measure.ABSTENTION] == pytest.approx(1 / 6)
    for measure, difference in second.differences.items():
        estimate = second.estimates[measure]
        assert estimate is not None
        assert difference is not None
        assert difference.value == pytest.approx(estimate.value - values[measure])


def test_comparison_is_the_same_twice() -> None:
    def once() -> PolicyComparison:
        return compare_policies(world(random.Random(4), 50, 0.5, 0.7)[0])

    assert once() == once()
