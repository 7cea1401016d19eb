"""How rare words are in search texts, estimated from some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from trajectory_pipeline.search.query import word_weight
from trajectory_pipeline.storage.postgres.service_access import Tenants

SAMPLE = 400
"""Texts that are looked at. Run ids are random, so that the first ones are a sample; of tenants, it is the newest."""
READ_WORDS = "setweight(s.words, 'D') AS words"
"""The words of a text are mostly stored beside its row: read once, and not for each term. They have weight ``D``."""
_OF_ALL = f"SELECT {READ_WORDS} FROM trajectory.search_texts s ORDER BY run_id LIMIT {SAMPLE}"
# By indexes: whoever sees few of all runs would else look for them among all.
_OF_TENANTS = (
    f"SELECT {READ_WORDS} FROM ("
    + " UNION ".join(
        f"SELECT t.run_id, t.end_time FROM unnest(%({names})s::text[]) name CROSS JOIN LATERAL ("
        f"SELECT run_id, end_time FROM trajectory.trajectories WHERE {column} = name"
        f" ORDER BY end_time DESC, run_id LIMIT {SAMPLE}) t"
        for names, column in (("organizations", "organization_id"), ("agents", "agent_id"))
    )
    + f" ORDER BY end_time DESC, run_id LIMIT {SAMPLE}) newest JOIN trajectory.search_texts s USING (run_id)"
)
# Deterministic, and under row-level security only of texts that may be seen.
_FREQUENCIES = """
WITH sample AS MATERIALIZED ({sample})
SELECT (SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = 'trajectory.search_texts'::regclass),
    (SELECT count(*) FROM sample),
    ARRAY(SELECT (SELECT count(*) FROM sample WHERE words @@ term::tsquery)
        FROM unnest(%(terms)s::text[]) WITH ORDINALITY AS u (term, place) ORDER BY place)"""


@dataclass(frozen=True, slots=True)
class Frequency:
    """In how many of the texts of a sample a term is; ``texts``: how many texts there are, about."""

    texts: float
    sampled: int
    count: int

    @property
    def weight(self) -> float:
        """The more the rarer the term is."""
        return word_weight(self.sampled, self.count)

    @property
    def share(self) -> float:
        """The estimated share of texts with the term; never none."""
        return max(self.count, 0.5) / max(self.sampled, 1)


def document_frequencies(
    connection: psycopg.Connection, terms: Sequence[str], tenants: Tenants | None = None
) -> dict[str, Frequency]:
    """Return how frequent each term is among the texts that the connection may see; of tenants, among theirs."""
    parameters = {"terms": list(terms)}
    if tenants is not None:
        parameters |= {"organizations": sorted(tenants.organizations), "agents": sorted(tenants.agents)}
    statement = _FREQUENCIES.format(sample=_OF_ALL if tenants is None else _OF_TENANTS)
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    texts, sampled, counts = row
    return {term: Frequency(texts, sampled, count) for term, count in zip(terms, counts, strict=True)}
