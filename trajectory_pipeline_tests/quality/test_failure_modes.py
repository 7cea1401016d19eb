"""Failure modes: groups whose ids stay whatever runs come, and alarms for new and growing ones."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.quality.failure_modes import (
    SIMILARITY,
    FailureText,
    Leader,
    assign_modes,
    error_line,
    find_growth,
    mask,
)
from trajectory_pipeline.schema.enums import FailureModeKind

WORDS = ["refund", "order", "parcel", "limit", "ignored", "timeout", "gateway", "paid", "twice", "address", "missing"]
TEXTS = st.builds(
    lambda kind, words, number: FailureText(f"run-{number}", kind, " ".join([*words, str(number)])),
    st.sampled_from([FailureModeKind.LESSON, FailureModeKind.TOOL_ERROR]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
    st.integers(0, 50),
)


class Registry:
    """What the database holds: groups in the order in which they were founded, and the group of each text."""

    def __init__(self) -> None:
        self.leaders: list[Leader] = []
        self.known: dict[str, str] = {}

    def add(self, texts: list[FailureText]) -> dict[str, str]:
        found, new = assign_modes(texts, self.leaders, self.known)
        self.leaders += new
        self.known |= found
        return found


@given(st.lists(TEXTS, max_size=30), st.lists(st.integers(0, 30), max_size=6), st.randoms(use_true_random=False))
def test_ids_stay_whatever_runs_come_in_any_order(
    texts: list[FailureText], cuts: list[int], order: random.Random
) -> None:
    order.shuffle(texts)
    registry, before = Registry(), dict[str, str]()
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), len(texts)], strict=True):
        registry.add(texts[first:last])
        assert registry.known.items() >= before.items()
        before = dict(registry.known)
    again = registry.add(texts)
    assert again == {text.digest: registry.known[text.digest] for text in texts}
    ids = [leader.mode_id for leader in registry.leaders]
    assert len(set(ids)) == len(ids)
    assert set(registry.known.values()) == set(ids)


@given(st.lists(TEXTS, max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_groups_do_not_depend_on_the_batches(texts: list[FailureText], cuts: list[int]) -> None:
    """Nor on what is remembered of texts: the same runs in the same order give the same groups."""
    whole, parts = Registry(), Registry()
    whole.add(texts)
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), len(texts)], strict=True):
        parts.add(texts[first:last])
        parts.known = {}
    for kind in SIMILARITY:
        assert [one for one in whole.leaders if one.kind is kind] == [one for one in parts.leaders if one.kind is kind]
    assert parts.add(texts) == whole.known


@given(st.lists(TEXTS, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_texts_that_differ_in_numbers_share_a_group(texts: list[FailureText], order: random.Random) -> None:
    other = [FailureText("run-x", text.kind, text.text.replace(text.text.split()[-1], "977")) for text in texts]
    mixed = texts + other
    order.shuffle(mixed)
    found = Registry().add(mixed)
    assert all(found[one.digest] == found[two.digest] for one, two in zip(texts, other, strict=True))


def test_similar_lessons_share_a_group_and_others_do_not() -> None:
    lessons = [
        "The refund was paid twice, because the first booking was not looked up.",
        "Look up the first booking: the refund was paid twice.",
        "The courier's address was given to a stranger.",
    ]
    found = Registry().add([FailureText(f"run-{at}", FailureModeKind.LESSON, text) for at, text in enumerate(lessons)])
    assert next(iter(found.values())) == list(found.values())[1] != list(found.values())[2]


def test_same_text_of_another_kind_is_another_group() -> None:
    kinds = (FailureModeKind.LESSON, FailureModeKind.TOOL_ERROR)
    texts = [FailureText("run-1", kind, "refund timeout") for kind in kinds]
    assert len(set(Registry().add(texts).values())) == 2


def test_many_texts_are_grouped_over_portions() -> None:
    """More texts than are compared at once, of three groups."""
    texts = [
        FailureText("run", FailureModeKind.TOOL_ERROR, f"{'abc'[at % 3] * 9} failed {'x' * (at // 3 % 7)}")
        for at in range(2000)
    ]
    texts = [FailureText(f"run-{at}", text.kind, f"{text.text} word{at:x}q") for at, text in enumerate(texts)]
    registry = Registry()
    registry.add(texts)
    assert registry.add(texts[::-1]) == registry.known


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        ("No stock for order 7", "No stock for order 7"),
        ('{"status": "Failed", "message": "Error: too many requests", "time": "2026"}', "Error: too many requests"),
        (
            'Traceback (most recent call last):\n  File "/a/b.py", line 3\n    x\nValueError: limit is 50\n',
            "ValueError: limit is 50",
        ),
        ("Error executing function refund: LimitError: 62 > 50", "LimitError: 62 > 50"),
        ('{"message": 5}', '{"message": 5}'),
        ("RefundError: 62 is more than 50", "RefundError: 62 is more than 50"),
        ("\n \n", ""),
        ("", ""),
    ],
)
def test_error_line_is_what_went_wrong(returned: str, line: str) -> None:
    assert error_line(returned) == line


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("order FH-20411 is not due", "order FH-7 is not due"),
        ("run-d92c7409-603c-464a-b6b3-6f721219fb49 failed", "run-00000000-603c-464a-b6b3-6f721219fb49 failed"),
        ("limit of 62.50 EUR", "limit of 9 EUR"),
        ("'Mika: Saltmere' not found", "'Jo' not found"),
        ("cannot open /srv/a/b.py", "cannot open /tmp/x/y/z.txt"),
        ("no user a@example.com", "no user b.c@example.org"),
        ("GET https://a.example/x?y=1 failed", "GET https://b.example/ failed"),
        ("don't  retry 3", "Don't retry 4"),
    ],
)
def test_mask_makes_occurrences_equal(first: str, second: str) -> None:
    assert mask(first) == mask(second)


def test_mask_keeps_what_stands_between_apostrophes() -> None:
    assert "retry" in mask("don't retry, it won't help")


def test_growth_finds_a_new_group() -> None:
    (growth,) = find_growth({"a": (10, 0)}, (100, 400))
    assert growth.found
    assert growth.new


def test_growth_compares_shares_of_runs() -> None:
    """Twice as many in a week with twice as many runs is no growth."""
    (growth,) = find_growth({"a": (20, 40)}, (200, 400))
    assert not growth.found
    assert not growth.new


def test_growth_counts_the_groups_that_were_looked_at() -> None:
    alone = find_growth({"a": (9, 4)}, (100, 400))
    among = find_growth({"a": (9, 4), **{f"b{at}": (3, 12) for at in range(200)}}, (100, 400))
    assert alone[0].p_value == among[0].p_value
    assert (alone[0].found, among[0].found) == (True, False)


def test_growth_without_a_past_is_not_tested() -> None:
    (growth,) = find_growth({"a": (30, 0)}, (100, 10))
    assert growth.p_value is None
    assert not growth.found


def test_growth_of_few_runs_is_not_tested() -> None:
    (growth,) = find_growth({"a": (2, 0)}, (10, 100_000))
    assert growth.p_value is None
    assert not growth.found


@pytest.mark.heavy
def test_growth_alarms_are_as_rare_as_stated() -> None:
    """2,000 looks at 30 groups without growth: a rate of 0.001 a look gives 2 alarms, and 9 with a chance of 0.0002."""
    draw = np.random.default_rng(15)
    shares = 0.002 + 0.002 * np.arange(30)
    alarms = 0
    for _ in range(2000):
        recent, earlier = draw.binomial(150, shares), draw.binomial(600, shares)
        counts = {str(group): (int(recent[group]), int(earlier[group])) for group in range(30)}
        alarms += any(one.found for one in find_growth(counts, (150, 600)))
    assert alarms < 9
