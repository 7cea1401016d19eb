"""What search counted is remembered for a minute, for each kind of client apart."""

from collections.abc import Sequence
from typing import Any

import pytest

from trajectory_pipeline.storage.postgres import recent_counts
from trajectory_pipeline.storage.postgres.recent_counts import RecentCounts
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.word_frequencies import SAMPLE, Frequency

ONE, OTHER = Tenants(frozenset({"org-1"}), frozenset()), Tenants(frozenset(), frozenset({"org-1"}))
CONNECTION: Any = None


class Texts:
    """In place of the database: so many texts, and the terms that were counted in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 10_000
        self.counted: list[list[str]] = []
        self.now = 1_000.0
        monkeypatch.setattr(recent_counts, "document_frequencies", self.count)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def count(self, _: object, terms: Sequence[str], tenants: Tenants | None) -> dict[str, Frequency]:
        self.counted.append(list(terms))
        return {term: Frequency(self.number, min(self.number, SAMPLE), len(term)) for term in terms}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    return Texts(monkeypatch)


def test_terms_are_counted_once_a_minute(texts: Texts) -> None:
    recent = RecentCounts()
    for terms in (["a", "bb"], ["bb", "ccc"], ["a", "bb", "ccc"]):
        found = recent.frequencies(CONNECTION, None, terms)
        assert {term: one.count for term, one in found.items()} == {term: len(term) for term in terms}
    assert texts.counted == [["a", "bb"], ["ccc"]]
    texts.now += 61
    recent.frequencies(CONNECTION, None, ["a"])
    assert texts.counted[2:] == [["a"]]


def test_no_client_learns_from_texts_that_another_one_sees(texts: Texts) -> None:
    recent = RecentCounts()
    for tenants in (None, ONE, OTHER, None, ONE, OTHER):
        recent.frequencies(CONNECTION, tenants, ["a"])
    assert texts.counted == [["a"]] * 3


def test_few_texts_are_counted_each_time(texts: Texts) -> None:
    """One text more or less changes much, as in a database that was just made."""
    recent, texts.number = RecentCounts(), SAMPLE - 1
    for _ in range(3):
        recent.frequencies(CONNECTION, None, ["a"])
    assert texts.counted == [["a"]] * 3


def test_what_is_remembered_has_a_bound(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_counts, "_MOST_REMEMBERED", 10)
    recent = RecentCounts()
    for number in range(100):
        recent.frequencies(CONNECTION, None, [f"w{number}"])
    assert len(recent._frequencies) <= 11


def test_numbers_of_runs_are_remembered_for_a_minute_for_each_client_apart(texts: Texts) -> None:
    recent, of_organization = RecentCounts(), SearchFilters(organization_ids=("org-1",))
    recent.remember_runs(of_organization, 7_000)
    assert recent.runs(of_organization) == 7_000
    assert recent.runs(SearchFilters(organization_ids=("org-1",), tenants=ONE)) is None
    texts.now += 61
    assert recent.runs(of_organization) is None
