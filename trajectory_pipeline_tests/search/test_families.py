"""Families: what joined one stays, however many runs come later, and portions do not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.search.families import HIGHEST_BAR, Vectors, assign_families, family_id, measure_bar

_numbers = st.sampled_from((-1.0, 0.0, 1.0, 2.0))
_vectors = st.lists(st.tuples(_numbers, _numbers, _numbers).filter(any), min_size=1, max_size=12)


def unit(rows: list[tuple[float, ...]]) -> Vectors:
    vectors = np.array(rows, dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_digits_that_depend_on_the_batch_decide_nothing() -> None:
    """Of two representatives that are equally like, the oldest is taken, whatever the last digits say."""
    run, noise = unit([(1.0, 1.0, 0.0)]), np.float32(1e-7)
    alike = unit([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    for one, other in ((noise, -noise), (-noise, noise)):
        portion = alike * np.array([[1 + one], [1 + other]], dtype=np.float32)
        assigned = assign_families(["run-1"], run, [(["older", "newer"], portion)], 0.5)
        assert [found.family_id for found in assigned] == ["older"]


@given(_vectors, st.sampled_from((0.3, 0.7, 0.95)), st.integers(0, 12))
def test_runs_that_come_later_change_no_family(rows: list[tuple[float, float, float]], bar: float, split: int) -> None:
    vectors, run_ids = unit(rows), [f"run-{n}" for n in range(len(rows))]
    together = assign_families(run_ids, vectors, [], bar)
    first = assign_families(run_ids[:split], vectors[:split], [], bar)
    assert [one.family_id for one in together[:split]] == [one.family_id for one in first]
    founded = [at for at, one in enumerate(first) if one.similarity is None]
    portions = [([family_id(run_ids[at])], vectors[[at]]) for at in founded]
    later = assign_families(run_ids[split:], vectors[split:], portions, bar)
    assert [one.family_id for one in together] == [one.family_id for one in [*first, *later]]


@given(_vectors, st.sampled_from((0.3, 0.7, 0.95)))
def test_a_run_is_in_the_family_of_the_representative_that_it_is_most_like(
    rows: list[tuple[float, float, float]], bar: float
) -> None:
    vectors, run_ids = unit(rows), [f"run-{n}" for n in range(len(rows))]
    founders: list[int] = []
    for at, one in enumerate(assign_families(run_ids, vectors, [], bar)):
        like = [float(vectors[at] @ vectors[founder]) for founder in founders]
        if one.similarity is None:
            assert all(similarity < bar + 1e-6 for similarity in like)
            assert one.family_id == family_id(run_ids[at])
            founders.append(at)
        else:
            assert one.similarity == pytest.approx(max(like), abs=1e-6)
            assert one.family_id in {family_id(run_ids[founder]) for founder in founders}


def test_the_bar_is_between_two_estimates_of_where_other_tasks_end() -> None:
    # Angles of 30, 60 and 90 degrees.
    bar = measure_bar(unit([(1, 0), (3**0.5, 1), (0, 1)]))
    assert (bar.median, bar.deviation) == (pytest.approx(0.5), pytest.approx(0.125**0.5))
    assert (bar.mean, bar.nearest) == (pytest.approx((3**0.5 / 2 + 0.5) / 3), pytest.approx(3**0.5 / 2))
    first, second = bar.median + 2 * bar.deviation, (bar.mean + bar.nearest) / 2
    assert (bar.similarity, bar.runs) == (pytest.approx((first + second) / 2), 3)
    flat = measure_bar(unit([(1, 0), (1, 0), (1, 0)]))
    assert (flat.median, flat.deviation, flat.similarity) == (pytest.approx(1), pytest.approx(0), HIGHEST_BAR)


def test_kinds_of_tasks_that_differ_are_families_however_few_they_are() -> None:
    rng = np.random.default_rng(1)
    for kinds in (2, 3, 20):
        centers = np.linalg.qr(rng.standard_normal((40, kinds)))[0].T
        vectors = unit([tuple(centers[n % kinds] + 0.05 * rng.standard_normal(40)) for n in range(60)])
        run_ids = [f"run-{n}" for n in range(60)]
        families = [one.family_id for one in assign_families(run_ids, vectors, [], measure_bar(vectors).similarity)]
        assert families == [families[n % kinds] for n in range(60)]
        assert len(set(families)) == kinds


def test_one_run_has_no_bar() -> None:
    with pytest.raises(ValueError, match="two"):
        measure_bar(unit([(1, 0)]))
