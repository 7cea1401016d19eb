"""A small Letta database that people and servers change at random.

Every random choice comes from one ``random.Random``, so that a seed is a history.
"""

import json
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline_tests.simulation.clocks import put_clock

FIRST_HOUR = datetime(2026, 11, 20, 8, tzinfo=UTC)
HOURS = [FIRST_HOUR + number * HOUR for number in range(3)]

SOURCE_TABLES = "messages, step_metrics, steps, run_metrics, runs, agents_tags, conversations, agents, organizations"


BAD_CONTENT = '{"type": "no list of parts"}'
"""JSON that is no message: its run goes into quarantine."""

_COPIED = ("runs", "run_metrics", "steps", "step_metrics", "messages")
"""Tables that hold a run's rows, in the order in which they can be put back."""


class Source:
    """What people and Letta servers do to Letta's database."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.url = url
        self._chance = chance
        self._connection = psycopg.connect(url, autocommit=True)
        self._number = 0
        self._touched: str | None = None
        self._deleted: list[dict[str, list[str]]] = []
        self.ran_again: set[str] = set()
        self._run("INSERT INTO organizations (id, name, privileged_tools) VALUES ('org-1', 'one', false)")
        put_clock(self._connection, 0)

    def close(self) -> None:
        self._connection.close()

    def change(self) -> str:
        """Do one random thing; returns what it was."""
        change = self._chance.choice(
            [self.end_run] * 4
            + [
                self.flip_status,
                self.run_again,
                self.add_message,
                self.write_metrics,
                self.finalise_step,
                self.give_feedback,
                self.move_run,
                self.move_run,
                self.delete_message_softly,
                self.delete_message,
                self.spoil_message,
                self.mend_messages,
                self.delete_run,
                self.delete_run,
                self.bring_back,
                self.delete_agent,
                self.restore,
                self.answer_approval,
                self.put_clock,
            ]
        )
        change()
        return f"{change.__name__} {self._touched or ''}".strip()

    def end_run(self) -> str:
        self._number += 1
        run_id = f"run-{self._number:04d}"
        agent = self._chance.choice(["agent-1", "agent-2"])
        self._agent(agent)
        ended = self._moment()
        self._run(
            "INSERT INTO runs (id, status, completed_at, stop_reason, metadata_, agent_id, organization_id, created_at)"
            " VALUES (%s, 'completed', %s, 'end_turn', '{\"run_type\": \"send_message\"}', %s, 'org-1', %s)",
            run_id,
            ended.replace(tzinfo=None),
            agent,
            ended - timedelta(seconds=5),
        )
        self._run("INSERT INTO run_metrics (id, agent_id, organization_id) VALUES (%s, %s, 'org-1')", run_id, agent)
        for step in range(self._chance.randint(0, 2)):
            self._step(run_id, agent, f"step-{run_id}-{step}", ended)
        return run_id

    def flip_status(self) -> None:
        self._run(
            "UPDATE runs SET status = 'cancelled', stop_reason = 'cancelled', updated_at = now() WHERE id = %s",
            self._some("runs"),
        )

    def run_again(self) -> None:
        """A run that had ended goes on; most end once more."""
        run_id = self._some("runs")
        self.ran_again.add(run_id or "")
        self._run("UPDATE runs SET status = 'running' WHERE id = %s", run_id)
        if self._chance.random() < 0.7:
            self._run("UPDATE runs SET status = 'failed', updated_at = now() WHERE id = %s", run_id)

    def add_message(self) -> None:
        run_id = self._some("runs")
        rows = self._connection.execute("SELECT agent_id FROM runs WHERE id = %s", [run_id]).fetchall()
        for (agent,) in rows:
            self._message(run_id, None, agent)

    def write_metrics(self) -> None:
        self._run(
            "UPDATE run_metrics SET run_ns = %s WHERE id = %s", self._chance.randint(1, 10**9), self._some("runs")
        )

    def finalise_step(self) -> None:
        self._run(
            "UPDATE steps SET status = 'FAILED', error_type = 'Unknown', total_tokens = total_tokens + 1 WHERE id = %s",
            self._some("steps"),
        )

    def give_feedback(self) -> None:
        self._run("UPDATE steps SET feedback = 'positive', updated_at = now() WHERE id = %s", self._some("steps"))

    def move_run(self) -> None:
        """The second update of a failing background stream moves ``completed_at``, here across the hour."""
        self._run(
            "UPDATE runs SET completed_at = %s, updated_at = now() WHERE id = %s",
            self._moment().replace(tzinfo=None),
            self._some("runs"),
        )

    def delete_message_softly(self) -> None:
        self._run("UPDATE messages SET is_deleted = true WHERE id = %s", self._some("messages"))

    def delete_message(self) -> None:
        self._run("DELETE FROM messages WHERE id = %s", self._some("messages"))

    def spoil_message(self) -> None:
        self._run("UPDATE messages SET content = %s WHERE id = %s", BAD_CONTENT, self._some("messages"))

    def mend_messages(self) -> None:
        self._run("UPDATE messages SET content = '[]' WHERE content::text = %s", BAD_CONTENT)

    def delete_run(self) -> None:
        run_id = self._some("runs")
        if run_id is not None:
            self._delete(run_id)

    def bring_back(self) -> None:
        """Somebody restores a deleted run from a backup, at times into another hour."""
        if not self._deleted:
            return
        rows = self._deleted.pop(self._chance.randrange(len(self._deleted)))
        run = json.loads(rows["runs"][0])
        self._touched = run["id"]
        self._agent(run["agent_id"])
        for table in _COPIED:
            for row in rows[table]:
                # A step of another run, which a message names, may be gone by now.
                with suppress(psycopg.errors.ForeignKeyViolation):
                    self._run(
                        f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, %s::jsonb)"
                        " ON CONFLICT DO NOTHING",
                        row,
                    )
        if self._chance.random() < 0.3:
            self._run(
                "UPDATE runs SET completed_at = %s WHERE id = %s", self._moment().replace(tzinfo=None), self._touched
            )

    def delete_agent(self) -> None:
        """An agent goes, and all its runs with it."""
        agent = self._chance.choice(["agent-1", "agent-2"])
        for (run_id,) in self._connection.execute("SELECT id FROM runs WHERE agent_id = %s ORDER BY 1", [agent]):
            self._delete(run_id)
        self._run("DELETE FROM messages WHERE agent_id = %s", agent)
        self._run("DELETE FROM agents WHERE id = %s", agent)

    def restore(self) -> None:
        """A restore moves every ``xmin`` and changes nothing."""
        for table in _COPIED:
            self._run(f"UPDATE {table} SET id = id")

    def put_clock(self) -> None:
        """Another server takes over, whose clock is minutes ahead or behind."""
        put_clock(self._connection, self._chance.randint(-600, 600))

    def answer_approval(self) -> None:
        """A new run whose first message carries a step of another."""
        step, run_id = self._some("steps"), self.end_run()
        rows = self._connection.execute("SELECT agent_id FROM runs WHERE id = %s", [run_id]).fetchall()
        if step is not None:
            self._message(run_id, step, rows[0][0])

    def terminal_run_ids(self) -> set[str]:
        rows = self._connection.execute("SELECT id FROM runs WHERE status IN ('completed', 'failed', 'cancelled')")
        return {row[0] for row in rows}

    def run_ids(self) -> set[str]:
        return {row[0] for row in self._connection.execute("SELECT id FROM runs")}

    def _delete(self, run_id: str) -> None:
        conditions = {
            "runs": "id = %s",
            "run_metrics": "id = %s",
            "steps": "run_id = %s",
            "step_metrics": "run_id = %s",
            "messages": "run_id = %s",
        }
        self._deleted.append(
            {
                table: [
                    row[0]
                    for row in self._connection.execute(
                        f"SELECT to_jsonb(t)::text FROM {table} t WHERE {condition}".encode(), [run_id]
                    )
                ]
                for table, condition in conditions.items()
            }
        )
        for table in reversed(_COPIED):
            self._run(f"DELETE FROM {table} WHERE {conditions[table]}", run_id)

    def _moment(self) -> datetime:
        """A time in the simulated hours, often near the edge of one."""
        if self._chance.random() < 0.5:
            edge = FIRST_HOUR + self._chance.randrange(1, len(HOURS)) * HOUR
            return edge + timedelta(seconds=self._chance.choice([-1, 0, 1]))
        return FIRST_HOUR + timedelta(seconds=self._chance.randrange(len(HOURS) * 3600))

    def _some(self, table: str) -> str | None:
        ids = sorted(row[0] for row in self._connection.execute(f"SELECT id FROM {table}".encode()))
        self._touched = self._chance.choice(ids) if ids else None
        return self._touched

    def _agent(self, agent: str) -> None:
        self._run(
            "INSERT INTO agents (id, name, agent_type, organization_id, message_buffer_autoclear)"
            " VALUES (%s, %s, 'letta_v1_agent', 'org-1', false) ON CONFLICT DO NOTHING",
            agent,
            agent,
        )

    def _step(self, run_id: str, agent: str, step_id: str, at: datetime) -> None:
        self._run(
            "INSERT INTO steps (id, run_id, agent_id, model, prompt_tokens, completion_tokens, total_tokens, status,"
            " created_at) VALUES (%s, %s, %s, 'gpt-4o-mini', 10, 5, 15, 'SUCCESS', %s)",
            step_id,
            run_id,
            agent,
            at - timedelta(seconds=self._chance.randint(0, 4)),
        )
        self._run("INSERT INTO step_metrics (id, run_id, agent_id) VALUES (%s, %s, %s)", step_id, run_id, agent)
        for _ in range(self._chance.randint(0, 2)):
            self._message(run_id, step_id, agent)

    def _message(self, run_id: str | None, step_id: str | None, agent: str) -> None:
        self._number += 1
        content = json.dumps([{"type": "text", "text": f"Words number {self._number}.", "signature": None}])
        self._run(
            "INSERT INTO messages (id, agent_id, role, tool_calls, organization_id, step_id, run_id, content,"
            " created_at) VALUES (%s, %s, 'assistant', '[]', 'org-1', %s, %s, %s, now())",
            f"message-{self._number:05d}",
            agent,
            step_id,
            run_id,
            content,
        )

    def _run(self, statement: str, *values: Any) -> None:
        self._connection.execute(statement.encode(), values or None)
