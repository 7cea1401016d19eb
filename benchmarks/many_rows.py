"""Trajectories, verdicts, search texts and embeddings in any number, multiplied from those of real runs."""

import contextlib
import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from trajectory_pipeline.search.search_text import render_search_text

AGENTS = 2_000
ORGANIZATIONS = 20
DAYS = 365
RARE_TOOL = "rare_tool"
RARE_MODEL = "rare-model"
_RARE_ONE_IN = 2_000
_ROWS_AT_ONCE = 50_000
_FIRST_END = datetime(2025, 1, 1, tzinfo=UTC)
_SECONDS_APART = 7_919
"""Between the ends of one run and the next, so that neighbors in a table are of different times."""

# What differs from the row that is multiplied; all else is as it was.
_CHANGED = {
    "run_id": "'run-' || md5('run' || n)::uuid",
    "trajectory_id": "md5('trajectory' || n)::uuid::text",
    "agent_id": f"'agent-' || md5('agent' || n %% {AGENTS})::uuid",
    "agent_name": f"agent_name || ' ' || n %% {AGENTS}",
    "organization_id": f"'org-' || n %% {ORGANIZATIONS}",
    "end_time": "ended",
    "start_time": "ended - duration_ns / 1000 * interval '1 microsecond'",
    "partition_key": "to_char(ended AT TIME ZONE 'UTC', 'YYYY-MM-DD-HH24:00')",
    "tools_used": f"CASE n %% {_RARE_ONE_IN} WHEN 7 THEN tools_used || ARRAY['{RARE_TOOL}'] ELSE tools_used END",
    "models": f"CASE n %% {_RARE_ONE_IN} WHEN 11 THEN ARRAY['{RARE_MODEL}'] ELSE models END",
    "continues_run_id": "CASE WHEN continues_run_id IS NOT NULL THEN 'run-' || md5('run' || n - 1)::uuid END",
}


def multiply(connection: psycopg.Connection, rows: int, *, own_texts: bool = False) -> list[str]:
    """Fill ``trajectory.trajectories`` up to so many rows, and gather statistics; returns the ids of those given.

    Args:
        connection: in autocommit, to a database that holds some trajectories.
        rows: how many there are to be, of 2,000 agents, spread over a year; one in 2,000 uses a tool and one a model
            that no other does.
        own_texts: let no two documents hold the same texts of messages; takes several times as long.
    """
    names = table_columns(connection, "trajectories")
    there = [str(row[0]) for row in connection.execute("SELECT run_id FROM trajectory.trajectories ORDER BY run_id")]
    changed = dict(_CHANGED)
    if own_texts:
        changed["data"] = """replace(data::text, '"text": "', '"text": "' || n || ' ')::jsonb"""
    ended = f"timestamptz '{_FIRST_END}' + (n::bigint * {_SECONDS_APART} %% {DAYS * 86_400}) * interval '1 second'"
    with without_indexes(connection, "trajectories"):
        for first in range(len(there), rows, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, rows) - 1
            connection.execute(
                f"INSERT INTO trajectory.trajectories ({', '.join(names)})"
                f" SELECT {', '.join(changed.get(name, name) for name in names)}"
                f" FROM generate_series(%s::int, %s) n CROSS JOIN LATERAL (SELECT {ended} AS ended) e"
                " JOIN trajectory.trajectories t"
                f" ON t.run_id = (%s::text[])[1 + (n + n / {AGENTS}) %% cardinality(%s::text[])]".encode(),
                [first, last, there, there],
            )
    connection.execute("VACUUM (ANALYZE) trajectory.trajectories")
    return there


def multiply_verdicts(connection: psycopg.Connection, rows: int) -> None:
    """Give each trajectory that ``multiply`` made the verdict of the one that it was made from."""
    names = table_columns(connection, "verdicts")
    made = "'run-' || md5('run' || n)::uuid"
    own = {"run_id": made, "summary": "v.summary || ' ' || n", "lesson": "v.lesson || ' ' || n"}
    chosen = ", ".join(own.get(name, f"v.{name}") for name in names)
    with without_indexes(connection, "verdicts"):
        connection.execute(
            f"INSERT INTO trajectory.verdicts ({', '.join(names)}) SELECT {chosen} FROM generate_series(1, %s) n"
            f" JOIN trajectory.trajectories t ON t.run_id = {made}"
            " JOIN trajectory.verdicts v ON v.content_digest = t.content_digest".encode(),
            [rows],
        )
    connection.execute("VACUUM (ANALYZE) trajectory.verdicts")


def multiply_search(
    connection: psycopg.Connection,
    given: Sequence[str],
    rows: int,
    embed: Callable[[Sequence[str]], Sequence[Any]],
    model_id: str,
) -> None:
    """Give each of so many trajectories a search text and an embedding.

    A text has the beginning of that of the run which was multiplied, and words as frequent as in all of these texts
    and, from the 3,000th on, as Zipf's law has it. An embedding is that of this run's text, with as much noise.

    Args:
        connection: in autocommit, to a database that ``multiply`` filled, with pgvector and without search texts.
        given: what ``multiply`` returned.
        rows: how many trajectories there are.
        embed: returns embeddings of texts, by the model.
        model_id: of the model, which becomes the current one.
    """
    register_vector(connection)
    runs = connection.execute(
        "SELECT run_id, partition_key, data FROM trajectory.trajectories WHERE run_id = ANY(%s) ORDER BY run_id",
        [list(given)],
    ).fetchall()
    texts = [render_search_text([data], None, str) for _, _, data in runs]
    vectors = np.array([vector / np.linalg.norm(vector) for vector in embed(texts)])
    dimensions = vectors.shape[1]
    connection.execute(
        "INSERT INTO trajectory.embedding_models (model_id, name, dimensions, is_current, created_at)"
        " VALUES (%s, %s, %s, true, now())",
        [model_id, model_id.partition("@")[0], dimensions],
    )
    words = _Words(texts)
    with without_indexes(connection, "search_texts"), without_indexes(connection, "trajectory_embeddings"):
        for first in range(0, rows, _ROWS_AT_ONCE):
            numbers = range(first, min(first + _ROWS_AT_ONCE, rows))
            rng = np.random.default_rng(first)
            base = [number if number < len(runs) else (number + number // AGENTS) % len(runs) for number in numbers]
            keys = [(runs[number][0], runs[number][1]) if number < len(runs) else _made(number) for number in numbers]
            made = [f"{texts[one][:200]} {more}" for one, more in zip(base, words.some(rng, len(base)), strict=True)]
            digests = [hashlib.sha256(text.encode()).hexdigest() for text in made]
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    "COPY trajectory.search_texts (run_id, partition_key, text, rendering_version, text_digest,"
                    " content_digest, rendered_at) FROM STDIN"
                ) as copy,
            ):
                for (run_id, key), text, digest in zip(keys, made, digests, strict=True):
                    copy.write_row((run_id, key, text, "1", digest, digest, _FIRST_END))
            noise = rng.standard_normal((len(base), dimensions)) / np.sqrt(dimensions)
            near = vectors[base] + noise
            near /= np.linalg.norm(near, axis=1, keepdims=True)
            with (
                connection.cursor() as cursor,
                cursor.copy(
                    "COPY trajectory.trajectory_embeddings (run_id, model_id, partition_key, text_digest,"
                    " rendering_version, embedding, embedded_at, failures) FROM STDIN (FORMAT BINARY)"
                ) as copy,
            ):
                copy.set_types(["text", "text", "text", "text", "text", "halfvec", "timestamptz", "int8"])
                for (run_id, key), vector, digest in zip(keys, near, digests, strict=True):
                    copy.write_row((run_id, model_id, key, digest, "1", HalfVector(vector), _FIRST_END, 0))
    connection.execute("VACUUM (ANALYZE) trajectory.search_texts")
    connection.execute("VACUUM (ANALYZE) trajectory.trajectory_embeddings")


class _Words:
    """Words as frequent as in some texts; the rarer ones are made up."""

    _REAL, _ALL = 3_000, 50_000
    _MEDIAN, _SPREAD, _MOST = 60, 0.8, 1_000

    def __init__(self, texts: Sequence[str]) -> None:
        found, counts = np.unique(" ".join(texts).lower().split(), return_counts=True)
        order = np.argsort(-counts, kind="stable")[: self._REAL]
        made_up = [f"w{number}x" for number in range(self._ALL - len(order))]
        self._words = np.array([*found[order], *made_up], dtype=object)
        rarest = counts[order[-1]] * len(order) / np.arange(len(order), self._ALL)
        self._shares = np.cumsum([*counts[order], *rarest])

    def some(self, rng: np.random.Generator, texts: int) -> Iterator[str]:
        """Yield so many texts of random length: 60 words at the median, 1,000 at most."""
        lengths = np.minimum(rng.lognormal(np.log(self._MEDIAN), self._SPREAD, texts).astype(int) + 1, self._MOST)
        drawn = np.searchsorted(self._shares, rng.random(lengths.sum()) * self._shares[-1])
        words = self._words[drawn]
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            yield " ".join(words[start:end])


@contextlib.contextmanager
def without_indexes(connection: psycopg.Connection, table: str) -> Iterator[None]:
    """Drop a table's indexes, but for its key, and make them again after the block: that is several times faster."""
    indexes = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'trajectory' AND tablename = %s"
        " AND indexname NOT LIKE '%%_pkey'",
        [table],
    ).fetchall()
    for name, _ in indexes:
        connection.execute(sql.SQL("DROP INDEX trajectory.{}").format(sql.Identifier(name)))
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    for _, definition in indexes:
        # Of a partitioned table, the definition makes an index of the parent alone: no partition would have it.
        connection.execute(definition.replace(" ON ONLY ", " ON ", 1).encode())
    connection.execute("RESET maintenance_work_mem")


def table_columns(connection: psycopg.Connection, table: str) -> list[str]:
    """Return the columns of a table that can be written."""
    return [
        str(row[0])
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'trajectory' AND table_name = %s AND is_generated = 'NEVER'",
            [table],
        )
    ]


def _made(number: int) -> tuple[str, str]:
    """Return id and partition key of a run that ``multiply`` made."""
    ended = _FIRST_END + timedelta(seconds=number * _SECONDS_APART % (DAYS * 86_400))
    digest = hashlib.md5(f"run{number}".encode(), usedforsecurity=False).hexdigest()
    return f"run-{uuid.UUID(digest)}", f"{ended:%Y-%m-%d-%H:00}"
