"""A small world to simulate: a Letta database that people and servers change, and a pipeline that works and crashes.

Every random choice comes from one ``random.Random``, so that a seed is a history.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import HOUR
from trajectory_pipeline.letta.source import LettaSource, Snapshot
from trajectory_pipeline.sinks.database import PartitionTransaction
from trajectory_pipeline.sinks.parquet import ParquetStore, Prepared
from trajectory_pipeline.stages.staleness import stale_hours
from trajectory_pipeline_tests.stages.pipeline import Pipeline

FIRST_HOUR = datetime(2026, 11, 20, 8, tzinfo=UTC)
HOURS = [FIRST_HOUR + number * HOUR for number in range(4)]

SOURCE_TABLES = "messages, step_metrics, steps, run_metrics, runs, agents_tags, conversations, agents, organizations"
SINK_TABLES = "trajectories, partitions, quarantine, verdicts, verdict_attempts, policies"


class Crash(BaseException):
    """The process ends here; no handler of ours may catch it."""


class Source:
    """What people and Letta servers do to Letta's database."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.url = url
        self._chance = chance
        self._connection = psycopg.connect(url, autocommit=True)
        self._number = 0
        self._touched: str | None = None
        self._run("INSERT INTO organizations (id, name, privileged_tools) VALUES ('org-1', 'one', false)")
        for agent in ("agent-1", "agent-2"):
            self._run(
                "INSERT INTO agents (id, name, agent_type, organization_id, message_buffer_autoclear)"
                " VALUES (%s, %s, 'letta_v1_agent', 'org-1', false)",
                agent,
                agent,
            )

    def close(self) -> None:
        self._connection.close()

    def change(self) -> str:
        """Do one random thing; returns what it was."""
        change = self._chance.choice(
            [self.end_run] * 4
            + [
                self.flip_status,
                self.add_message,
                self.write_metrics,
                self.finalise_step,
                self.give_feedback,
                self.move_run,
                self.delete_message_softly,
                self.delete_run,
                self.delete_agent,
                self.rewrite_everything,
                self.answer_approval,
            ]
        )
        change()
        return f"{change.__name__} {self._touched or ''}".strip()

    def end_run(self) -> str:
        self._number += 1
        run_id = f"run-{self._number:04d}"
        agent = self._chance.choice(["agent-1", "agent-2"])
        self._run(
            "INSERT INTO agents (id, name, agent_type, organization_id, message_buffer_autoclear)"
            " VALUES (%s, %s, 'letta_v1_agent', 'org-1', false) ON CONFLICT DO NOTHING",
            agent,
            agent,
        )
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

    def delete_run(self) -> None:
        run_id = self._some("runs")
        self._run("DELETE FROM messages WHERE run_id = %s", run_id)
        self._run("DELETE FROM steps WHERE run_id = %s", run_id)
        self._run("DELETE FROM runs WHERE id = %s", run_id)

    def delete_agent(self) -> None:
        agent = self._chance.choice(["agent-1", "agent-2"])
        for statement in (
            "DELETE FROM messages WHERE agent_id = %s",
            "DELETE FROM steps WHERE run_id IN (SELECT id FROM runs WHERE agent_id = %s)",
            "DELETE FROM runs WHERE agent_id = %s",
            "DELETE FROM agents WHERE id = %s",
        ):
            self._run(statement, agent)

    def rewrite_everything(self) -> None:
        """A restore moves every ``xmin`` and changes nothing."""
        self._run("UPDATE runs SET status = status")
        self._run("UPDATE messages SET role = role")

    def answer_approval(self) -> None:
        """A new run whose first message carries a step of another."""
        step, run_id = self._some("steps"), self.end_run()
        rows = self._connection.execute("SELECT agent_id FROM runs WHERE id = %s", [run_id]).fetchall()
        if step is not None:
            self._message(run_id, step, rows[0][0])

    def run_ids(self) -> set[str]:
        return {row[0] for row in self._connection.execute("SELECT id FROM runs")}

    def _moment(self) -> datetime:
        return FIRST_HOUR + timedelta(seconds=self._chance.randrange(len(HOURS) * 3600))

    def _some(self, table: str) -> str | None:
        ids = sorted(row[0] for row in self._connection.execute(f"SELECT id FROM {table}".encode()))
        self._touched = self._chance.choice(ids) if ids else None
        return self._touched

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


class Worker:
    """What ticks, backfills and crashes do with the pipeline."""

    def __init__(self, pipeline: Pipeline, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pipeline = pipeline
        self._chance = chance
        self._monkeypatch = monkeypatch

    def act(self) -> str:
        """Do one random thing; returns what it was."""
        act = self._chance.choice([self.tick, self.tick, self.backfill, self.read_only, self.convert_only, self.crash])
        return act()

    def stale(self) -> list[datetime]:
        return stale_hours(LettaSource(self.pipeline.letta_url), self.pipeline.database, HOURS)

    def tick(self) -> str:
        for hour in self._shuffled(self.stale()):
            self.pipeline.capture(hour)
        return "tick"

    def backfill(self) -> str:
        hours = self._chance.sample(HOURS, k=self._chance.randint(1, len(HOURS)))
        self.pipeline.capture(*hours)
        return "backfill"

    def read_only(self) -> str:
        self.pipeline.read(self._chance.choice(HOURS))
        return "read_only"

    def convert_only(self) -> str:
        try:
            self.pipeline.convert(self._chance.choice(HOURS))
        except PipelineError:
            return "convert_only, of nothing"
        return "convert_only"

    def crash(self) -> str:
        point = self._chance.choice(sorted(CRASH_POINTS))
        with crashing(self._monkeypatch, point, self._chance.randint(1, 4)):
            try:
                self.backfill()
            except Crash:
                return f"crash {point}"
        return f"no crash {point}"

    def _shuffled(self, hours: list[datetime]) -> list[datetime]:
        return self._chance.sample(hours, k=len(hours))


CRASH_POINTS: dict[str, tuple[type, str, bool]] = {
    "while reading the source": (Snapshot, "read", False),
    "before a file is published": (Prepared, "publish", False),
    "after a file is published, before the commit": (Prepared, "publish", True),
    "before rows are merged": (PartitionTransaction, "merge", False),
    "after rows are merged": (PartitionTransaction, "merge", True),
    "after the ledger is written, before the commit": (PartitionTransaction, "record", True),
    "while a file is read back": (ParquetStore, "exists", True),
}
"""By name: class, method, and whether the crash comes after it has done its work."""


@contextmanager
def crashing(monkeypatch: pytest.MonkeyPatch, point: str, countdown: int) -> Iterator[None]:
    """Crash at a named point, the given time it is passed."""
    owner, name, afterwards = CRASH_POINTS[point]
    original: Callable[..., Any] = getattr(owner, name)
    left = countdown

    def wrapped(*args: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and not afterwards:
            raise Crash(point)
        value = original(*args, **more)
        if left == 0:
            raise Crash(point)
        return value

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapped)
        yield
