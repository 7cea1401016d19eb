"""Verdicts in the trajectory database: policies, verdicts and attempts, each stored when it is known.

Belongs here: every statement against those tables. Does not belong here: how a verdict is reached (``refinement``).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.types import Scalar, Sink, Table
from trajectory_pipeline.schema.verdicts import POLICIES, VERDICT_ATTEMPTS, VERDICTS
from trajectory_pipeline.sinks.connection import writing
from trajectory_pipeline.sinks.database import TrajectoryDatabase

_LONGEST_CHAIN = 50
"""Earlier runs of one task that are looked up; a longer chain is one that bites its own tail."""

GIVE_UP_AFTER = 12
"""Attempts after which a failed verdict is not requested any more by the sensor; an explicit backfill still tries."""


class VerdictStore:
    """An open connection for verdicts: every statement is committed by itself, so a killed run keeps what it paid for."""

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self._url = url
        self._connection = connection

    @contextmanager
    def judging(self, partition_key: str) -> Iterator[None]:
        """Keep others from judging the same partition; waits for one that does."""
        name = f"trajectory judging {partition_key}"
        with writing(self._url, f"Waiting for the judging of {partition_key}"):
            self._connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        try:
            yield
        finally:
            if not self._connection.closed:
                self._connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])

    def use_policy(self, policy_id: str, definition: Mapping[str, Any], model: str) -> None:
        """Make a policy the current one."""
        with writing(self._url, "Recording the policy"), self._connection.transaction():
            self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('trajectory policy', 0))")
            self._connection.execute(
                sql.SQL("UPDATE {} SET is_current = false WHERE is_current AND policy_id <> %s").format(
                    _table(POLICIES)
                ),
                [policy_id],
            )
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO {} (policy_id, definition, model, is_current, first_used_at)"
                    " VALUES (%s, %s, %s, true, now()) ON CONFLICT (policy_id) DO UPDATE SET is_current = true"
                    " WHERE NOT policies.is_current"
                ).format(_table(POLICIES)),
                [policy_id, Jsonb(dict(definition)), model],
            )

    def verdicts(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the verdicts of these (run id, verdict key) pairs, as far as there are any."""
        with (
            writing(self._url, "Reading verdicts"),
            self._connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(
                sql.SQL(
                    "SELECT v.* FROM {} v JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
                    " ON v.run_id = k.run_id AND v.verdict_key = k.verdict_key"
                ).format(_table(VERDICTS)),
                [[run_id for run_id, _ in keys], [key for _, key in keys]],
            )
            return {(row["run_id"], row["verdict_key"]): row for row in cursor}

    def save_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Store a verdict; one of the same run and key moves on to it, keeping its first date."""
        row = {column.name: verdict.get(column.name) for column in VERDICTS.in_sink(Sink.POSTGRES)}
        names = [name for name in row if name not in ("created_at", "updated_at")]
        with writing(self._url, f"Storing the verdict on {verdict['run_id']}"):
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO {table} ({columns}, created_at, updated_at) VALUES ({values}, now(), now())"
                    " ON CONFLICT (run_id, verdict_key) DO UPDATE SET {updates}, updated_at = now()"
                ).format(
                    table=_table(VERDICTS),
                    columns=_names(names),
                    values=sql.SQL(", ").join(map(sql.Placeholder, names)),
                    updates=sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(n)) for n in names),
                ),
                _adapted(VERDICTS, row),
            )

    def save_attempt(self, attempt: Mapping[str, Any]) -> None:
        """Store an HTTP call, or what is known of it by now."""
        names = VERDICT_ATTEMPTS.names(Sink.POSTGRES)
        with writing(self._url, "Storing an attempt"):
            self._connection.execute(
                sql.SQL(
                    "INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT (attempt_id) DO UPDATE SET {updates}"
                ).format(
                    table=_table(VERDICT_ATTEMPTS),
                    columns=_names(names),
                    values=sql.SQL(", ").join(map(sql.Placeholder, names)),
                    updates=sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(n)) for n in names),
                ),
                {name: attempt.get(name) for name in names},
            )

    def spent_since(self, moment: datetime) -> Decimal:
        """Return the dollars that calls since a moment cost, as far as their price is known."""
        with writing(self._url, "Adding up costs"):
            row = self._connection.execute(
                sql.SQL("SELECT coalesce(sum(cost_usd), 0) FROM {} WHERE started_at >= %s").format(
                    _table(VERDICT_ATTEMPTS)
                ),
                [moment],
            ).fetchone()
        assert row is not None
        return Decimal(row[0])

    def partitions_without_verdicts(self, policy_id: str, *, quiet_since: datetime, ended_since: datetime) -> list[str]:
        """Return the keys of partitions with trajectories that should be judged now, sorted.

        A failed verdict is due again after a quarter of an hour, doubled with each attempt, and given up after
        ``GIVE_UP_AFTER`` attempts.

        Args:
            policy_id: under which policy.
            quiet_since: trajectories that changed later are left for the moment.
            ended_since: trajectories of runs that ended earlier are left to an explicit backfill.
        """
        with writing(self._url, "Looking for missing verdicts"):
            rows = self._connection.execute(
                sql.SQL(
                    "SELECT DISTINCT t.partition_key FROM {trajectories} t LEFT JOIN {verdicts} v ON v.run_id = t.run_id"
                    " AND v.policy_id = %(policy)s AND v.content_digest = t.content_digest"
                    " WHERE t.deleted_at IS NULL AND t.updated_at <= %(quiet)s"
                    " AND coalesce(t.end_time, t.start_time) >= %(ended)s AND (v.run_id IS NULL OR"
                    " (v.verdict_status = 'failed' AND v.attempts < %(give_up)s"
                    " AND v.updated_at < now() - interval '15 minutes' * power(2, least(v.attempts, 10) - 1)))"
                    " ORDER BY 1"
                ).format(trajectories=sql.Identifier(SCHEMA_NAME, "trajectories"), verdicts=_table(VERDICTS)),
                {"policy": policy_id, "quiet": quiet_since, "ended": ended_since, "give_up": GIVE_UP_AFTER},
            ).fetchall()
        return [row[0] for row in rows]

    def earlier_runs(self, run_id: str) -> list[dict[str, Any]]:
        """Return the trajectories that a run continues, the earliest first: ``run_id``, ``content_digest``, ``data``."""
        with (
            writing(self._url, f"Reading the chain of {run_id}"),
            self._connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(
                sql.SQL(
                    "WITH RECURSIVE chain AS ("
                    "SELECT t.continues_run_id AS run_id, 1 AS depth, ARRAY[t.run_id] AS seen"
                    " FROM {table} t WHERE t.run_id = %s"
                    " UNION ALL SELECT t.continues_run_id, c.depth + 1, c.seen || t.run_id"
                    " FROM chain c JOIN {table} t ON t.run_id = c.run_id"
                    " WHERE c.depth < %s AND NOT (t.run_id = ANY(c.seen)))"
                    " SELECT t.run_id, t.content_digest, t.data FROM chain c JOIN {table} t ON t.run_id = c.run_id"
                    " WHERE t.data IS NOT NULL ORDER BY c.depth DESC"
                ).format(table=sql.Identifier(SCHEMA_NAME, "trajectories")),
                [run_id, _LONGEST_CHAIN],
            )
            return cursor.fetchall()


@contextmanager
def open_verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    """Open a connection for verdicts.

    Raises:
        SinkError: the database cannot be reached, or is not migrated.
    """
    with database.connect(autocommit=True) as connection:
        yield VerdictStore(database.url, connection)


def _table(table: Table) -> sql.Identifier:
    return sql.Identifier(SCHEMA_NAME, table.name)


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _adapted(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    json_columns = {column.name for column in table.columns if column.type is Scalar.JSON}
    return {name: Jsonb(value) if name in json_columns and value is not None else value for name, value in row.items()}
