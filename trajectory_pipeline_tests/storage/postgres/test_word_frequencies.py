"""Frequencies of words are those of the newest texts that a client sees."""

from datetime import UTC, datetime, timedelta

import psycopg

from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.word_frequencies import SAMPLE, document_frequencies
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs


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
