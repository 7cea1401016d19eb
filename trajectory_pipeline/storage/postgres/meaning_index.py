"""Indexes for search by meaning, made where there are many embeddings.

One is approximate. The other holds the embeddings of each organization together: they are read in a tenth of the pages.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.pgvector import EXTENSION_STATE, PgVector, as_pgvector

INDEXED_EMBEDDINGS = 50_000
"""From so many embeddings of a model on, indexes are made: looking at all of them takes 25 ms and more."""
_NEAREST, _OF_ORGANIZATION = "ix_trajectory_embeddings_hnsw_", "ix_trajectory_embeddings_of_organization_"
"""What the names of both indexes begin with; the rest is of the model."""
_DIGEST: LiteralString = "left(encode(sha256(convert_to(m.model_id, 'UTF8')), 'hex'), 12)"
SPACE: LiteralString = (
    "SELECT p.*, m.model_id, m.name, m.dimensions,"
    f" to_regclass('trajectory.{_NEAREST}' || {_DIGEST}) IS NOT NULL,"
    f" to_regclass('trajectory.{_OF_ORGANIZATION}' || {_DIGEST}) IS NOT NULL"
    f" FROM (SELECT) one LEFT JOIN ({EXTENSION_STATE}) p ON true"
    " LEFT JOIN trajectory.embedding_models m ON m.is_current"
)
"""What can be searched by meaning: a row for ``as_space``."""
_STATEMENTS = {
    _NEAREST: "CREATE INDEX {name} ON trajectory.trajectory_embeddings"
    " USING hnsw ((embedding::{halfvec}({dimensions})) {operators}) WHERE model_id = {model} AND embedding IS NOT NULL",
    # Policies of clients with tenants ask for the agent too.
    _OF_ORGANIZATION: "CREATE INDEX {name} ON trajectory.trajectory_embeddings (organization_id)"
    " INCLUDE (run_id, agent_id, embedding) WHERE model_id = {model} AND embedding IS NOT NULL",
}
_MOST_DIMENSIONS = {_NEAREST: 4_000, _OF_ORGANIZATION: 256}
"""Of ``halfvec`` in an index of pgvector; and in a row of a B-tree, of 2,704 bytes, beside ``MOST_ID_BYTES`` of ids."""
_INDEXES = (
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE i.indrelid = 'trajectory.trajectory_embeddings'::regclass AND starts_with(c.relname::text, %s)"
)


@dataclass(frozen=True, slots=True)
class CurrentModel:
    """The embedding model that search uses: a query vector must be of this model.

    Attributes:
        indexed: whether its embeddings have an index that finds the nearest ones.
        by_organization: whether an index holds those of each organization together.
    """

    model_id: str
    name: str
    dimensions: int
    indexed: bool
    by_organization: bool


@dataclass(frozen=True, slots=True)
class SearchedSpace:
    """What can be searched by meaning: the extension, and the current model; None where there is none yet."""

    pgvector: PgVector
    model: CurrentModel | None


def find_space(connection: psycopg.Connection) -> SearchedSpace:
    """Return what can be searched by meaning."""
    row = connection.execute(SPACE).fetchone()
    assert row is not None  # noqa: S101 - one row without a table
    return as_space(connection, row)


def as_space(connection: psycopg.Connection, row: Sequence[Any]) -> SearchedSpace:
    """Return what a row of ``SPACE`` says."""
    found, model = row[:3], row[3:]
    return SearchedSpace(
        as_pgvector(connection, found if found[0] is not None else None),
        CurrentModel(*model) if model[0] is not None else None,
    )


def ensure_meaning_indexes(database: TrajectoryDatabase) -> int:
    """Make the indexes of the current model that are not there, if there are enough embeddings; returns how many.

    Indexes of a former model are dropped then. Meanwhile, embeddings are not written: at 50,000 for some 15 seconds.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    with database.connect() as connection, translating_database_errors(database.url, "Indexing embeddings"):
        space = find_space(connection)
        pgvector, model = space.pgvector, space.model
        if pgvector.missing or model is None:
            return 0
        there = {_NEAREST: model.indexed, _OF_ORGANIZATION: model.by_organization}
        missing = [one for one in there if not there[one] and model.dimensions <= _MOST_DIMENSIONS[one]]
        if not missing or not _has_many(connection, model):
            return 0
        for prefix in missing:
            for (former,) in connection.execute(_INDEXES, [prefix]).fetchall():
                connection.execute(sql.SQL("DROP INDEX trajectory.{}").format(sql.Identifier(former)))
            connection.execute(
                sql.SQL(_STATEMENTS[prefix]).format(
                    name=sql.Identifier(prefix + hashlib.sha256(model.model_id.encode()).hexdigest()[:12]),
                    halfvec=pgvector.halfvec,
                    dimensions=sql.Literal(model.dimensions),
                    operators=sql.Identifier(str(pgvector.schema), "halfvec_cosine_ops"),
                    model=sql.Literal(model.model_id),
                )
            )
        return len(missing)


def _has_many(connection: psycopg.Connection, model: CurrentModel) -> bool:
    counted = connection.execute(
        "SELECT count(*) FROM (SELECT FROM trajectory.trajectory_embeddings"
        " WHERE model_id = %s AND embedding IS NOT NULL LIMIT %s) counted",
        [model.model_id, INDEXED_EMBEDDINGS],
    ).fetchone()
    return counted == (INDEXED_EMBEDDINGS,)
