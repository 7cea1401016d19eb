"""The Letta database as a source among others: it passes the same suite."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Json

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline_tests.sources.conformance import IMAGE, PLAIN, Shape, SourceConformance, World


class LettaWorld(World):
    """Each run is a row of ``runs``, with its steps and messages."""

    proves_deletions = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.source = LettaSource(url)
        with psycopg.connect(url) as connection:
            tables = "messages, steps, step_metrics, run_metrics, runs"
            connection.execute(f"TRUNCATE {tables} CASCADE".encode())
            agents = connection.execute("SELECT id, organization_id FROM agents ORDER BY id LIMIT 1").fetchall()
        ((self.agent, self.organization),) = agents
        self.written: Counter[str] = Counter()

    def run_id(self, key: str) -> str:
        return f"run-{key}"

    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        self._write(key, asked, at, "completed", shape)
        for number in range(shape.rounds):
            call_id, text = f"call_{number + 1}", shape.returned(number)
            call = {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}
            self._message(key, "assistant", "I look.", at, calls=[call])
            if shape.has_return:
                back = {"tool_call_id": call_id, "status": "success", "func_response": text}
                self._message(key, "tool", text, at, returns=[back])
        self._message(key, "assistant", answered, at)
        if shape.extra:
            with psycopg.connect(self.url) as connection:
                connection.execute(f"ALTER TABLE runs ADD COLUMN {shape.extra} text DEFAULT 'odd'".encode())

    def write_twin(self, key: str, of: str, asked: str, answered: str, at: datetime) -> None:
        """Of one conversation; ids of messages are keys of their table."""
        self.write_run(key, asked, answered, at)
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "INSERT INTO conversations (id, agent_id, organization_id, is_deleted)"
                " VALUES ('conv-1', %s, %s, false)",
                [self.agent, self.organization],
            )
            connection.execute("UPDATE runs SET conversation_id = 'conv-1'")
            connection.execute("UPDATE messages SET conversation_id = 'conv-1'")

    def _write(self, key: str, asked: str, at: datetime, status: str, shape: Shape = PLAIN) -> None:
        run_id = self.run_id(key)
        with psycopg.connect(self.url) as connection:
            for table in ("messages", "steps"):
                connection.execute(f"DELETE FROM {table} WHERE run_id = %s".encode(), [run_id])
            connection.execute("DELETE FROM runs WHERE id = %s", [run_id])
            connection.execute(
                "INSERT INTO runs (id, agent_id, organization_id, status, stop_reason, created_at, completed_at,"
                " is_deleted) VALUES (%s, %s, %s, %s, 'end_turn', %s, %s, false)",
                [run_id, self.agent, self.organization, status, at - shape.took, at.replace(tzinfo=None)],
            )
            connection.execute(
                "INSERT INTO steps (id, run_id, agent_id, organization_id, origin, model, prompt_tokens,"
                " completion_tokens, total_tokens, status, created_at, is_deleted)"
                " VALUES (%s, %s, %s, %s, 'x', 'm', 1, 1, 2, 'SUCCESS', %s, false)",
                [f"step-{key}", run_id, self.agent, self.organization, at],
            )
        self.written[key] = 0
        source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
        self._message(key, "user", asked, at, *([{"type": "image", "source": source}] if shape.has_image else []))

    def _message(
        self,
        key: str,
        role: str,
        text: str,
        at: datetime,
        *parts: Any,
        calls: Sequence[Any] = (),
        returns: Sequence[Any] = (),
    ) -> None:
        self.written[key] += 1
        # Letta takes NUL out before it stores a text.
        content = [{"type": "text", "text": text.replace("\0", ""), "signature": None}, *parts]
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "INSERT INTO messages (id, run_id, step_id, agent_id, organization_id, role, content, tool_calls,"
                " tool_returns, created_at, is_deleted) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, false)",
                [
                    f"message-{key}-{self.written[key]}",
                    self.run_id(key),
                    f"step-{key}",
                    self.agent,
                    self.organization,
                    role,
                    Json(content),
                    Json(list(calls)),
                    Json(list(returns)),
                    at,
                ],
            )

    def remove_run(self, key: str) -> None:
        with psycopg.connect(self.url) as connection:
            for statement in (
                "DELETE FROM messages WHERE run_id = %s",
                "DELETE FROM steps WHERE run_id = %s",
                "DELETE FROM runs WHERE id = %s",
            ):
                connection.execute(statement.encode(), [self.run_id(key)])

    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        self._write(key, asked, at, "running")

    def cut_run(self, key: str, share: float) -> None:
        """Its row says that it runs, and only so many of its messages are there."""
        with psycopg.connect(self.url) as connection:
            connection.execute("UPDATE runs SET status = 'running' WHERE id = %s", [self.run_id(key)])
            for number in range(int(share * self.written[key]) + 1, self.written[key] + 1):
                connection.execute("DELETE FROM messages WHERE id = %s", [f"message-{key}-{number}"])

    def break_run(self, key: str) -> str:
        with psycopg.connect(self.url) as connection:
            connection.execute("UPDATE messages SET content = '5' WHERE id = %s", [f"message-{key}-1"])
        return f"message-{key}-1"

    def vanish(self) -> None:
        """As a server that is stopped, and comes up without the table."""
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        self._rename("runs", "runs_away")

    def return_(self) -> None:
        self._rename("runs_away", "runs")

    def _rename(self, name: str, to: str) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(f"ALTER TABLE {name} RENAME TO {to}".encode())


@pytest.fixture
def world(letta_database: str) -> LettaWorld:
    return LettaWorld(letta_database)


class TestLetta(SourceConformance):
    """The suite."""
