"""Verdicts in the trajectory database: policies, verdicts and attempts, each stored when it is known.

Belongs here: every statement against those tables. Does not belong here: how a verdict is reached (``refinement``).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.types import Scalar, Sink, Table
from trajectory_pipeline.schema.verdicts import POLICIES, VERDICT_ATTEMPTS, VERDICTS
from trajectory_pipeline.sinks.connection import open_connection, writing
from trajectory_pipeline.sinks.database import TrajectoryDatabase
from trajectory_pipeline.trajectories.json_text import storable_text

_LONGEST_CHAIN = 50
"""Earlier runs of one task that are looked up; a longer chain is one that bites its own tail."""

GIVE_UP_AFTER = 12
"""Attempts after which a failed verdict is not requested any more by the sensor; an explicit backfill still tries."""

_LOCK: LiteralString = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
_RECONNECT_AFTER_SECONDS = (0.0, 1.0, 4.0)


@dataclass(frozen=True)
class Spent:
    """What all calls for one verdict took so far; see the columns of ``schema.verdicts.VERDICTS``."""

    attempts: int = 0
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None


class VerdictStore:
    """An open connection for verdicts: each statement commits by itself, so a killed run keeps what it paid for.

    Judging takes long, and a connection may not live as long: one that is lost is opened anew, and the statement, which
    may be repeated, is repeated.
    """

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self._url = url
        self._connection = connection
        self._locks: list[str] = []

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def judging(self, partition_key: str) -> Iterator[None]:
        """Keep others from judging the same partition; waits for one that does."""
        name = f"trajectory judging {partition_key}"
        self._execute(f"Waiting for the judging of {partition_key}", _LOCK, [name])
        self._locks.append(name)
        try:
            yield
        finally:
            self._locks.remove(name)
            # Without a connection there is no lock either.
            with suppress(psycopg.Error):
                self._connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])

    def _execute(
        self, doing: str, statement: sql.Composed | LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Run a statement that may be run twice; returns its rows."""
        with writing(self._url, doing):
            try:
                return self._rows(statement, parameters)
            except (psycopg.OperationalError, psycopg.InterfaceError):
                if not self._connection.closed:
                    raise
                self._reconnect()
                return self._rows(statement, parameters)

    def _rows(
        self, statement: sql.Composed | LiteralString, parameters: Sequence[Any] | Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description is not None else []

    def _reconnect(self) -> None:
        for pause in _RECONNECT_AFTER_SECONDS:
            time.sleep(pause)
            try:
                self._connection = open_connection(self._url, autocommit=True)
                break
            except psycopg.OperationalError:
                if pause == _RECONNECT_AFTER_SECONDS[-1]:
                    raise
        for name in self._locks:
            self._rows(_LOCK, [name])

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
        rows = self._execute(
            "Reading verdicts",
            sql.SQL(
                "SELECT v.* FROM {} v JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
                " ON v.run_id = k.run_id AND v.verdict_key = k.verdict_key"
            ).format(_table(VERDICTS)),
            _unzipped(keys),
        )
        return {(row["run_id"], row["verdict_key"]): row for row in rows}

    def spent(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Spent]:
        """Return what the calls for these verdicts took so far, also those of a process that was killed."""
        rows = self._execute(
            "Adding up attempts",
            sql.SQL(
                "SELECT a.run_id, a.verdict_key, count(*) AS attempts, sum(a.input_tokens)::bigint AS input_tokens,"
                " sum(a.cached_input_tokens)::bigint AS cached_input_tokens,"
                " sum(a.output_tokens)::bigint AS output_tokens, sum(a.cost_usd) AS cost_usd"
                " FROM {} a JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
                " ON a.run_id = k.run_id AND a.verdict_key = k.verdict_key GROUP BY 1, 2"
            ).format(_table(VERDICT_ATTEMPTS)),
            _unzipped(keys),
        )
        return {(row.pop("run_id"), row.pop("verdict_key")): Spent(**row) for row in rows}

    def save_verdict(self, verdict: Mapping[str, Any]) -> None:
        """Store a verdict; one of the same run and key moves on to it, keeping its first date."""
        row = {column.name: verdict.get(column.name) for column in VERDICTS.in_sink(Sink.POSTGRES)}
        names = [name for name in row if name not in ("created_at", "updated_at")]
        self._execute(
            f"Storing the verdict on {verdict['run_id']}",
            sql.SQL(
                "INSERT INTO {table} ({columns}, created_at, updated_at) VALUES ({values}, now(), now())"
                " ON CONFLICT (run_id, verdict_key) DO UPDATE SET {updates}, updated_at = now()"
            ).format(
                table=_table(VERDICTS),
                columns=_names(names),
                values=sql.SQL(", ").join(map(sql.Placeholder, names)),
                updates=_updates(names),
            ),
            _adapted(VERDICTS, row),
        )

    def save_attempt(self, attempt: Mapping[str, Any]) -> None:
        """Store an HTTP call, or what is known of it by now."""
        names = VERDICT_ATTEMPTS.names(Sink.POSTGRES)
        self._execute(
            "Storing an attempt",
            sql.SQL(
                "INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT (attempt_id) DO UPDATE SET {updates}"
            ).format(
                table=_table(VERDICT_ATTEMPTS),
                columns=_names(names),
                values=sql.SQL(", ").join(map(sql.Placeholder, names)),
                updates=_updates(names),
            ),
            _adapted(VERDICT_ATTEMPTS, {name: attempt.get(name) for name in names}),
        )

    def spent_since(self, moment: datetime) -> Decimal:
        """Return the dollars that calls since a moment cost, as far as their price is known."""
        (row,) = self._execute(
            "Adding up costs",
            sql.SQL("SELECT coalesce(sum(cost_usd), 0) AS cost FROM {} WHERE started_at >= %s").format(
                _table(VERDICT_ATTEMPTS)
            ),
            [moment],
        )
        return Decimal(row["cost"])

    def partitions_without_verdicts(self, policy_id: str, *, quiet_since: datetime, ended_since: datetime) -> list[str]:
        """Return the keys of partitions with trajectories that should be judged now, sorted.

        A failed verdict is due again after a quarter of an hour, doubled with each attempt, and given up after
        ``GIVE_UP_AFTER`` attempts; one that is too long for the policy stays so.

        Args:
            policy_id: under which policy.
            quiet_since: trajectories that changed later are left for the moment.
            ended_since: trajectories of runs that ended earlier are left to an explicit backfill.
        """
        rows = self._execute(
            "Looking for missing verdicts",
            sql.SQL(
                "SELECT DISTINCT t.partition_key FROM {trajectories} t LEFT JOIN {verdicts} v"
                " ON v.run_id = t.run_id AND v.policy_id = %(policy)s AND v.content_digest = t.content_digest"
                " AND NOT v.erased WHERE t.deleted_at IS NULL AND t.updated_at <= %(quiet)s"
                " AND coalesce(t.end_time, t.start_time) >= %(ended)s AND (v.run_id IS NULL OR"
                " (v.verdict_status = 'failed' AND v.attempts < %(give_up)s"
                " AND v.error_class IS DISTINCT FROM 'too_long'"
                " AND v.updated_at < now() - interval '15 minutes' * power(2, least(v.attempts, 10) - 1)))"
                " ORDER BY 1"
            ).format(trajectories=sql.Identifier(SCHEMA_NAME, "trajectories"), verdicts=_table(VERDICTS)),
            {"policy": policy_id, "quiet": quiet_since, "ended": ended_since, "give_up": GIVE_UP_AFTER},
        )
        return [row["partition_key"] for row in rows]

    def earlier_runs(self, run_id: str) -> list[dict[str, Any]]:
        """Return the trajectories that a run continues, the earliest first.

        As far back as they are here: the chain ends before one that is not. Each with ``run_id``, ``content_digest``
        and ``partition_key``; see ``document`` for what it says.
        """
        return self._execute(
            f"Reading the chain of {run_id}",
            sql.SQL(
                "WITH RECURSIVE chain AS ("
                "SELECT t.continues_run_id AS run_id, 1 AS depth, ARRAY[t.run_id] AS seen"
                " FROM {table} t WHERE t.run_id = %s"
                " UNION ALL SELECT t.continues_run_id, c.depth + 1, c.seen || t.run_id"
                " FROM chain c JOIN {table} t ON t.run_id = c.run_id"
                " WHERE c.depth < %s AND NOT (t.continues_run_id = ANY(c.seen || t.run_id)))"
                " SELECT t.run_id, t.content_digest, t.partition_key FROM chain c"
                " JOIN {table} t ON t.run_id = c.run_id ORDER BY c.depth DESC"
            ).format(table=sql.Identifier(SCHEMA_NAME, "trajectories")),
            [run_id, _LONGEST_CHAIN],
        )

    def document(self, run_id: str) -> dict[str, Any] | None:
        """Return a run's document; None where it is not here, or ``jsonb`` cannot hold it."""
        rows = self._execute(
            f"Reading the document of {run_id}",
            sql.SQL("SELECT data FROM {} WHERE run_id = %s").format(sql.Identifier(SCHEMA_NAME, "trajectories")),
            [run_id],
        )
        return rows[0]["data"] if rows else None


@contextmanager
def open_verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    """Open a connection for verdicts.

    Raises:
        SinkError: the database cannot be reached, or is not migrated.
    """
    with database.connect(autocommit=True) as connection:
        store = VerdictStore(database.url, connection)
        try:
            yield store
        finally:
            store.close()


def _table(table: Table) -> sql.Identifier:
    return sql.Identifier(SCHEMA_NAME, table.name)


def _names(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _updates(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in names)


def _unzipped(keys: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[run_id for run_id, _ in keys], [key for _, key in keys]]


def _adapted(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as Postgres takes it; NUL and lone surrogates, which a judge may send, as visible escapes."""
    json_columns = {column.name for column in table.columns if column.type is Scalar.JSON}
    storable = {name: _storable(value) for name, value in row.items()}
    return {
        name: Jsonb(value) if name in json_columns and value is not None else value for name, value in storable.items()
    }


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {storable_text(key): _storable(item) for key, item in value.items()}
    return value
