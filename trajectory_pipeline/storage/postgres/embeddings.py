"""Embeddings of search texts: which are missing, storing them, and which model search uses.

A row is up to date where its ``text_digest`` is that of the run's text. Equal texts have one embedding: it is copied
from run to run and never paid for twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString

from psycopg import sql

from trajectory_pipeline.lossless_json import write_json
from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.pgvector import PgVector, find_pgvector
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_locks import VerdictLock, lock_verdict, release_lock

FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=15), timedelta(days=1)
"""Before a text that the model gave no embedding for is tried again: doubled with each failure, up to the longest."""
_WANTED = """
FROM trajectory.search_texts s JOIN trajectory.trajectories t USING (run_id)
LEFT JOIN trajectory.trajectory_embeddings e ON e.run_id = s.run_id AND e.model_id = %(model)s
WHERE s.partition_key = ANY(%(keys)s) AND s.text <> '' AND t.deleted_at IS NULL
    AND (e.run_id IS NULL OR e.text_digest <> s.text_digest OR e.next_attempt_at <= clock_timestamp()
        OR e.error_class = 'denied')"""
_SELECT_WANTED = f"""
SELECT s.run_id, s.partition_key, s.text, s.text_digest, s.rendering_version, t.organization_id, t.agent_id,
    coalesce(e.text_digest = s.text_digest AND e.error_class = 'denied', false) AS is_denied
{_WANTED} ORDER BY s.run_id"""
_SAVE = """
INSERT INTO trajectory.trajectory_embeddings AS e (run_id, model_id, partition_key, text_digest, rendering_version,
    embedding, embedded_at, error_class, error_message, failures, next_attempt_at)
{source}
ON CONFLICT (run_id, model_id) DO UPDATE SET partition_key = EXCLUDED.partition_key,
    text_digest = EXCLUDED.text_digest, rendering_version = EXCLUDED.rendering_version, embedding = EXCLUDED.embedding,
    embedded_at = EXCLUDED.embedded_at, error_class = EXCLUDED.error_class, error_message = EXCLUDED.error_message,
    failures = CASE WHEN EXCLUDED.failures = 0 THEN 0 WHEN e.text_digest = EXCLUDED.text_digest THEN e.failures + 1
        ELSE 1 END,
    next_attempt_at = CASE WHEN EXCLUDED.next_attempt_at IS NOT NULL AND e.text_digest = EXCLUDED.text_digest
        THEN clock_timestamp() + least(%(pause)s * power(2, least(e.failures, 20)), %(longest)s)
        ELSE EXCLUDED.next_attempt_at END"""
_COPY = f"""SELECT s.run_id, %(model)s, s.partition_key, s.text_digest, s.rendering_version, k.embedding,
    clock_timestamp(), NULL, NULL, 0, NULL
    FROM (SELECT s.* {_WANTED} ORDER BY s.run_id FOR SHARE OF s) s
    CROSS JOIN LATERAL (SELECT k.embedding FROM trajectory.trajectory_embeddings k
        WHERE k.model_id = %(model)s AND k.text_digest = s.text_digest AND k.embedding IS NOT NULL LIMIT 1) k"""
# A text that was erased or changed meanwhile gets none. Locked: who erases one waits, and then finds its embedding.
_NEW = """SELECT s.run_id, %(model)s, s.partition_key, s.text_digest, s.rendering_version, n.embedding::{halfvec},
    clock_timestamp(), n.error_class, n.error_message, (n.error_class IS NOT NULL)::int,
    CASE WHEN n.retried THEN clock_timestamp() + %(pause)s END
    FROM (SELECT s.* FROM trajectory.search_texts s JOIN unnest(%(run_ids)s::text[], %(digests)s::text[])
        AS w (run_id, text_digest) ON w.run_id = s.run_id AND w.text_digest = s.text_digest
        ORDER BY s.run_id FOR SHARE OF s) s
    JOIN jsonb_to_recordset(%(found)s::jsonb)
        AS n (text_digest text, embedding text, error_class text, error_message text, retried boolean)
        ON n.text_digest = s.text_digest"""
# What stays where only the rendering's version, or the partition of the run, is another one. The text is locked first,
# as by the trigger on trajectories, run by run.
_KEEP_UP = """
UPDATE trajectory.trajectory_embeddings e
SET partition_key = s.partition_key, rendering_version = s.rendering_version
FROM (
    SELECT s.* FROM trajectory.search_texts s
    WHERE s.partition_key = ANY(%(keys)s) AND EXISTS (
        SELECT FROM trajectory.trajectory_embeddings e WHERE s.run_id = e.run_id AND s.text_digest = e.text_digest
            AND (s.partition_key, s.rendering_version) <> (e.partition_key, e.rendering_version))
    ORDER BY s.run_id FOR SHARE OF s) s
WHERE s.run_id = e.run_id AND s.text_digest = e.text_digest
    AND (s.partition_key, s.rendering_version) <> (e.partition_key, e.rendering_version)"""
_USE_MODEL = """
INSERT INTO trajectory.embedding_models (model_id, name, base_url, weights_digest, dimensions, is_current, created_at)
VALUES (%s, %s, %s, %s, %s, NOT EXISTS (SELECT FROM trajectory.embedding_models WHERE is_current), clock_timestamp())
ON CONFLICT (model_id) DO NOTHING"""
# Of the texts that the current model has an embedding of, does the new one know all?
_BEHIND = """
SELECT count(*) AS n FROM trajectory.search_texts s JOIN trajectory.trajectories t USING (run_id)
JOIN trajectory.embedding_models m ON m.is_current AND m.model_id <> %(model)s
JOIN trajectory.trajectory_embeddings o ON o.run_id = s.run_id AND o.model_id = m.model_id AND o.embedding IS NOT NULL
LEFT JOIN trajectory.trajectory_embeddings e ON e.run_id = s.run_id AND e.model_id = %(model)s
    AND e.text_digest = s.text_digest
WHERE t.deleted_at IS NULL AND s.text <> '' AND e.run_id IS NULL"""
_MAKE_CURRENT: tuple[LiteralString, ...] = (
    "UPDATE trajectory.embedding_models SET is_current = false WHERE is_current AND model_id <> %(model)s",
    "UPDATE trajectory.embedding_models SET is_current = true WHERE NOT is_current AND model_id = %(model)s",
)
_COUNTS = """
SELECT count(e.embedding) FILTER (WHERE e.text_digest = s.text_digest) AS embedded,
    count(*) FILTER (WHERE e.text_digest = s.text_digest AND e.error_class <> 'denied') AS failed,
    count(*) FILTER (WHERE e.text_digest = s.text_digest AND e.error_class = 'denied') AS denied
FROM trajectory.search_texts s JOIN trajectory.trajectories t USING (run_id)
LEFT JOIN trajectory.trajectory_embeddings e ON e.run_id = s.run_id AND e.model_id = %s
WHERE s.partition_key = %s AND s.text <> '' AND t.deleted_at IS NULL"""
_FAILED = """
SELECT e.run_id, e.error_class, e.error_message FROM trajectory.trajectory_embeddings e
JOIN trajectory.search_texts s USING (run_id, text_digest)
WHERE e.model_id = %s AND s.partition_key = ANY(%s) AND e.error_class <> 'denied' ORDER BY 1"""


@dataclass(frozen=True)
class WantedText:
    """A text without an embedding of the model; ``is_denied`` where it is recorded that it may not be sent."""

    run_id: str
    partition_key: str
    text: str
    text_digest: str
    rendering_version: str
    organization_id: str | None
    agent_id: str
    is_denied: bool


@dataclass(frozen=True)
class FailedText:
    """Why a model gave no embedding for a text; ``is_retried``: whether trying again may help."""

    error_class: str
    error_message: str
    is_retried: bool


class EmbeddingStore:
    """An open ``connection`` for the embeddings of one model; what is stored is committed at once.

    Methods raise ``SinkError`` if the database refuses, or cannot be reached any more.
    """

    def __init__(self, connection: RetryingConnection, pgvector: PgVector, model: EmbeddingModel) -> None:
        self.connection = connection
        self.model = model
        self._halfvec = pgvector.halfvec
        self._pauses = {"pause": FIRST_PAUSE, "longest": LONGEST_PAUSE}

    def dimensions(self) -> int | None:
        """Return the dimensions of the model's embeddings; None where none is stored yet."""
        rows = self.connection.rows(
            "Reading the embedding model",
            "SELECT dimensions FROM trajectory.embedding_models WHERE model_id = %s",
            [self.model.model_id],
        )
        return rows[0]["dimensions"] if rows else None

    def reuse(self, partition_keys: Sequence[str]) -> int:
        """Give each text of these partitions the embedding of an equal text, where there is one; returns how many."""
        parameters = {"model": self.model.model_id, "keys": list(partition_keys), **self._pauses}

        statement = sql.SQL(_SAVE + " RETURNING 1 AS one").format(source=sql.SQL(_COPY))
        # Two transactions: one that kept embeddings locked, and then locked texts, could wait for a capture that waits
        # for it.
        self.connection.rows("Keeping embeddings up to date", sql.SQL(_KEEP_UP), parameters)
        return len(self.connection.rows("Reusing embeddings", statement, parameters))

    def wanted(self, partition_keys: Sequence[str]) -> list[WantedText]:
        """Return the texts of partitions that have no embedding, and of those that had an error, the ones due again."""
        rows = self.connection.rows(
            "Looking for missing embeddings",
            sql.SQL(_SELECT_WANTED),
            {"model": self.model.model_id, "keys": list(partition_keys)},
        )
        return [WantedText(**row) for row in rows]

    def claim(self, claims: Sequence[VerdictLock]) -> tuple[set[str], set[str]]:
        """Claim texts, but for those that another worker has claimed or embedded.

        Returns:
            The digests of texts that another worker has claimed, and of those that have an embedding by now.
        """

        def work(transaction: Transaction) -> tuple[set[str], set[str]]:
            refused = {_digest_of(key) for key in lock_verdict(transaction, claims)}
            # Not before they are claimed: who had the claim stores the embedding and releases it together.
            mine = [_digest_of(one.verdict_key) for one in claims if _digest_of(one.verdict_key) not in refused]
            rows = transaction.rows(
                "SELECT DISTINCT text_digest FROM trajectory.trajectory_embeddings"
                " WHERE model_id = %s AND text_digest = ANY(%s) AND embedding IS NOT NULL",
                [self.model.model_id, mine],
            )
            known = {row["text_digest"] for row in rows}
            if known:
                release_lock(transaction, claims[0].worker, sorted(map(self.claim_key, known)))
            return refused, known

        return self.connection.run("Claiming texts", work)

    def claim_key(self, digest: str) -> str:
        """Return the key of the claim on a text."""
        return f"embedding:{self.model.model_id}:{digest}"

    def release(self, worker: str) -> None:
        """Release every claim of a worker."""
        self.connection.rows("Giving claims back", "DELETE FROM trajectory.verdict_locks WHERE worker = %s", [worker])

    def save(
        self,
        texts: Sequence[WantedText],
        found: Mapping[str, Vector | FailedText],
        worker: str | None = None,
    ) -> None:
        """Store what was found by text digest, for each run with that text, and release the claims, together.

        A text that was erased, or has changed meanwhile, is left out.
        """
        vectors = [one for one in found.values() if not isinstance(one, FailedText)]
        parameters = {
            "model": self.model.model_id,
            "run_ids": [text.run_id for text in texts],
            "digests": [text.text_digest for text in texts],
            "found": write_json([_as_row(digest, one) for digest, one in found.items()]),
            **self._pauses,
        }
        statement = sql.SQL(_SAVE).format(source=sql.SQL(_NEW).format(halfvec=self._halfvec))
        model = self.model

        def work(transaction: Transaction) -> None:
            if vectors:
                transaction.rows("SELECT pg_advisory_xact_lock(hashtextextended('trajectory embedding model', 0))")
                names = [model.model_id, model.name, model.base_url, model.weights_digest, len(vectors[0])]
                transaction.rows(sql.SQL(_USE_MODEL), names)
            transaction.rows(statement, parameters)
            if worker is not None:
                release_lock(transaction, worker, [self.claim_key(digest) for digest in found])

        self.connection.run(f"Storing {len(found)} embeddings", work)

    def make_current(self) -> bool:
        """Let search use the model, if it has caught up with the one that it uses now; returns whether it does."""

        def work(transaction: Transaction) -> bool:
            transaction.rows("SELECT pg_advisory_xact_lock(hashtextextended('trajectory embedding model', 0))")
            parameters = {"model": self.model.model_id}
            if transaction.rows(sql.SQL(_BEHIND), parameters)[0]["n"]:
                return False
            known = transaction.rows(
                "SELECT 1 AS one FROM trajectory.embedding_models WHERE model_id = %(model)s", parameters
            )
            if known:
                for statement in _MAKE_CURRENT:
                    transaction.rows(sql.SQL(statement), parameters)
            return bool(known)

        return self.connection.run("Choosing the embedding model of search", work)

    def is_current(self) -> bool:
        """Whether search uses the model."""
        return bool(
            self.connection.rows(
                "Reading the embedding model",
                "SELECT 1 AS one FROM trajectory.embedding_models WHERE is_current AND model_id = %s",
                [self.model.model_id],
            )
        )

    def counts(self, partition_key: str) -> dict[str, int]:
        """Return how many texts of a partition have an embedding, failed, and may not be sent."""
        (row,) = self.connection.rows("Counting embeddings", sql.SQL(_COUNTS), [self.model.model_id, partition_key])
        return row

    def failed(self, partition_keys: Sequence[str]) -> dict[str, str]:
        """Return why texts of these partitions have no embedding, by run."""
        rows = self.connection.rows(
            "Looking for failed embeddings", sql.SQL(_FAILED), [self.model.model_id, list(partition_keys)]
        )
        return {row["run_id"]: f"{row['error_class']}: {row['error_message']}" for row in rows}


def search_counts(database: TrajectoryDatabase) -> dict[str, int]:
    """Return how many texts search finds words in, and how many have an embedding of the model that it uses."""
    (texts,) = database.rows("SELECT count(*) AS n FROM trajectory.search_texts WHERE text <> ''")
    with database.connect() as connection:
        is_there = find_pgvector(connection).schema is not None
    embedded = (
        database.rows(
            "SELECT count(*) AS n FROM trajectory.trajectory_embeddings JOIN trajectory.embedding_models"
            " USING (model_id) WHERE is_current AND embedding IS NOT NULL"
        )[0]["n"]
        if is_there
        else 0
    )
    return {"search texts": texts["n"], "embeddings of them": embedded}


def _digest_of(claim_key: str) -> str:
    return claim_key.rpartition(":")[2]


def _as_row(digest: str, found: Vector | FailedText) -> dict[str, Any]:
    if isinstance(found, FailedText):
        return {
            "text_digest": digest,
            "error_class": found.error_class,
            "error_message": found.error_message,
            "retried": found.is_retried,
        }
    return {"text_digest": digest, "embedding": f"[{','.join(map('{:.7g}'.format, found.tolist()))}]", "retried": False}
