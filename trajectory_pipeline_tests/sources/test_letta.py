"""The Letta database as a source among others: it passes the same suite."""

from datetime import datetime, timedelta

import psycopg
import pytest

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline_tests.sources.conformance import SourceConformance, World


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

    def run_id(self, key: str) -> str:
        return f"run-{key}"

    def write_run(self, key: str, asked: str, answered: str, at: datetime) -> None:
        self._write(key, asked, at, "completed")
        call = '[{"id":"call_1","type":"function","function":{"name":"look","arguments":"{}"}}]'
        returned = '[{"tool_call_id":"call_1","status":"success","func_response":"no such folder"}]'
        for number, (role, text, calls, returns) in enumerate(
            [
                ("assistant", "I look.", call, "[]"),
                ("tool", "no such folder", "[]", returned),
                ("assistant", answered, "[]", "[]"),
            ]
        ):
            self._message(key, number + 2, role, text, at, calls, returns)

    def _write(self, key: str, asked: str, at: datetime, status: str) -> None:
        run_id = self.run_id(key)
        with psycopg.connect(self.url) as connection:
            for table in ("messages", "steps"):
                connection.execute(f"DELETE FROM {table} WHERE run_id = %s".encode(), [run_id])
            connection.execute("DELETE FROM runs WHERE id = %s", [run_id])
            connection.execute(
                "INSERT INTO runs (id, agent_id, organization_id, status, stop_reason, created_at, completed_at,"
                " is_deleted) VALUES (%s, %s, %s, %s, 'end_turn', %s, %s, false)",
                [run_id, self.agent, self.organization, status, at - timedelta(seconds=3), at.replace(tzinfo=None)],
            )
            connection.execute(
                "INSERT INTO steps (id, run_id, agent_id, organization_id, origin, model, prompt_tokens,"
                " completion_tokens, total_tokens, status, created_at, is_deleted)"
                " VALUES (%s, %s, %s, %s, 'x', 'm', 1, 1, 2, 'SUCCESS', %s, false)",
                [f"step-{key}", run_id, self.agent, self.organization, at],
            )
        self._message(key, 1, "user", asked, at)

    def _message(
        self, key: str, number: int, role: str, text: str, at: datetime, calls: str = "[]", returns: str = "[]"
    ) -> None:
        # Letta takes NUL out before it stores a text.
        content = psycopg.types.json.Json([{"type": "text", "text": text.replace("\0", ""), "signature": None}])
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "INSERT INTO messages (id, run_id, step_id, agent_id, organization_id, role, content, tool_calls,"
                " tool_returns, created_at, is_deleted) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, false)",
                [
                    f"message-{key}-{number}",
                    self.run_id(key),
                    f"step-{key}",
                    self.agent,
                    self.organization,
                    role,
                    content,
                    calls,
                    returns,
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

    def break_run(self, key: str) -> str:
        with psycopg.connect(self.url) as connection:
            connection.execute("UPDATE messages SET content = '5' WHERE id = %s", [f"message-{key}-1"])
        return f"message-{key}-1"

    def vanish(self) -> None:
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
