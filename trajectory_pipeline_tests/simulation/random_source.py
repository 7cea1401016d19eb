"""A small Letta database that changes at random, as people and Letta servers change one.

Every random choice comes from one ``random.Random``, so that a seed gives one history.
"""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline_tests.simulation.skewed_clock import set_clock_skew

FIRST_HOUR = datetime(2026, 11, 20, 8, tzinfo=UTC)
HOURS = [FIRST_HOUR + number * HOUR for number in range(3)]

SOURCE_TABLES = "messages, step_metrics, steps, run_metrics, runs, agents_tags, conversations, agents, organizations"

INVALID_CONTENT = '{"type": "no list of parts"}'
"""JSON that is no message: its run is quarantined."""

_HIDE_NEWEST = "DELETE FROM messages WHERE id IN (SELECT max(id) FROM messages GROUP BY run_id)"
_MASK_TEXTS = """UPDATE messages SET content = '[{"type": "text", "text": "***"}]'"""

_RUN_TABLES = ("runs", "run_metrics", "steps", "step_metrics", "messages")
"""Tables that hold a run's rows, in the order in which they can be inserted."""

_OF_RUN = {
    "runs": "id = %s",
    "run_metrics": "id = %s",
    "steps": "run_id = %s",
    "step_metrics": "run_id = %s",
    "messages": "run_id = %s",
}
"""By table, the condition that finds a run's rows."""


class RandomSource:
    """The database, and the events that can happen to it; a public method without a result is an event."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.url = url
        self._rng = rng
        self._connection = psycopg.connect(url, autocommit=True)
        self._last_number = 0
        self._last_id: str | None = None
        self._deleted_runs: list[dict[str, list[str]]] = []
        self.restarted: set[str] = set()
        self._execute("INSERT INTO organizations (id, name, privileged_tools) VALUES ('org-1', 'one', false)")
        set_clock_skew(self._connection, 0)

    def close(self) -> None:
        self._connection.close()

    def change(self) -> str:
        """Do one random event; returns its name and the row it concerns."""
        event = self._rng.choice(
            [self.end_run] * 4
            + [
                self.cancel_run,
                self.restart_run,
                self.add_message,
                self.write_late_metrics,
                self.fail_step,
                self.give_feedback,
                self.move_run,
                self.move_run,
                self.soft_delete_message,
                self.delete_message,
                self.corrupt_message,
                self.repair_messages,
                self.delete_run,
                self.delete_run,
                self.restore_run,
                self.delete_agent,
                self.restore_backup,
                self.answer_approval,
                self.skew_clock,
            ]
        )
        event()
        return f"{event.__name__} {self._last_id or ''}".strip()

    def end_run(self) -> str:
        self._last_number += 1
        run_id = f"run-{self._last_number:04d}"
        agent = self._rng.choice(["agent-1", "agent-2"])
        self._add_agent(agent)
        ended = self._random_time()
        self._execute(
            "INSERT INTO runs (id, status, completed_at, stop_reason, metadata_, agent_id, organization_id, created_at)"
            " VALUES (%s, 'completed', %s, 'end_turn', '{\"run_type\": \"send_message\"}', %s, 'org-1', %s)",
            run_id,
            ended.replace(tzinfo=None),
            agent,
            ended - timedelta(seconds=5),
        )
        self._execute("INSERT INTO run_metrics (id, agent_id, organization_id) VALUES (%s, %s, 'org-1')", run_id, agent)
        for step in range(self._rng.randint(0, 2)):
            self._add_step(run_id, agent, f"step-{run_id}-{step}", ended)
            self._add_message(run_id, f"step-{run_id}-{step}", agent, "user")
        return run_id

    def cancel_run(self) -> None:
        self._execute(
            "UPDATE runs SET status = 'cancelled', stop_reason = 'cancelled', updated_at = now() WHERE id = %s",
            self._random_id("runs"),
        )

    def restart_run(self) -> None:
        """A terminal run starts again; most end once more."""
        run_id = self._random_id("runs")
        self.restarted.add(run_id or "")
        self._execute("UPDATE runs SET status = 'running' WHERE id = %s", run_id)
        if self._rng.random() < 0.7:
            self._execute("UPDATE runs SET status = 'failed', updated_at = now() WHERE id = %s", run_id)

    def add_message(self) -> None:
        run_id = self._random_id("runs")
        rows = self._connection.execute("SELECT agent_id FROM runs WHERE id = %s", [run_id]).fetchall()
        for (agent,) in rows:
            self._add_message(run_id, None, agent)

    def write_late_metrics(self) -> None:
        self._execute(
            "UPDATE run_metrics SET run_ns = %s WHERE id = %s", self._rng.randint(1, 10**9), self._random_id("runs")
        )

    def fail_step(self) -> None:
        self._execute(
            "UPDATE steps SET status = 'FAILED', error_type = 'Unknown', total_tokens = total_tokens + 1 WHERE id = %s",
            self._random_id("steps"),
        )

    def give_feedback(self) -> None:
        self._execute(
            "UPDATE steps SET feedback = 'positive', updated_at = now() WHERE id = %s", self._random_id("steps")
        )

    def move_run(self) -> None:
        """The second update of a failing background stream moves ``completed_at``, here across the hour."""
        self._execute(
            "UPDATE runs SET completed_at = %s, updated_at = now() WHERE id = %s",
            self._random_time().replace(tzinfo=None),
            self._random_id("runs"),
        )

    def soft_delete_message(self) -> None:
        self._execute("UPDATE messages SET is_deleted = true WHERE id = %s", self._random_id("messages"))

    def delete_message(self) -> None:
        self._execute("DELETE FROM messages WHERE id = %s", self._random_id("messages"))

    def corrupt_message(self) -> None:
        self._execute("UPDATE messages SET content = %s WHERE id = %s", INVALID_CONTENT, self._random_id("messages"))

    def repair_messages(self) -> None:
        self._execute("UPDATE messages SET content = '[]' WHERE content::text = %s", INVALID_CONTENT)

    def delete_run(self) -> None:
        run_id = self._random_id("runs")
        if run_id is not None:
            self._delete_run_rows(run_id)

    def restore_run(self) -> None:
        """A deleted run is restored from a backup, sometimes into another hour."""
        if not self._deleted_runs:
            return
        rows = self._deleted_runs.pop(self._rng.randrange(len(self._deleted_runs)))
        run = json.loads(rows["runs"][0])
        self._last_id = run["id"]
        self._add_agent(run["agent_id"])
        for table in _RUN_TABLES:
            for row in rows[table]:
                # A step of another run, which a message names, may be gone by now.
                with suppress(psycopg.errors.ForeignKeyViolation):
                    self._execute(
                        f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, %s::jsonb)"
                        " ON CONFLICT DO NOTHING",
                        row,
                    )
        if self._rng.random() < 0.3:
            self._execute(
                "UPDATE runs SET completed_at = %s WHERE id = %s",
                self._random_time().replace(tzinfo=None),
                self._last_id,
            )

    def delete_agent(self) -> None:
        """An agent is deleted, with all its runs."""
        agent = self._rng.choice(["agent-1", "agent-2"])
        for (run_id,) in self._connection.execute("SELECT id FROM runs WHERE agent_id = %s ORDER BY 1", [agent]):
            self._delete_run_rows(run_id)
        self._execute("DELETE FROM messages WHERE agent_id = %s", agent)
        self._execute("DELETE FROM agents WHERE id = %s", agent)

    def restore_backup(self) -> None:
        """A restored backup changes every ``xmin`` and no value."""
        for table in _RUN_TABLES:
            self._execute(f"UPDATE {table} SET id = id")

    def skew_clock(self) -> None:
        """Another server takes over, whose clock is up to ten minutes ahead or behind."""
        set_clock_skew(self._connection, self._rng.randint(-600, 600))

    def answer_approval(self) -> None:
        """A new run whose first message carries a step of another."""
        step, run_id = self._random_id("steps"), self.end_run()
        rows = self._connection.execute("SELECT agent_id FROM runs WHERE id = %s", [run_id]).fetchall()
        if step is not None:
            self._add_message(run_id, step, rows[0][0])

    @contextmanager
    def hidden(self) -> Iterator[str]:
        """Show less inside the block, as a policy, an empty volume, a half-restored dump or a masking view does."""
        tables = self._rng.choice([_RUN_TABLES, ("runs",), ("messages",), ("steps", "messages")])
        statements = self._rng.choice([[f"DELETE FROM {table}" for table in tables], [_HIDE_NEWEST], [_MASK_TEXTS]])
        with self._set_aside(_RUN_TABLES):
            for statement in statements:
                self._execute(statement)
            yield f"hid: {'; '.join(statements)}"

    @contextmanager
    def restored_clone(self) -> Iterator[str]:
        """Inside the block, be a clone restored from a backup: the latest runs and messages are not there yet."""
        ids = sorted(self.run_ids())
        latest = ids[self._rng.randrange(len(ids)) :] if ids else []
        last_message = self._last_number - self._rng.randrange(20)
        with self._set_aside(_RUN_TABLES):
            for run_id in latest:
                for table in _RUN_TABLES:
                    self._execute(f"DELETE FROM {table} WHERE {_OF_RUN[table]}", run_id)
            self._execute("DELETE FROM messages WHERE id > %s", f"message-{last_message:05d}")
            yield f"showed a clone without {len(latest)} runs"

    @contextmanager
    def _set_aside(self, tables: tuple[str, ...]) -> Iterator[None]:
        """Put the rows of tables back at the end of the block, whatever is done to them in it."""
        # Without triggers: foreign keys hold again when the rows are back.
        with self._connection.transaction():
            for table in tables:
                self._execute(f"CREATE TABLE aside_{table} AS SELECT * FROM {table}")
        self._execute("SET session_replication_role = replica")
        try:
            yield
        finally:
            with self._connection.transaction():
                for table in tables:
                    self._execute(f"DELETE FROM {table}")
                    self._execute(f"INSERT INTO {table} SELECT * FROM aside_{table}")
                    self._execute(f"DROP TABLE aside_{table}")
            self._execute("SET session_replication_role = DEFAULT")

    def terminal_run_ids(self) -> set[str]:
        rows = self._connection.execute("SELECT id FROM runs WHERE status IN ('completed', 'failed', 'cancelled')")
        return {row[0] for row in rows}

    def run_ids(self) -> set[str]:
        return {row[0] for row in self._connection.execute("SELECT id FROM runs")}

    def _delete_run_rows(self, run_id: str) -> None:
        self._deleted_runs.append(
            {
                table: [
                    row[0]
                    for row in self._connection.execute(
                        f"SELECT to_jsonb(t)::text FROM {table} t WHERE {condition}".encode(), [run_id]
                    )
                ]
                for table, condition in _OF_RUN.items()
            }
        )
        for table in reversed(_RUN_TABLES):
            self._execute(f"DELETE FROM {table} WHERE {_OF_RUN[table]}", run_id)

    def _random_time(self) -> datetime:
        """Return a time in the simulated hours, often at the edge of one."""
        if self._rng.random() < 0.5:
            edge = FIRST_HOUR + self._rng.randrange(1, len(HOURS)) * HOUR
            return edge + timedelta(seconds=self._rng.choice([-1, 0, 1]))
        return FIRST_HOUR + timedelta(seconds=self._rng.randrange(len(HOURS) * 3600))

    def _random_id(self, table: str) -> str | None:
        ids = sorted(row[0] for row in self._connection.execute(f"SELECT id FROM {table}".encode()))
        self._last_id = self._rng.choice(ids) if ids else None
        return self._last_id

    def _add_agent(self, agent: str) -> None:
        self._execute(
            "INSERT INTO agents (id, name, agent_type, organization_id, message_buffer_autoclear)"
            " VALUES (%s, %s, 'letta_v1_agent', 'org-1', false) ON CONFLICT DO NOTHING",
            agent,
            agent,
        )

    def _add_step(self, run_id: str, agent: str, step_id: str, at: datetime) -> None:
        self._execute(
            "INSERT INTO steps (id, run_id, agent_id, model, prompt_tokens, completion_tokens, total_tokens, status,"
            " created_at) VALUES (%s, %s, %s, 'gpt-4o-mini', 10, 5, 15, 'SUCCESS', %s)",
            step_id,
            run_id,
            agent,
            at - timedelta(seconds=self._rng.randint(0, 4)),
        )
        self._execute("INSERT INTO step_metrics (id, run_id, agent_id) VALUES (%s, %s, %s)", step_id, run_id, agent)
        for _ in range(self._rng.randint(0, 2)):
            self._add_message(run_id, step_id, agent)

    def _add_message(self, run_id: str | None, step_id: str | None, agent: str, role: str = "assistant") -> None:
        self._last_number += 1
        content = json.dumps([{"type": "text", "text": f"Words number {self._last_number}.", "signature": None}])
        self._execute(
            "INSERT INTO messages (id, agent_id, role, tool_calls, organization_id, step_id, run_id, content,"
            " created_at) VALUES (%s, %s, 'assistant', '[]', 'org-1', %s, %s, %s, now())",
            f"message-{self._last_number:05d}",
            agent,
            step_id,
            run_id,
            content,
        )

    def _execute(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement.encode(), values or None)
