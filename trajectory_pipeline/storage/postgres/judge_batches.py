"""Batches of calls in the trajectory database: each is stored before anything is sent, so that none is sent twice.

Its lines are rows of ``verdict_attempts``. While it runs, their verdicts are ``submitted``: a claim that needs no
worker. Who works on a batch itself holds a claim named after it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

from trajectory_pipeline.lossless_json import storable_value
from trajectory_pipeline.schema.enums import UNSENT_STATES, AttemptResult, BatchState, ErrorClass, VerdictStatus
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.spend_ledger import settle_and_reserve
from trajectory_pipeline.storage.postgres.verdict_locks import (
    VerdictLock,
    claim_holders,
    lock_verdict,
    release_lock,
)
from trajectory_pipeline.storage.postgres.verdicts import RELEASED

Row = dict[str, Any]
_AT_ONCE = 500
_LIMIT_HOLDS = timedelta(days=1)
_IN_A_LATER_ONE: LiteralString = (
    "EXISTS (SELECT FROM trajectory.verdict_attempts l JOIN trajectory.judge_batches n ON n.batch_id = l.batch_id"
    " WHERE l.run_id = a.run_id AND l.verdict_key = a.verdict_key AND n.created_at > b.created_at)"
)
"""Whether the verdict of the call ``a`` of the batch ``b`` was submitted once more: then it waits for that batch.

It is pending again as soon as its line is collected, and the rest of the batch may take minutes, or another worker.
"""
_RELEASE: LiteralString = (
    "UPDATE trajectory.verdicts v SET verdict_status = 'failed', error_class = %(class)s,"
    " error_message = CASE WHEN NOT v.erased THEN %(message)s::text END,"
    " input_tokens = s.input_tokens, cached_input_tokens = s.cached_input_tokens, output_tokens = s.output_tokens,"
    " cost_usd = s.cost_usd, next_attempt_at = now() + %(pause)s::interval, updated_at = clock_timestamp()"
    " FROM (SELECT run_id, verdict_key, sum(input_tokens)::bigint AS input_tokens,"
    " sum(cached_input_tokens)::bigint AS cached_input_tokens, sum(output_tokens)::bigint AS output_tokens,"
    " sum(cost_usd) AS cost_usd FROM trajectory.verdict_attempts WHERE (run_id, verdict_key) IN ("
    "SELECT a.run_id, a.verdict_key FROM trajectory.verdict_attempts a"
    " JOIN trajectory.judge_batches b ON b.batch_id = a.batch_id"
    f" WHERE a.batch_id = %(batch)s AND NOT {_IN_A_LATER_ONE}) GROUP BY 1, 2) s"
    " WHERE v.run_id = s.run_id AND v.verdict_key = s.verdict_key AND v.verdict_status = 'submitted'"
)


@dataclass(frozen=True)
class JudgeBatch:
    """A row of ``judge_batches``, as far as its keeper needs it."""

    batch_id: str
    state: BatchState
    policy_id: str
    model: str
    base_url: str
    options: Mapping[str, Any]
    sha256: str | None
    lines: int
    prompt_tokens: int
    input_file_id: str | None
    provider_batch_id: str | None
    provider_status: str | None
    output_file_id: str | None
    error_file_id: str | None
    completed: int | None
    failed: int | None
    reserved_usd: Any
    booked_usd: Any
    token_limit: int | None
    note: str | None
    created_at: datetime
    submitted_at: datetime | None
    polled_at: datetime | None
    ended_at: datetime | None
    files_deleted_at: datetime | None
    updated_at: datetime

    @property
    def is_unsent(self) -> bool:
        """Whether the provider is not known to have it."""
        return self.state in UNSENT_STATES


class BatchStore:
    """An open ``connection`` for batches. Methods raise ``SinkError``."""

    def __init__(self, connection: RetryingConnection) -> None:
        self.connection = connection

    def insert(self, batch_id: str, worker: str, seconds: float, **values: Any) -> None:
        """Store a batch that is being prepared by a worker, which claims it."""
        columns = {**values, "batch_id": batch_id, "state": BatchState.PREPARING, "lines": 0, "prompt_tokens": 0}
        columns["options"] = Jsonb(columns["options"])
        names = list(columns)
        statement = sql.SQL(
            "INSERT INTO trajectory.judge_batches ({}, created_at, updated_at)"
            " VALUES ({}, clock_timestamp(), clock_timestamp()) ON CONFLICT (batch_id) DO NOTHING"
        ).format(sql.SQL(", ").join(map(sql.Identifier, names)), sql.SQL(", ").join(map(sql.Placeholder, names)))

        def work(transaction: Transaction) -> None:
            transaction.rows(statement, columns)
            lock_verdict(transaction, [_claim(batch_id, worker, seconds)])

        self.connection.run("Storing a batch", work)

    def change(self, batch_id: str, expected: Sequence[BatchState], **values: Any) -> bool:
        """Change a batch that is in one of these states; returns whether it was."""
        values = {name: Jsonb(value) if isinstance(value, dict) else value for name, value in values.items()}
        values = {name: storable_value(value) if isinstance(value, str) else value for name, value in values.items()}
        changes = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in values)
        statement = sql.SQL(
            "UPDATE trajectory.judge_batches SET {}, updated_at = clock_timestamp() WHERE batch_id = %(batch)s"
            " AND state = ANY(%(expected)s) RETURNING batch_id"
        ).format(changes)
        parameters = {**values, "batch": batch_id, "expected": list(expected)}
        return bool(self.connection.rows("Changing a batch", statement, parameters))

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        return self.connection.now()

    def unfinished(self) -> list[JudgeBatch]:
        """Return the batches that something is left to do for, the oldest first."""
        return self._batches(
            "state NOT IN ('collected', 'abandoned') OR state = 'collected' AND files_deleted_at IS NULL"
        )

    def latest(self, number: int) -> list[JudgeBatch]:
        """Return the newest batches, the newest first."""
        return self._batches("true", newest=number)

    def find(self, batch_id: str) -> JudgeBatch | None:
        """Return a batch by our id or the provider's."""
        found = self._batches("batch_id = %(id)s OR provider_batch_id = %(id)s", {"id": batch_id})
        return found[0] if found else None

    def accepted_options(self, base_url: str, model: str) -> Mapping[str, Any] | None:
        """Return the request options of the newest batch that was answered; None where none was."""
        found = self._batches(
            "base_url = %(url)s AND model = %(model)s AND (counts ->> 'answered')::bigint > 0",
            {"url": base_url, "model": model},
            newest=1,
        )
        return found[0].options if found else None

    def token_room(self, base_url: str, model: str) -> tuple[int, int] | None:
        """Return how many prompt tokens the provider takes in batches, and how many of them are left.

        None where it did not say so lately: what it took a day ago says little, and asking for more costs nothing.
        """
        (row,) = self.connection.rows(
            "Looking at the batches that run",
            "SELECT (SELECT token_limit FROM trajectory.judge_batches WHERE base_url = %(url)s AND model = %(model)s"
            " AND token_limit IS NOT NULL AND ended_at > now() - %(holds)s::interval"
            " ORDER BY created_at DESC LIMIT 1) AS token_limit, coalesce(sum(prompt_tokens) FILTER ("
            " WHERE state IN ('uploading', 'creating', 'submitted')), 0)::bigint AS taken"
            " FROM trajectory.judge_batches WHERE base_url = %(url)s AND model = %(model)s",
            {"url": base_url, "model": model, "holds": _LIMIT_HOLDS},
        )
        limit: int | None = row["token_limit"]
        return None if limit is None else (limit, limit - row["taken"])

    def partition_keys(self, batch_id: str) -> list[str]:
        """Return the keys of the partitions that a batch's verdicts are in, sorted."""
        rows = self.connection.rows(
            "Looking at a batch's partitions",
            "SELECT DISTINCT v.partition_key FROM trajectory.verdict_attempts a JOIN trajectory.verdicts v"
            " USING (run_id, verdict_key) WHERE a.batch_id = %s ORDER BY 1",
            [batch_id],
        )
        return [row["partition_key"] for row in rows]

    def attempts(self, batch_id: str) -> list[Row]:
        """Return the calls of a batch, with the hash of what was shown, and whether their verdicts wait for it."""
        return self.connection.rows(
            "Reading a batch's calls",
            "SELECT a.*, v.shown_sha256,"
            f" coalesce(v.verdict_status = 'submitted', false) AND NOT {_IN_A_LATER_ONE} AS waits"
            " FROM trajectory.verdict_attempts a JOIN trajectory.judge_batches b ON b.batch_id = a.batch_id"
            " LEFT JOIN trajectory.verdicts v ON v.run_id = a.run_id AND v.verdict_key = a.verdict_key"
            " WHERE a.batch_id = %s ORDER BY a.attempt_id",
            [batch_id],
        )

    def showed_erased_content(self, batch_id: str) -> bool:
        """Whether a batch that runs was sent content that has been erased since."""
        rows = self.connection.rows(
            "Looking for erased content in batches",
            "SELECT EXISTS (SELECT FROM trajectory.verdict_attempts a JOIN trajectory.verdicts v"
            " USING (run_id, verdict_key), unnest(v.shown_run_ids, v.shown_digests) AS s (run_id, content_digest)"
            " JOIN trajectory.trajectories t ON t.run_id = s.run_id"
            " WHERE a.batch_id = %s AND t.erased AND t.content_digest <> s.content_digest) AS found",
            [batch_id],
        )
        return bool(rows[0]["found"])

    def settle(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Settle calls of a batch that ended; one that is settled already stays as it is."""
        for first in range(0, len(rows), _AT_ONCE):
            settle_and_reserve(self.connection, (), (), rows[first : first + _AT_ONCE])

    def release(self, batch_id: str, error_class: ErrorClass, message: str) -> None:
        """Make the verdicts that still wait for a batch pending again; nothing counts as a failure of theirs."""
        self.connection.rows(
            "Releasing a batch's verdicts",
            _RELEASE,
            {
                "batch": batch_id,
                "class": error_class,
                "message": message,
                "pause": RELEASED.get(error_class, timedelta(0)),
            },
        )

    def abandon(self, batch: JudgeBatch, error_class: ErrorClass, note: str) -> None:
        """Undo a batch that the provider does not have: nothing is owed, and its verdicts are pending again."""
        now = datetime.now(UTC)
        unsettled = [row for row in self.attempts(batch.batch_id) if row["duration_ns"] is None]
        ended = {"result": AttemptResult.ERROR, "error_class": error_class, "error_message": note, "cost_usd": None}
        self.settle([{**row, **ended, "duration_ns": nanoseconds_between(row["started_at"], now)} for row in unsettled])
        self.release(batch.batch_id, error_class, note)
        self.change(batch.batch_id, UNSENT_STATES, state=BatchState.ABANDONED, note=note, ended_at=now)

    def booked(self, batch_id: str) -> Any:
        """Return what a batch's lines cost, as it counts against the caps."""
        (row,) = self.connection.rows(
            "Adding up a batch",
            "SELECT sum(CASE WHEN result = 'error' THEN 0 ELSE coalesce(cost_usd, reserved_usd) END) AS usd"
            " FROM trajectory.verdict_attempts WHERE batch_id = %s",
            [batch_id],
        )
        return row["usd"]

    def claim(self, batch_id: str, worker: str, seconds: float, former: str | None = None) -> bool:
        """Claim the work on a batch; ``former`` is a worker whose claim was seen to stay expired."""

        def work(transaction: Transaction) -> bool:
            return not lock_verdict(transaction, [_claim(batch_id, worker, seconds, former)])

        return self.connection.run("Claiming a batch", work)

    def unclaim(self, batch_id: str, worker: str) -> None:
        """Release the claim on a batch."""
        self.connection.run("Releasing a batch", lambda t: release_lock(t, worker, [_lock_key(batch_id)]))

    def expired_holder(self, batch_id: str) -> str | None:
        """Return the worker whose claim on a batch is expired; None where there is none."""
        holder = claim_holders(self.connection, [_lock_key(batch_id)]).get(_lock_key(batch_id))
        return holder.worker if holder is not None and holder.expired else None

    def newest_created_at(self, policy_id: str) -> datetime | None:
        """Return when the newest batch under a policy was begun; None where there is none that was sent."""
        (row,) = self.connection.rows(
            "Looking at the newest batch",
            "SELECT max(created_at) AS moment FROM trajectory.judge_batches WHERE policy_id = %s"
            " AND state <> 'abandoned'",
            [policy_id],
        )
        moment: datetime | None = row["moment"]
        return moment

    def submitted_verdicts(self) -> int:
        """Return how many verdicts wait for a batch."""
        rows = self.connection.rows(
            "Counting submitted verdicts",
            "SELECT count(*) AS n FROM trajectory.verdicts WHERE verdict_status = %s",
            [VerdictStatus.SUBMITTED],
        )
        return int(rows[0]["n"])

    def _batches(
        self, condition: str, parameters: Mapping[str, Any] | None = None, newest: int | None = None
    ) -> list[JudgeBatch]:
        order = "created_at" if newest is None else f"created_at DESC LIMIT {newest:d}"
        statement = f"SELECT * FROM trajectory.judge_batches WHERE {condition} ORDER BY {order}"
        rows = self.connection.rows("Reading batches", sql.SQL(statement), parameters or {})
        names = JudgeBatch.__dataclass_fields__
        return [JudgeBatch(**{name: row[name] for name in names} | {"state": BatchState(row["state"])}) for row in rows]


@contextmanager
def open_batches(database: TrajectoryDatabase) -> Iterator[BatchStore]:
    """Open a connection for batches."""
    with database.retrying() as connection:
        yield BatchStore(connection)


def nanoseconds_between(began: datetime, ended: datetime) -> int:
    """Return the time between two moments, at least 0."""
    return max(0, (ended - began) // timedelta(microseconds=1)) * 1000


def _lock_key(batch_id: str) -> str:
    return f"batch:{batch_id}"


def _claim(batch_id: str, worker: str, seconds: float, former: str | None = None) -> VerdictLock:
    return VerdictLock("", _lock_key(batch_id), worker, seconds, former)
