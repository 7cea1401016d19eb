"""Erasing the texts of verdicts that showed what was since deleted at the source.

State-based: a verdict has to go where it showed a run at another content than the erased one that is here now. So it
can be asked at any time, after a crash too, and a verdict that was reached on what is left stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql

from trajectory_pipeline.schema.types import JSON, SCHEMA_NAME, STRING, STRINGS, Sink, Table
from trajectory_pipeline.schema.verdicts import VERDICT_ATTEMPTS, VERDICTS

KEPT_OF_VERDICT = frozenset(
    {"run_id", "verdict_key", "policy_id", "partition_key", "content_digest", "verdict_status", "outcome"}
    | {"failure_owner", "failure_mode", "failed_step_id", "task_category", "complexity", "model", "error_class"}
    | {"shown_run_ids", "shown_digests", "response_format"}
)
KEPT_OF_ATTEMPT = frozenset(
    {"attempt_id", "run_id", "verdict_key", "policy_id", "model", "response_model", "base_url", "request_id"}
    | {"finish_reason", "result", "error_class", "purpose", "response_format"}
    | {"budget_day", "organization_id", "materialization_id"}
)
"""Texts that stay: ids, and words out of closed lists. Any other text goes: a new column cannot be forgotten."""

_SHOWED_WHAT_IS_GONE: LiteralString = """EXISTS (
    SELECT FROM unnest(v.shown_run_ids, v.shown_digests) AS s (run_id, content_digest)
    JOIN trajectory.trajectories t ON t.run_id = s.run_id
    WHERE t.erased AND t.content_digest <> s.content_digest)"""


@dataclass(frozen=True)
class VerdictShowingRun:
    """A verdict that showed what was since erased.

    Attributes:
        run_id: the run.
        verdict_key: with it, the verdict's key.
        partition_keys: of the Parquet files that may hold it.
    """

    run_id: str
    verdict_key: str
    partition_keys: tuple[str, ...]


def texts_of(table: Table, kept: frozenset[str]) -> list[str]:
    """Return the names of a table's columns that are erased: every text that is not listed as kept."""
    return [
        column.name
        for column in table.in_sink(Sink.POSTGRES)
        if column.type in (STRING, JSON, STRINGS) and column.name not in kept
    ]


def erased_runs(connection: psycopg.Connection, partition_key: str) -> list[str]:
    """Return a partition's runs whose deleted content was erased."""
    rows = connection.execute(
        "SELECT run_id FROM trajectory.trajectories WHERE partition_key = %s AND erased ORDER BY 1", [partition_key]
    ).fetchall()
    return [row[0] for row in rows]


def record_rewritten(connection: psycopg.Connection, asset: str, partition_key: str, content_digest: str) -> None:
    """Note in the ledger what a file of another asset holds now that words were taken out of it."""
    connection.execute(
        "UPDATE trajectory.partitions SET content_digest = %s WHERE asset = %s AND partition_key = %s",
        [content_digest, asset, partition_key],
    )


def verdicts_that_showed(connection: psycopg.Connection, run_ids: Sequence[str]) -> list[VerdictShowingRun]:
    """Return the verdicts that showed these runs before they were erased, those without texts already among them."""
    rows = connection.execute(
        sql.SQL(
            "SELECT v.run_id, v.verdict_key, array_agg(DISTINCT k.partition_key) FROM trajectory.verdicts v"
            " LEFT JOIN trajectory.trajectories own ON own.run_id = v.run_id,"
            " unnest(ARRAY[v.partition_key, own.partition_key]) AS k (partition_key)"
            " WHERE v.shown_run_ids && %s AND (v.erased OR {}) AND k.partition_key IS NOT NULL"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ).format(sql.SQL(_SHOWED_WHAT_IS_GONE)),
        [list(run_ids)],
    ).fetchall()
    return [VerdictShowingRun(run_id, key, tuple(partitions)) for run_id, key, partitions in rows]


def erase_verdicts_that_showed(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Erase the texts of every verdict, and of its calls, that showed these runs before they were erased."""
    ids: dict[str, object] = {"ids": list(run_ids)}
    _erase(connection, "v.shown_run_ids && %(ids)s", ids)
    # A call whose verdict never came, by a crash, has no list of what it showed.
    _update(
        connection,
        VERDICT_ATTEMPTS,
        "a",
        KEPT_OF_ATTEMPT,
        "a.run_id = ANY(%(ids)s) AND NOT EXISTS (SELECT FROM trajectory.verdicts v WHERE v.run_id = a.run_id"
        " AND v.verdict_key = a.verdict_key AND NOT v.erased)",
        ids,
    )


def erase_verdicts_of(connection: psycopg.Connection, partition_key: str) -> None:
    """Erase the texts of a partition's verdicts that showed what was erased while they were being reached."""
    _erase(connection, "v.partition_key = %(key)s", {"key": partition_key})


def empty_attempts_of(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Take the texts out of every call that was made for these runs; what each took and cost stays."""
    _update(connection, VERDICT_ATTEMPTS, "a", KEPT_OF_ATTEMPT, "a.run_id = ANY(%(ids)s)", {"ids": list(run_ids)})


def _erase(connection: psycopg.Connection, which: LiteralString, values: dict[str, object]) -> None:
    _update(connection, VERDICTS, "v", KEPT_OF_VERDICT, f"NOT v.erased AND {which} AND {_SHOWED_WHAT_IS_GONE}", values)
    connection.execute(
        sql.SQL("UPDATE trajectory.verdicts v SET erased = true WHERE NOT v.erased AND {} AND {}").format(
            sql.SQL(which), sql.SQL(_SHOWED_WHAT_IS_GONE)
        ),
        values,
    )
    _update(
        connection,
        VERDICT_ATTEMPTS,
        "a",
        KEPT_OF_ATTEMPT,
        "EXISTS (SELECT FROM trajectory.verdicts v WHERE v.run_id = a.run_id AND v.verdict_key = a.verdict_key"
        f" AND v.erased AND {which})",
        values,
    )


def _update(
    connection: psycopg.Connection,
    table: Table,
    alias: LiteralString,
    kept: frozenset[str],
    condition: LiteralString,
    values: dict[str, object],
) -> None:
    names = texts_of(table, kept)
    connection.execute(
        sql.SQL("UPDATE {table} {alias} SET {emptied} WHERE {condition} AND ({any_text})").format(
            table=sql.Identifier(SCHEMA_NAME, table.name),
            alias=sql.Identifier(alias),
            emptied=sql.SQL(", ").join(sql.SQL("{} = NULL").format(sql.Identifier(name)) for name in names),
            condition=sql.SQL(condition),
            any_text=sql.SQL(" OR ").join(
                sql.SQL("{}.{} IS NOT NULL").format(sql.Identifier(alias), sql.Identifier(name)) for name in names
            ),
        ),
        values,
    )
