"""Erasing the texts of verdicts whose judge was shown content that was since deleted at the source.

A verdict is erased if it was shown a run whose content digest differs from that of the erased run now. So erasing can
be repeated at any time, after a crash too, and a verdict on the remaining content stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql

from trajectory_pipeline.schema.types import JSON, STRING, STRINGS, Sink, Table
from trajectory_pipeline.schema.verdicts import VERDICT_ATTEMPTS, VERDICTS

RETAINED_VERDICT_COLUMNS = frozenset(
    {"run_id", "verdict_key", "policy_id", "partition_key", "content_digest", "verdict_status", "outcome"}
    | {"failure_owner", "failure_mode", "failed_step_id", "task_category", "complexity", "model", "error_class"}
    | {"shown_run_ids", "shown_digests", "response_format", "votes", "escalation", "context_coverage"}
)
RETAINED_ATTEMPT_COLUMNS = frozenset(
    {"attempt_id", "run_id", "verdict_key", "policy_id", "model", "response_model", "base_url", "request_id"}
    | {"finish_reason", "result", "error_class", "purpose", "response_format"}
    | {"budget_day", "organization_id", "materialization_id", "batch_id"}
)
"""Texts that stay: ids, and words of closed lists. Any other text is erased, so that no new column is forgotten."""

_SHOWED_ERASED_CONTENT: LiteralString = """EXISTS (
    SELECT FROM unnest(v.shown_run_ids, v.shown_digests) AS s (run_id, content_digest)
    JOIN trajectory.trajectories t ON t.run_id = s.run_id
    WHERE t.erased AND t.content_digest <> s.content_digest)"""


@dataclass(frozen=True)
class VerdictShowingRun:
    """A verdict on content that was since erased; Parquet files of ``partition_keys`` may hold it."""

    run_id: str
    verdict_key: str
    partition_keys: tuple[str, ...]


def erasable_columns(table: Table, retained: frozenset[str]) -> list[str]:
    """Return the names of a table's columns that are erased: every text that is not listed as retained."""
    return [
        column.name
        for column in table.in_sink(Sink.POSTGRES)
        if column.type in (STRING, JSON, STRINGS) and column.name not in retained
    ]


def erased_runs(connection: psycopg.Connection, partition_key: str) -> list[str]:
    """Return a partition's runs whose deleted content was erased."""
    rows = connection.execute(
        "SELECT run_id FROM trajectory.trajectories WHERE partition_key = %s AND erased ORDER BY 1", [partition_key]
    ).fetchall()
    return [row[0] for row in rows]


def record_rewritten(connection: psycopg.Connection, asset: str, partition_key: str, content_digest: str) -> None:
    """Record in the ledger the digest of an asset's file after texts were erased from it."""
    connection.execute(
        "UPDATE trajectory.partitions SET content_digest = %s WHERE asset = %s AND partition_key = %s",
        [content_digest, asset, partition_key],
    )


def verdicts_that_showed(connection: psycopg.Connection, run_ids: Sequence[str]) -> list[VerdictShowingRun]:
    """Return the verdicts that showed these runs before they were erased, including those erased already."""
    rows = connection.execute(
        sql.SQL(
            "SELECT v.run_id, v.verdict_key, array_agg(DISTINCT k.partition_key) FROM trajectory.verdicts v"
            " LEFT JOIN trajectory.trajectories own ON own.run_id = v.run_id,"
            " unnest(ARRAY[v.partition_key, own.partition_key]) AS k (partition_key)"
            " WHERE v.shown_run_ids && %s AND (v.erased OR {}) AND k.partition_key IS NOT NULL"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ).format(sql.SQL(_SHOWED_ERASED_CONTENT)),
        [list(run_ids)],
    ).fetchall()
    return [VerdictShowingRun(run_id, key, tuple(partitions)) for run_id, key, partitions in rows]


def erase_verdicts_that_showed(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Erase the texts of every verdict, and of its calls, that showed these runs before they were erased."""
    parameters: dict[str, object] = {"ids": list(run_ids)}
    _erase_verdicts(connection, "v.shown_run_ids && %(ids)s", parameters)
    # A call without a verdict, because of a crash, has no list of what it showed.
    _erase_attempts(
        connection,
        "a.run_id = ANY(%(ids)s) AND NOT EXISTS (SELECT FROM trajectory.verdicts v WHERE v.run_id = a.run_id"
        " AND v.verdict_key = a.verdict_key AND NOT v.erased)",
        parameters,
    )


def erase_messages_of_embedding_calls(connection: psycopg.Connection) -> None:
    """Erase what providers said of failed calls for embeddings: it may quote any of the texts that were sent."""
    _erase_attempts(connection, "a.texts IS NOT NULL", {})


def erase_verdicts_of(connection: psycopg.Connection, partition_key: str) -> None:
    """Erase the texts of a partition's verdicts on runs that were erased while they were judged."""
    _erase_verdicts(connection, "v.partition_key = %(key)s", {"key": partition_key})


def erase_attempts_of(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Erase the texts of every call for these runs; tokens and cost stay."""
    _erase_attempts(connection, "a.run_id = ANY(%(ids)s)", {"ids": list(run_ids)})


def _erase_verdicts(connection: psycopg.Connection, condition: LiteralString, parameters: dict[str, object]) -> None:
    connection.execute(
        sql.SQL("UPDATE trajectory.verdicts v SET {}, erased = true WHERE NOT v.erased AND {} AND {}").format(
            _set_null(erasable_columns(VERDICTS, RETAINED_VERDICT_COLUMNS)),
            sql.SQL(condition),
            sql.SQL(_SHOWED_ERASED_CONTENT),
        ),
        parameters,
    )
    _erase_attempts(
        connection,
        "EXISTS (SELECT FROM trajectory.verdicts v WHERE v.run_id = a.run_id AND v.verdict_key = a.verdict_key"
        f" AND v.erased AND {condition})",
        parameters,
    )


def _erase_attempts(connection: psycopg.Connection, condition: LiteralString, parameters: dict[str, object]) -> None:
    names = erasable_columns(VERDICT_ATTEMPTS, RETAINED_ATTEMPT_COLUMNS)
    connection.execute(
        sql.SQL("UPDATE trajectory.verdict_attempts a SET {} WHERE {} AND num_nonnulls({}) > 0").format(
            _set_null(names), sql.SQL(condition), sql.SQL(", ").join(map(sql.Identifier, names))
        ),
        parameters,
    )


def _set_null(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in names)
