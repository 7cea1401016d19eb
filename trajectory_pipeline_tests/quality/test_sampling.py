"""Draws are repeatable, reach every run, and their weights give unbiased shares, over several draws too."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.quality.sampling import DESIGNS, Candidate, DrawnRun, draw, stratum_of, weights
from trajectory_pipeline.schema.enums import SamplingDesign

_CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.integers(0, 10_000).map("run-{}".format),
        st.sampled_from([True, False, None]),
        st.booleans(),
        st.none() | st.floats(0, 1),
        st.booleans(),
    ),
    min_size=5,
    max_size=60,
    unique_by=lambda one: one.run_id,
)


@given(_CANDIDATES, st.sampled_from(DESIGNS), st.floats(0, 1), st.integers(0, 2**31))
def test_draw_is_repeatable_and_reaches_every_stratum(
    candidates: list[Candidate], design: SamplingDesign, part: float, seed: int
) -> None:
    count = 5 + round(part * (len(candidates) - 5))
    drawn = draw(candidates, design, count, seed)
    assert drawn == draw(list(reversed(candidates)), design, count, seed)
    assert len({one.run_id for one in drawn}) == len(drawn) == count
    strata = {stratum_of(one, design) for one in candidates}
    assert {one.stratum for one in drawn} == strata
    assert all(0 < one.inclusion_probability <= 1 for one in drawn)
    # Inverse probabilities add up to the population.
    assert sum(1 / one.inclusion_probability for one in drawn) == pytest.approx(len(candidates))


def test_draw_prefers_what_its_design_names() -> None:
    candidates = [Candidate(f"run-{number}", number < 20, False, 0.9, judged=True) for number in range(200)]
    drawn = draw(candidates, SamplingDesign.DISAGREEMENT, 30, 1)
    assert sum(one.stratum == "disagrees" for one in drawn) == 18


@pytest.mark.parametrize(("count", "reason"), [(11, "cannot be drawn from 10"), (1, "cannot stand for 2 strata")])
def test_draw_that_cannot_be_is_refused(count: int, reason: str) -> None:
    candidates = [Candidate(f"run-{number}", number < 5, False, 0.9, judged=True) for number in range(10)]
    with pytest.raises(ValueError, match=reason):
        draw(candidates, SamplingDesign.DISAGREEMENT, count, 1)


def test_weights_of_one_draw_are_the_inverse_probabilities() -> None:
    runs = [DrawnRun("run-1", 0, "a", 0.5, labelled=True), DrawnRun("run-2", 0, "b", 0.1, labelled=True)]
    assert weights(runs) == {"run-1": 2, "run-2": 10}


def test_weights_stand_for_what_is_not_labelled_yet() -> None:
    runs = [DrawnRun(f"run-{number}", 0, "a", 0.5, labelled=number < 2) for number in range(8)]
    assert weights(runs) == {"run-0": 8, "run-1": 8}


@pytest.mark.slow
def test_weights_over_several_draws_are_unbiased() -> None:
    """Two draws by other designs and a third that is half labelled: the share of failures comes out on average."""
    rng = random.Random(3)
    population = [
        Candidate(f"run-{number}", rng.random() < 0.3, rng.random() < 0.2, rng.random(), judged=True)
        for number in range(300)
    ]
    failed = {one.run_id for one in population if rng.random() < (0.7 if one.disagrees else 0.1)}
    truth = len(failed)
    estimates = []
    for world in range(400):
        left, runs = list(population), []
        for number, (design, count) in enumerate(
            [
                (SamplingDesign.DISAGREEMENT, 60),
                (SamplingDesign.SIGNAL, 50),
                (SamplingDesign.UNCERTAINTY, 60),
            ]
        ):
            drawn = draw(left, design, count, 10 * world + number)
            runs += [
                DrawnRun(one.run_id, number, one.stratum, one.inclusion_probability, labelled=number < 2 or place < 30)
                for place, one in enumerate(drawn)
            ]
            taken = {one.run_id for one in drawn}
            left = [one for one in left if one.run_id not in taken]
        found = weights(runs)
        estimates.append(sum(weight for run_id, weight in found.items() if run_id in failed))
    mean = sum(estimates) / len(estimates)
    spread = (sum((one - mean) ** 2 for one in estimates) / len(estimates)) ** 0.5 / len(estimates) ** 0.5
    assert abs(mean - truth) < 4 * spread + 0.5
    assert spread < 2
