"""Frequencies of words are remembered for a minute, for each kind of client apart."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.storage.postgres import word_frequencies
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.word_frequencies import (
    SAMPLE,
    Frequency,
    RecentFrequencies,
    document_frequencies,
)
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs

ONE, OTHER = Tenants(frozenset({"org-1"}), frozenset()), Tenants(frozenset(), frozenset({"org-1"}))
CONNECTION: Any = None


class Texts:
    """In place of the database: so many texts, and the terms that were counted in them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 10_000
        self.counted: list[list[str]] = []
        self.now = 1_000.0
        monkeypatch.setattr(word_frequencies, "document_frequencies", self.count)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def count(self, _: object, terms: Sequence[str], tenants: Tenants | None) -> dict[str, Frequency]:
        self.counted.append(list(terms))
        return {term: Frequency(self.number, min(self.number, SAMPLE), len(term)) for term in terms}


def test_document_frequencies_of_tenants_are_of_their_newest_texts(trajectory_database: str) -> None:
    noon, refund = datetime(2026, 11, 2, 12, tzinfo=UTC), "'refund'"
    runs = [
        # The older half of what is counted, and some more, has a word that the newer ones lack.
        Run(
            f"run-{n:03}",
            "refund" if n < 250 else "parcel",
            organization_id="org-1",
            end_time=noon + timedelta(minutes=n),
        )
        for n in range(450)
    ]
    runs += [Run(f"other-{n}", "refund", organization_id="org-2", agent_id="agent-b") for n in range(3)]
    runs += [Run("both", "refund", organization_id="org-1", agent_id="agent-b", end_time=noon + timedelta(days=1))]
    of = {
        "org-1": Tenants(frozenset({"org-1"}), frozenset()),
        "agent-b": Tenants(frozenset(), frozenset({"agent-b"})),
        "org-2, agent-b": Tenants(frozenset({"org-2"}), frozenset({"agent-b"})),
        "nobody": Tenants(frozenset(), frozenset()),
    }
    with psycopg.connect(trajectory_database) as connection:
        add_runs(connection, runs)
        found = {name: document_frequencies(connection, [refund], tenants)[refund] for name, tenants in of.items()}
        everybody = document_frequencies(connection, [refund])[refund]
    assert {name: (one.sampled, one.count) for name, one in found.items()} == {
        "org-1": (SAMPLE, 1 + SAMPLE - 1 - 200),
        "agent-b": (4, 4),
        "org-2, agent-b": (4, 4),
        "nobody": (0, 0),
    }
    assert everybody.sampled == SAMPLE


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    return Texts(monkeypatch)


def test_terms_are_counted_once_a_minute(texts: Texts) -> None:
    recent = RecentFrequencies()
    for terms in (["a", "bb"], ["bb", "ccc"], ["a", "bb", "ccc"]):
        found = recent.count(CONNECTION, None, terms)
        assert {term: one.count for term, one in found.items()} == {term: len(term) for term in terms}
    assert texts.counted == [["a", "bb"], ["ccc"]]
    texts.now += 61
    recent.count(CONNECTION, None, ["a"])
    assert texts.counted[2:] == [["a"]]


def test_no_client_learns_from_texts_that_another_one_sees(texts: Texts) -> None:
    recent = RecentFrequencies()
    for tenants in (None, ONE, OTHER, None, ONE, OTHER):
        recent.count(CONNECTION, tenants, ["a"])
    assert texts.counted == [["a"]] * 3


def test_few_texts_are_counted_each_time(texts: Texts) -> None:
    """One text more or less changes much, as in a database that was just made."""
    recent, texts.number = RecentFrequencies(), SAMPLE - 1
    for _ in range(3):
        recent.count(CONNECTION, None, ["a"])
    assert texts.counted == [["a"]] * 3


def test_what_is_remembered_has_a_bound(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_frequencies, "_MOST_REMEMBERED", 10)
    recent = RecentFrequencies()
    for number in range(100):
        recent.count(CONNECTION, None, [f"w{number}"])
    assert len(recent._found) <= 11
