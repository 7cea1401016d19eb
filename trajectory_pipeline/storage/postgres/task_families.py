"""The registry of task families: runs that are in none yet, representatives, and similar earlier runs.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from psycopg import sql

from trajectory_pipeline.search.families import Assignment, Bar, Vectors
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.pgvector import PgVector, find_pgvector

NEAREST = 3
"""Similar earlier runs that are kept of each run."""
_REPRESENTATIVES_AT_ONCE = 20_000

# The order in which runs found families, and in which one is earlier than another.
_EMBEDDED = """
FROM trajectory.trajectory_embeddings e JOIN trajectory.trajectories t USING (run_id)
WHERE e.model_id = %(model)s AND e.embedding IS NOT NULL AND t.deleted_at IS NULL
    AND NOT EXISTS (SELECT FROM trajectory.task_family_runs r WHERE r.run_id = e.run_id)"""
_WAITING = f"SELECT coalesce(t.organization_id, ''), count(*) {_EMBEDDED} GROUP BY 1 ORDER BY 1"
_NEXT = f"""
SELECT e.run_id, e.embedding::text {_EMBEDDED} AND coalesce(t.organization_id, '') = %(organization)s
ORDER BY coalesce(t.end_time, t.start_time), e.run_id LIMIT %(most)s"""
_REPRESENTATIVES = """
SELECT f.family_id, e.embedding::text FROM trajectory.task_families f
JOIN trajectory.trajectory_embeddings e ON e.run_id = f.representative_run_id
WHERE coalesce(f.organization_id, '') = %(organization)s AND e.model_id = %(model)s AND e.embedding IS NOT NULL
ORDER BY f.position"""
_REMOVE_OLD = (
    """DELETE FROM trajectory.similar_runs s
    WHERE EXISTS (SELECT FROM unnest(ARRAY[s.run_id, s.similar_run_id]) u (run_id) WHERE NOT EXISTS (
        SELECT FROM trajectory.trajectories t WHERE t.run_id = u.run_id AND t.deleted_at IS NULL))""",
    """DELETE FROM trajectory.task_family_runs r
    WHERE NOT EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = r.run_id AND t.deleted_at IS NULL)""",
    """UPDATE trajectory.task_families f SET representative_run_id = (
        SELECT r.run_id FROM trajectory.task_family_runs r JOIN trajectory.trajectories t USING (run_id)
        WHERE r.family_id = f.family_id ORDER BY coalesce(t.end_time, t.start_time), r.run_id LIMIT 1)
    WHERE NOT EXISTS (SELECT FROM trajectory.task_family_runs r
        WHERE r.run_id = f.representative_run_id AND r.family_id = f.family_id)""",
)
_FOUND = """
INSERT INTO trajectory.task_families (family_id, organization_id, representative_run_id, position, founded_at)
SELECT %s, nullif(%s, ''), %s, coalesce(max(position), 0) + 1, clock_timestamp() FROM trajectory.task_families
-- All of its runs were gone, and this one is back.
ON CONFLICT (family_id) DO UPDATE SET representative_run_id = excluded.representative_run_id
WHERE task_families.representative_run_id IS NULL"""
_JOIN = """
INSERT INTO trajectory.task_family_runs (run_id, family_id, similarity, model_id, assigned_at)
VALUES (%s, %s, %s, %s, clock_timestamp())"""
# A run that came late is earlier than some that were there before it.
_SIMILAR = """
WITH added AS MATERIALIZED (
    SELECT r.run_id, r.family_id, e.embedding, coalesce(t.end_time, t.start_time) AS ended
    FROM trajectory.task_family_runs r JOIN trajectory.trajectories t USING (run_id)
    JOIN trajectory.trajectory_embeddings e USING (run_id)
    WHERE r.run_id = ANY(%(runs)s) AND e.model_id = %(model)s AND e.embedding IS NOT NULL
), members AS MATERIALIZED (
    SELECT r.run_id, r.family_id, e.embedding, coalesce(t.end_time, t.start_time) AS ended
    FROM trajectory.task_family_runs r JOIN trajectory.trajectories t USING (run_id)
    JOIN trajectory.trajectory_embeddings e USING (run_id)
    WHERE r.family_id IN (SELECT family_id FROM added) AND e.model_id = %(model)s AND e.embedding IS NOT NULL
), pairs AS (
    SELECT a.run_id, m.run_id AS similar_run_id, 1 - (a.embedding {distance} m.embedding) AS similarity
    FROM added a JOIN members m ON m.family_id = a.family_id AND (m.ended, m.run_id) < (a.ended, a.run_id)
    UNION
    SELECT m.run_id, a.run_id, 1 - (a.embedding {distance} m.embedding)
    FROM added a JOIN members m ON m.family_id = a.family_id AND (m.ended, m.run_id) > (a.ended, a.run_id)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY run_id ORDER BY similarity DESC, similar_run_id) AS place FROM pairs
)
INSERT INTO trajectory.similar_runs (run_id, similar_run_id, similarity, model_id)
SELECT run_id, similar_run_id, similarity, %(model)s FROM ranked WHERE place <= %(nearest)s
ON CONFLICT (run_id, similar_run_id) DO NOTHING"""
_TRIM = """
DELETE FROM trajectory.similar_runs s USING (
    SELECT run_id, similar_run_id,
        row_number() OVER (PARTITION BY run_id ORDER BY similarity DESC, similar_run_id) AS place
    FROM trajectory.similar_runs
    WHERE run_id IN (SELECT run_id FROM trajectory.similar_runs
        WHERE run_id = ANY(%(runs)s) OR similar_run_id = ANY(%(runs)s))
) ranked
WHERE s.run_id = ranked.run_id AND s.similar_run_id = ranked.similar_run_id AND ranked.place > %(nearest)s"""
# What an export says of a run, and by which its split is drawn: those partitions of exports are made again.
_STALE_EXPORTS = """
UPDATE trajectory.partitions SET inputs_digest = NULL WHERE asset LIKE 'exports/%%' AND partition_key IN (
    SELECT partition_key FROM trajectory.trajectories WHERE run_id = ANY(%(runs)s))"""
_OUTCOMES = """
SELECT f.*, x.summary AS example, x.run_id AS example_run_id
FROM (
    SELECT * FROM trajectory.task_family_outcomes WHERE cardinality(%(ids)s::text[]) = 0 OR family_id = ANY(%(ids)s)
    ORDER BY runs DESC, family_id LIMIT %(most)s
) f LEFT JOIN LATERAL (
    SELECT o.run_id, o.summary FROM trajectory.task_family_runs r JOIN trajectory.outcomes o USING (run_id)
    WHERE r.family_id = f.family_id AND o.verdict_status = 'judged'
    ORDER BY o.end_time DESC NULLS LAST, o.run_id LIMIT 1
) x ON true
ORDER BY f.runs DESC, f.family_id"""
_LOCK = "LOCK TABLE trajectory.task_families IN SHARE ROW EXCLUSIVE MODE"


@dataclass(frozen=True)
class FamilyRegistry:
    """The registry, locked for one process until its transaction ends.

    Attributes:
        model_id: the model by whose embeddings runs are compared.
    """

    connection: psycopg.Connection
    pgvector: PgVector
    model_id: str

    def waiting(self) -> dict[str, int]:
        """Return how many runs are in no family, by organization; empty for runs without one."""
        return dict(self.connection.execute(_WAITING, {"model": self.model_id}).fetchall())

    def next_runs(self, organization: str, most: int) -> tuple[list[str], Vectors]:
        """Return the earliest runs of an organization that are in no family, with their embeddings."""
        parameters = {"model": self.model_id, "organization": organization, "most": most}
        rows = self.connection.execute(_NEXT, parameters).fetchall()
        return [run_id for run_id, _ in rows], _vectors([vector for _, vector in rows])

    def representatives(self, organization: str) -> Iterator[tuple[list[str], Vectors]]:
        """Yield the families of an organization with the embeddings of their representatives, in portions."""
        parameters = {"model": self.model_id, "organization": organization}
        with self.connection.cursor("representatives") as cursor:
            cursor.execute(_REPRESENTATIVES, parameters)
            while rows := cursor.fetchmany(_REPRESENTATIVES_AT_ONCE):
                yield [family for family, _ in rows], _vectors([vector for _, vector in rows])

    def bar(self, organization: str) -> float | None:
        """Return how similar a run must be to join a family; None where it was not measured yet."""
        row = self.connection.execute(
            "SELECT similarity FROM trajectory.task_family_bars WHERE organization_id = %s AND model_id = %s",
            [organization, self.model_id],
        ).fetchone()
        return None if row is None else float(row[0])

    def save_bar(self, organization: str, bar: Bar) -> None:
        """Keep what was measured."""
        self.connection.execute(
            "INSERT INTO trajectory.task_family_bars"
            " (organization_id, model_id, similarity, median, deviation, mean, nearest, runs, measured_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp())",
            [organization, self.model_id, *astuple(bar)],
        )

    def assign(self, organization: str, run_ids: Sequence[str], assigned: Sequence[Assignment]) -> None:
        """Put runs into families, and find the earlier runs of their family that they are most like."""
        pairs = list(zip(run_ids, assigned, strict=True))
        parameters: dict[str, Any] = {"runs": list(run_ids), "model": self.model_id, "nearest": NEAREST}
        with self.connection.cursor() as cursor:
            founded = [(one.family_id, organization, run) for run, one in pairs if one.similarity is None]
            cursor.executemany(_FOUND.encode(), founded)
            joined = [(run, one.family_id, one.similarity, self.model_id) for run, one in pairs]
            cursor.executemany(_JOIN.encode(), joined)
            cursor.execute(sql.SQL(_SIMILAR).format(distance=self.pgvector.cosine_distance), parameters)
            cursor.execute(_TRIM, parameters)
            cursor.execute(_STALE_EXPORTS, parameters)


@contextmanager
def locked_registry(database: TrajectoryDatabase) -> Iterator[FamilyRegistry | None]:
    """Lock the registry and remove runs that are gone; None where there are no embeddings that search uses."""
    with database.connect() as connection, translating_database_errors(database.url, "Writing task families"):
        pgvector = find_pgvector(connection)
        model = connection.execute("SELECT model_id FROM trajectory.embedding_models WHERE is_current").fetchone()
        if pgvector.missing or model is None:
            yield None
            return
        connection.execute(_LOCK)
        for statement in _REMOVE_OLD:
            connection.execute(statement.encode())
        yield FamilyRegistry(connection, pgvector, model[0])


def family_outcomes(database: TrajectoryDatabase, most: int, family_ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return rows of ``task_family_outcomes``, those with most runs first; of these ids alone where there are any.

    Each has ``example``, the summary of the newest judged run, and ``example_run_id``; None where no run is judged.
    """
    return database.rows(_OUTCOMES, {"most": most, "ids": list(family_ids)})


def _vectors(texts: Sequence[str]) -> Vectors:
    """Return embeddings of length 1 from the text of their ``halfvec``."""
    vectors = np.array([HalfVector.from_text(text).to_numpy() for text in texts], dtype=np.float32)
    if not len(vectors):
        return vectors.reshape(0, 0)
    # Rounded to 16 bits, their length is not quite 1 any more.
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
