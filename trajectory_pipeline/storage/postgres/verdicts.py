"""Verdicts in the trajectory database: policies and verdicts, each stored as soon as it is known."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from trajectory_pipeline.lossless_json import storable_value
from trajectory_pipeline.schema.enums import FINAL_STATUSES, ErrorClass
from trajectory_pipeline.schema.types import Scalar, Sink
from trajectory_pipeline.schema.verdicts import VERDICTS
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_locks import release_lock

RELEASED = {
    ErrorClass.BATCH_ENDED: timedelta(0),
    ErrorClass.BATCH_QUEUE_FULL: timedelta(minutes=15),
    ErrorClass.SUPERSEDED: timedelta(0),
}
"""Error classes that say nothing of a verdict itself: no failure is counted, and it is pending after this pause."""
NO_RETRY = ("too_long",)
"""Error classes of failed verdicts for which a retry under the same policy is useless."""
_PAUSES = {
    "failed": (timedelta(minutes=15), timedelta(days=1)),
    # Not a passing failure: the judge, or what serves it, has to change first.
    "quarantined": (timedelta(days=1), timedelta(days=8)),
}
"""By status, before a verdict is tried again: the first pause, which is doubled each time, and the longest."""
_RECENT_ATTEMPTS = 1000
"""Attempts that are searched: those of other models may lie between, and a table of millions is not searched."""

_COLUMNS = VERDICTS.names(Sink.POSTGRES)
_GIVEN = [name for name in _COLUMNS if name not in ("created_at", "updated_at", "failures", "next_attempt_at")]
_JSON_COLUMNS = frozenset(column.name for column in VERDICTS.columns if column.type is Scalar.JSON)
_SAVE = sql.SQL(
    "INSERT INTO trajectory.verdicts AS v ({columns}, created_at, updated_at, failures, next_attempt_at)"
    " VALUES ({values}, clock_timestamp(), clock_timestamp(), %(failed)s::int, now() + %(pause)s::interval)"
    " ON CONFLICT (run_id, verdict_key) DO UPDATE SET {updates}, updated_at = clock_timestamp(),"
    " failures = v.failures + EXCLUDED.failures,"
    " next_attempt_at = now() + least(%(pause)s::interval * power(2, least(v.failures, 20)),"
    " %(longest)s::interval)"
    " WHERE v.erased OR v.error_class = %(denied)s OR NOT (v.verdict_status = ANY(%(final)s)"
    " OR v.verdict_status = 'quarantined' AND v.next_attempt_at > clock_timestamp())"
).format(
    columns=sql.SQL(", ").join(map(sql.Identifier, _GIVEN)),
    values=sql.SQL(", ").join(map(sql.Placeholder, _GIVEN)),
    updates=sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in _GIVEN),
)


class VerdictStore:
    """An open ``connection`` for verdicts: each is committed when it is stored, so a killed run loses none it paid for.

    Methods raise ``SinkError`` if the database refuses, or cannot be reached any more.
    """

    def __init__(self, connection: RetryingConnection) -> None:
        self.connection = connection

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        return self.connection.now()

    def use_policy(self, policy_id: str, definition: Mapping[str, Any], model: str) -> None:
        """Make a policy the current one: the one whose verdicts count."""

        def work(transaction: Transaction) -> None:
            transaction.rows("SELECT pg_advisory_xact_lock(hashtextextended('trajectory policy', 0))")
            transaction.rows(
                "UPDATE trajectory.policies SET is_current = false WHERE is_current AND policy_id <> %s", [policy_id]
            )
            transaction.rows(
                "INSERT INTO trajectory.policies (policy_id, definition, model, is_current, first_used_at)"
                " VALUES (%s, %s, %s, true, now()) ON CONFLICT (policy_id) DO UPDATE SET is_current = true"
                " WHERE NOT policies.is_current",
                [policy_id, Jsonb(dict(definition)), model],
            )

        self.connection.run("Recording the policy", work)

    def record_policy(self, policy_id: str, definition: Mapping[str, Any], model: str) -> None:
        """Record a policy; the current one stays the current one."""
        self.connection.rows(
            "Recording the policy",
            "INSERT INTO trajectory.policies (policy_id, definition, model, is_current, first_used_at)"
            " VALUES (%s, %s, %s, false, now()) ON CONFLICT (policy_id) DO NOTHING",
            [policy_id, Jsonb(dict(definition)), model],
        )

    def verdicts(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the verdicts of these (run id, verdict key) pairs, as far as there are any."""
        rows = self.connection.rows(
            "Reading verdicts",
            "SELECT v.* FROM trajectory.verdicts v JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
            " USING (run_id, verdict_key)",
            _unzipped(keys),
        )
        return {(row["run_id"], row["verdict_key"]): row for row in rows}

    def save_verdicts(self, verdicts: Sequence[Mapping[str, Any]], worker: str) -> None:
        """Store verdicts and release the claims on them, in one transaction.

        A stored verdict of the same run and key is replaced, with its first date and one more failure where it failed.
        It stays if it is final, or quarantined and not due, unless it was erased, or denied by access lists, which may
        have changed. Calls, tokens and cost are added up from the attempts. A failed verdict is due again after 15
        minutes, doubled with each failure up to a day, unless a retry is useless; a quarantined one after a day,
        doubled up to eight.
        """
        keys = [(str(verdict["run_id"]), str(verdict["verdict_key"])) for verdict in verdicts]

        def work(transaction: Transaction) -> None:
            usage = _usage(transaction, keys)
            rows = [
                {**dict.fromkeys(_GIVEN), "repetition": 0, "attempts": 0, **verdict, **usage.get(key, {})}
                for key, verdict in zip(keys, verdicts, strict=True)
            ]
            fixed = {"final": list(FINAL_STATUSES), "denied": ErrorClass.DENIED}
            transaction.many(_SAVE, [{**_adapted(row), **_next_try(row), **fixed} for row in rows])
            release_lock(transaction, worker, [key for _, key in keys])

        runs = f"the verdict on {keys[0][0]}" if len(keys) == 1 else f"{len(keys)} verdicts, first on {keys[0][0]}"
        self.connection.run(f"Storing {runs}", work)

    def release_locks(self, worker: str) -> None:
        """Release every claim of a worker."""
        self.connection.rows("Giving claims back", "DELETE FROM trajectory.verdict_locks WHERE worker = %s", [worker])

    def documents(self, run_ids: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        """Return the documents of runs as JSON text, each with its partition key; None where ``jsonb`` cannot hold one.

        Runs without a trajectory are left out.
        """
        rows = self.connection.rows(
            "Reading documents",
            "SELECT run_id, data::text, partition_key FROM trajectory.trajectories WHERE run_id = ANY(%s)",
            [list(run_ids)],
        )
        return {row["run_id"]: (row["data"], row["partition_key"]) for row in rows}

    def spoken_documents(self, run_ids: Sequence[str]) -> dict[str, tuple[str | None, str]]:
        """Return what ``documents`` does, without what tools returned, and with all messages in one turn."""
        rows = self.connection.rows(
            "Reading documents",
            "SELECT run_id, partition_key, CASE WHEN data IS NOT NULL THEN jsonb_build_object('metadata',"
            " data -> 'metadata', 'turns', jsonb_build_array(jsonb_build_object('messages', jsonb_path_query_array("
            """data, '$.turns[*].messages[*] ? (@.role != "tool")'))))::text END AS data"""
            " FROM trajectory.trajectories WHERE run_id = ANY(%s)",
            [list(run_ids)],
        )
        return {row["run_id"]: (row["data"], row["partition_key"]) for row in rows}

    def document_bytes(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Return how many bytes each of these runs' documents has as JSON text, as far as ``jsonb`` holds them."""
        rows = self.connection.rows(
            "Measuring documents",
            "SELECT run_id, octet_length(data::text)::bigint AS bytes FROM trajectory.trajectories"
            " WHERE run_id = ANY(%s) AND data IS NOT NULL",
            [list(run_ids)],
        )
        return {row["run_id"]: row["bytes"] for row in rows}

    def mean_response_tokens(self, policy_id: str) -> float | None:
        """Return the mean tokens of a response under a policy; None where there is none yet."""
        (row,) = self.connection.rows(
            "Looking at former answers",
            "SELECT avg(output_tokens)::float8 AS n FROM trajectory.verdict_attempts WHERE policy_id = %s",
            [policy_id],
        )
        mean: float | None = row["n"]
        return mean

    def latest_error_classes(self, base_url: str, model: str, at_most: int) -> list[str | None]:
        """Return the error classes of the latest finished calls by any worker, newest first; None for a response.

        ``base_url`` is the endpoint without credentials.
        """
        rows = self.connection.rows(
            "Looking at the latest calls",
            "SELECT error_class FROM (SELECT * FROM trajectory.verdict_attempts ORDER BY started_at DESC LIMIT %s) r"
            " WHERE base_url = %s AND model = %s AND duration_ns IS NOT NULL ORDER BY started_at DESC LIMIT %s",
            [_RECENT_ATTEMPTS, base_url, model, at_most],
        )
        return [row["error_class"] for row in rows]


@contextmanager
def open_verdicts(database: TrajectoryDatabase) -> Iterator[VerdictStore]:
    """Open a connection for verdicts."""
    with database.retrying() as connection:
        yield VerdictStore(connection)


def _usage(transaction: Transaction, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Add up what the calls for each verdict took, those of a killed process too."""
    rows = transaction.rows(
        "SELECT a.run_id, a.verdict_key, count(*) AS attempts, sum(a.input_tokens)::bigint AS input_tokens,"
        " sum(a.cached_input_tokens)::bigint AS cached_input_tokens,"
        " sum(a.output_tokens)::bigint AS output_tokens, sum(a.cost_usd) AS cost_usd"
        " FROM trajectory.verdict_attempts a JOIN unnest(%s::text[], %s::text[]) AS k (run_id, verdict_key)"
        " USING (run_id, verdict_key) GROUP BY 1, 2",
        _unzipped(keys),
    )
    return {(row["run_id"], row["verdict_key"]): row for row in rows}


def _next_try(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether a verdict failed, and the pauses before it is tried again; null where it is not."""
    if verdict["error_class"] in RELEASED:
        return {"failed": False, **dict.fromkeys(("pause", "longest"), RELEASED[verdict["error_class"]])}
    pauses = _PAUSES.get(verdict["verdict_status"])
    pause, longest = pauses if pauses and verdict["error_class"] not in NO_RETRY else (None, None)
    return {"failed": pauses is not None, "pause": pause, "longest": longest}


def _unzipped(keys: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[run_id for run_id, _ in keys], [key for _, key in keys]]


def _adapted(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as Postgres takes it; NUL and lone surrogates, which a judge may send, as visible escapes."""
    storable = {name: storable_value(row[name]) for name in _GIVEN}
    return {
        name: Jsonb(value) if name in _JSON_COLUMNS and value is not None else value for name, value in storable.items()
    }
