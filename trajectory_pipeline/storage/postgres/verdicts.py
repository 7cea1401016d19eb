"""Verdicts in the trajectory database: policies and verdicts, each stored when it is known."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from trajectory_pipeline.lossless_json import storable_value
from trajectory_pipeline.schema.bookkeeping import VERDICT_LOCKS
from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass
from trajectory_pipeline.schema.types import SCHEMA_NAME, Scalar, Sink, Table
from trajectory_pipeline.schema.verdicts import POLICIES, VERDICT_ATTEMPTS, VERDICTS
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_locks import release_lock

_TAKEN = ("attempts", "input_tokens", "cached_input_tokens", "output_tokens", "cost_usd")
"""Columns of a verdict that its calls add up to, also those of a process that was killed."""


NO_HELP = ("too_long",)
"""Error classes of failed verdicts that trying again under the same policy does not help."""
_PAUSES = {
    "failed": (timedelta(minutes=15), timedelta(days=1)),
    # Nothing failed in passing: the judge, or what serves it, has to become another one.
    "quarantined": (timedelta(days=1), timedelta(days=8)),
}
"""By status, before a verdict is tried again: the first pause, which is doubled each time, and the longest."""


class VerdictStore:
    """An open connection for verdicts: each is committed when it is stored, so a killed run keeps what it paid for.

    Attributes:
        connection: on which all of it happens, a statement at a time.
    """

    def __init__(self, connection: RetryingConnection) -> None:
        self.connection = connection

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        moment: datetime = self.connection.rows("Asking for the time", "SELECT clock_timestamp() AS now")[0]["now"]
        return moment

    def use_policy(self, policy_id: str, definition: Mapping[str, Any], model: str) -> None:
        """Make a policy the current one."""

        def work(transaction: Transaction) -> None:
            transaction.rows("SELECT pg_advisory_xact_lock(hashtextextended('trajectory policy', 0))")
            transaction.rows(
                sql.SQL("UPDATE {} SET is_current = false WHERE is_current AND policy_id <> %s").format(
                    _table(POLICIES)
                ),
                [policy_id],
            )
            transaction.rows(
                sql.SQL(
                    "INSERT INTO {} (policy_id, definition, model, is_current, first_used_at)"
                    " VALUES (%s, %s, %s, true, now()) ON CONFLICT (policy_id) DO UPDATE SET is_current = true"
                    " WHERE NOT policies.is_current"
                ).format(_table(POLICIES)),
                [policy_id, Jsonb(dict(definition)), model],
            )

        self.connection.run("Recording the policy", work)

    def verdicts(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the verdicts of these (run id, verdict key) pairs, as far as there are any."""
        rows = self.connection.rows(
            "Reading verdicts",
            sql.SQL(
                "SELECT v.* FROM {} v JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
                " ON v.run_id = k.run_id AND v.verdict_key = k.verdict_key"
            ).format(_table(VERDICTS)),
            _unzipped(keys),
        )
        return {(row["run_id"], row["verdict_key"]): row for row in rows}

    def save_verdicts(self, verdicts: Sequence[Mapping[str, Any]], worker: str) -> None:
        """Store verdicts and give back the claims on them, all together.

        One of the same run and key moves on, keeping its first date; one that is final, or quarantined and not due,
        stays as it is, unless it was erased, or denied by lists that may have changed. What all calls for it took is
        added up from the attempts. A failed one is due again after a quarter of an hour, doubled with each failure up
        to a day, unless trying again would not help; a quarantined one after a day, doubled up to eight.
        """
        names = [column.name for column in VERDICTS.in_sink(Sink.POSTGRES)]
        ours = ("created_at", "updated_at", "failures", "next_attempt_at")
        given = [name for name in names if name not in ours]
        statement = sql.SQL(
            "INSERT INTO {table} AS v ({columns}, created_at, updated_at, failures, next_attempt_at)"
            " VALUES ({values}, clock_timestamp(), clock_timestamp(), %(failed)s::int, now() + %(pause)s::interval)"
            " ON CONFLICT (run_id, verdict_key) DO UPDATE SET {updates}, updated_at = clock_timestamp(),"
            " failures = v.failures + EXCLUDED.failures,"
            " next_attempt_at = now() + least(%(pause)s::interval * power(2, least(v.failures, 20)),"
            " %(longest)s::interval)"
            " WHERE v.erased OR v.error_class = %(denied)s OR NOT (v.verdict_status = ANY(%(final)s)"
            " OR v.verdict_status = 'quarantined' AND v.next_attempt_at > clock_timestamp())"
        ).format(
            table=_table(VERDICTS),
            columns=sql.SQL(", ").join(map(sql.Identifier, given)),
            values=sql.SQL(", ").join(map(sql.Placeholder, given)),
            updates=sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in given),
        )
        keys = [(str(verdict["run_id"]), str(verdict["verdict_key"])) for verdict in verdicts]

        def work(transaction: Transaction) -> None:
            taken = _taken(transaction, keys)
            rows = [
                {**dict.fromkeys(given), **verdict, **taken.get(key, {"attempts": 0})}
                for key, verdict in zip(keys, verdicts, strict=True)
            ]
            adapted = [_adapted(VERDICTS, {name: row[name] for name in given}) for row in rows]
            transaction.many(
                statement,
                [
                    {**row, **_next_try(row), "final": list(FINAL_STATUSES), "denied": ErrorClass.DENIED}
                    for row in adapted
                ],
            )
            release_lock(transaction, worker, [key for _, key in keys])

        runs = f"the verdict on {keys[0][0]}" if len(keys) == 1 else f"{len(keys)} verdicts, first on {keys[0][0]}"
        self.connection.run(f"Storing {runs}", work)

    def give_back_all(self, worker: str) -> None:
        """Give back every claim of a worker."""
        statement = sql.SQL("DELETE FROM {} WHERE worker = %s").format(_table(VERDICT_LOCKS))
        self.connection.rows("Giving claims back", statement, [worker])

    def documents(self, run_ids: Sequence[str]) -> dict[str, tuple[dict[str, Any] | None, str]]:
        """Return the documents of runs, each with its partition key; None where ``jsonb`` cannot hold one.

        Runs that are not here are left out.
        """
        rows = self.connection.rows(
            "Reading documents",
            sql.SQL("SELECT run_id, data, partition_key FROM {} WHERE run_id = ANY(%s)").format(
                sql.Identifier(SCHEMA_NAME, "trajectories")
            ),
            [list(run_ids)],
        )
        return {row["run_id"]: (row["data"], row["partition_key"]) for row in rows}

    def document_bytes(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return how many bytes each of these runs' documents has as JSON text, as far as ``jsonb`` holds them."""
        rows = self.connection.rows(
            "Measuring documents",
            sql.SQL(
                "SELECT run_id, octet_length(data::text)::bigint AS bytes FROM {} WHERE run_id = ANY(%s)"
                " AND data IS NOT NULL"
            ).format(sql.Identifier(SCHEMA_NAME, "trajectories")),
            [list(run_ids)],
        )
        return {row["run_id"]: row["bytes"] for row in rows}

    def mean_response_tokens(self, policy_id: str) -> float | None:
        """Return how many tokens an answer under a policy has had on average; None where there is none yet."""
        (row,) = self.connection.rows(
            "Looking at former answers",
            sql.SQL("SELECT avg(output_tokens)::float8 AS n FROM {} WHERE policy_id = %s").format(
                _table(VERDICT_ATTEMPTS)
            ),
            [policy_id],
        )
        mean: float | None = row["n"]
        return mean


@contextmanager
def open_verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    """Open a connection for verdicts.

    Raises:
        SinkError: the database cannot be reached, or is not migrated.
    """
    with database.retrying() as connection:
        yield VerdictStore(connection)


def _table(table: Table) -> sql.Identifier:
    return sql.Identifier(SCHEMA_NAME, table.name)


def _taken(transaction: Transaction, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    rows = transaction.rows(
        sql.SQL(
            "SELECT a.run_id, a.verdict_key, count(*) AS attempts, sum(a.input_tokens)::bigint AS input_tokens,"
            " sum(a.cached_input_tokens)::bigint AS cached_input_tokens,"
            " sum(a.output_tokens)::bigint AS output_tokens, sum(a.cost_usd) AS cost_usd"
            " FROM {} a JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
            " ON a.run_id = k.run_id AND a.verdict_key = k.verdict_key GROUP BY 1, 2"
        ).format(_table(VERDICT_ATTEMPTS)),
        _unzipped(keys),
    )
    return {(row["run_id"], row["verdict_key"]): {name: row[name] for name in _TAKEN} for row in rows}


def _next_try(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether a verdict has failed, and the pauses before it is tried again; null where it is not."""
    pauses = _PAUSES.get(verdict["verdict_status"])
    pause, longest = pauses if pauses and verdict["error_class"] not in NO_HELP else (None, None)
    return {"failed": pauses is not None, "pause": pause, "longest": longest}


def _unzipped(keys: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[run_id for run_id, _ in keys], [key for _, key in keys]]


def _adapted(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as Postgres takes it; NUL and lone surrogates, which a judge may send, as visible escapes."""
    json_columns = {column.name for column in table.columns if column.type is Scalar.JSON}
    storable = {name: storable_value(value) for name, value in row.items()}
    return {
        name: Jsonb(value) if name in json_columns and value is not None else value for name, value in storable.items()
    }
