"""The index for search by meaning: approximate, so that it is made and used only where looking at all takes long."""

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
"""From so many embeddings of a model on, an index is made: looking at all of them takes 25 ms and more."""
SPACE: LiteralString = (
    "SELECT p.*, m.model_id, m.name, m.dimensions, to_regclass('trajectory.ix_trajectory_embeddings_hnsw_'"
    " || left(encode(sha256(convert_to(m.model_id, 'UTF8')), 'hex'), 12)) IS NOT NULL"
    f" FROM (SELECT) one LEFT JOIN ({EXTENSION_STATE}) p ON true"
    " LEFT JOIN trajectory.embedding_models m ON m.is_current"
)
"""What can be searched by meaning: a row for ``as_space``."""
_MOST_DIMENSIONS = 4_000
"""Of ``halfvec`` in an index of pgvector."""
_PREFIX = "ix_trajectory_embeddings_hnsw_"
_INDEXES = (
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE i.indrelid = 'trajectory.trajectory_embeddings'::regclass AND starts_with(c.relname::text, %s)"
)


@dataclass(frozen=True, slots=True)
class CurrentModel:
    """The embedding model that search uses: a query vector must be of this model.

    Attributes:
        indexed: whether its embeddings have an index.
    """

    model_id: str
    name: str
    dimensions: int
    indexed: bool


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


def ensure_meaning_index(database: TrajectoryDatabase) -> bool:
    """Make the index of the current model if there are enough embeddings and none is there; returns whether it did.

    An index of a former model is dropped then. Meanwhile, embeddings are not written: at 50,000 for some 15 seconds.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    with database.connect() as connection, translating_database_errors(database.url, "Indexing embeddings"):
        space = find_space(connection)
        pgvector, model = space.pgvector, space.model
        if pgvector.missing or model is None or model.indexed or model.dimensions > _MOST_DIMENSIONS:
            return False
        counted = connection.execute(
            "SELECT count(*) FROM (SELECT FROM trajectory.trajectory_embeddings"
            " WHERE model_id = %s AND embedding IS NOT NULL LIMIT %s) counted",
            [model.model_id, INDEXED_EMBEDDINGS],
        ).fetchone()
        if counted != (INDEXED_EMBEDDINGS,):
            return False
        for (former,) in connection.execute(_INDEXES, [_PREFIX]).fetchall():
            connection.execute(sql.SQL("DROP INDEX trajectory.{}").format(sql.Identifier(former)))
        connection.execute(
            sql.SQL(
                "CREATE INDEX {name} ON trajectory.trajectory_embeddings"
                " USING hnsw ((embedding::{halfvec}({dimensions})) {operators})"
                " WHERE model_id = {model} AND embedding IS NOT NULL"
            ).format(
                name=sql.Identifier(_name(model.model_id)),
                halfvec=pgvector.halfvec,
                dimensions=sql.Literal(model.dimensions),
                operators=sql.Identifier(str(pgvector.schema), "halfvec_cosine_ops"),
                model=sql.Literal(model.model_id),
            )
        )
        return True


def _name(model_id: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(model_id.encode()).hexdigest()[:12]}"
