"""Judging the sample under a mood with sinks of its own, then with a healthy judge until nothing is due.

Belongs here: the order of events, and letting days pass. Does not belong here: what must hold (``contract``).
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.letta_sample.load import load_sample
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts
from trajectory_pipeline.schema.enums import FINAL_STATUSES
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.fault_scenarios import contract
from trajectory_pipeline_tests.fault_scenarios.scenarios import Mood
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row
from trajectory_pipeline_tests.server_databases import create_database, drop_database

CAP = Decimal(5)
"""Dollars a day: the default. A constraint of the database holds the accounts to it at every moment."""
_MOST_DAYS = 4
_ALL_TIME = timedelta(days=36_500)


@dataclass
class Told:
    """What came of one mood.

    Attributes:
        mood: which.
        calls: that the server received before it healed.
        lost: of these, calls whose answer never arrived.
        charged: dollars by the server's books.
        booked: dollars by the accounts, lost calls and unpriced answers at the most that they may have cost.
        before: runs by status, ``not asked`` among them.
        down: partitions that were left because the provider was down.
        healing_calls: until nothing was due any more.
        days: that this took; one is enough where no cap is in the way.
        after: runs by status.
        broken: what does not hold, in sentences.
        seconds: all of it.
    """

    mood: Mood
    calls: int = 0
    lost: int = 0
    charged: Decimal = Decimal(0)
    booked: Decimal = Decimal(0)
    before: Counter[str] = field(default_factory=Counter)
    down: int = 0
    healing_calls: int = 0
    days: int = 0
    after: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Sweep:
    """The captured sample, from which each mood gets sinks of its own.

    Attributes:
        server: with the databases.
        judge: whose mood changes.
        hours: that are judged.
        template: name of the database with all of them captured.
        captured: the pipeline that did it.
        healthy: verdicts that a healthy judge gives, by run.
    """

    server: EmbeddedServer
    judge: SimulatedJudge
    hours: Sequence[datetime]
    template: str
    captured: Pipeline
    healthy: dict[str, Row] | None = None

    def under(self, mood: Mood) -> Told:
        """Judge everything under a mood, then heal; returns what came of it."""
        began = time.monotonic()
        told = Told(mood)
        with self._sinks() as pipeline:
            pipeline.judge_settings = {
                "timeout_seconds": mood.timeout_seconds,
                "max_attempts": 2,
                "first_pause_seconds": 0.01,
            }
            self._sick(mood, pipeline, told)
            self._healed(pipeline, told)
            if mood.fault is None:
                self.healthy = contract.verdicts(pipeline)
        told.seconds = time.monotonic() - began
        return told

    def _sick(self, mood: Mood, pipeline: Pipeline, told: Told) -> None:
        self.judge.clear_faults()
        self.judge.reset_calls()
        self.judge.plan_faults(mood.orders)
        told.down = self._refine(pipeline, self.hours)
        books = _settled(self.judge)
        told.calls, told.charged = books["received"], Decimal(books["cost_usd"])
        booked = "SELECT coalesce(sum(spent_usd), 0) AS usd FROM trajectory.spend_totals WHERE scope = 'day'"
        told.booked = pipeline.ask(booked)[0]["usd"]
        lost = "SELECT count(*) AS n FROM trajectory.verdict_attempts WHERE result = 'lost'"
        told.lost = pipeline.ask(lost)[0]["n"]
        told.before = _statuses(pipeline)
        told.broken += contract.books_agree(pipeline, books)
        told.broken += contract.nothing_is_made_up(pipeline, self.healthy)
        told.broken += contract.each_run_has_one_status(pipeline, down=told.down)

    def _healed(self, pipeline: Pipeline, told: Told) -> None:
        self.judge.clear_faults()
        before = contract.verdicts(pipeline)
        while (due := self._due(pipeline, told.days)) and told.days < _MOST_DAYS:
            told.days += 1
            told.down += self._refine(pipeline, due)
        books = _settled(self.judge)
        told.healing_calls = books["received"] - told.calls
        told.after = _statuses(pipeline)
        open_before = sum(told.before.values()) - sum(told.before[status] for status in FINAL_STATUSES)
        if told.healing_calls > open_before:
            told.broken.append(f"{open_before} were open, and healing took {told.healing_calls} calls")
        told.broken += contract.books_agree(pipeline, books)
        told.broken += contract.nothing_is_made_up(pipeline, self.healthy)
        told.broken += contract.each_run_has_one_status(pipeline, down=0)
        told.broken += contract.all_is_final(pipeline)
        told.broken += contract.kept(before, contract.verdicts(pipeline))

    def _refine(self, pipeline: Pipeline, hours: Sequence[datetime]) -> int:
        """Judge hours as one range; returns how many were left because the provider was down."""
        refinement = pipeline.refine_range(hours)
        down = 0
        for hour in hours:
            try:
                refinement.publish(hour)
            except ProviderDownError:
                down += 1
        return down

    def _due(self, pipeline: Pipeline, days: int) -> list[datetime]:
        """Let as much time pass as any pause is long; returns what the refinement sensor would request then."""
        pipeline.do(
            "UPDATE trajectory.verdicts SET next_attempt_at = next_attempt_at - interval '8 days'",
            f"UPDATE trajectory.spend_totals SET scope_key = 'day {days}, ' || scope_key WHERE scope <>"
            " 'materialization'"
            " AND scope_key NOT LIKE 'day%'",
        )
        found = find_pending_verdicts(
            pipeline.database,
            pipeline.judge,
            now=pipeline.ask("SELECT clock_timestamp() AS now")[0]["now"],
            settle_for=timedelta(0),
            lookback=_ALL_TIME,
            give_up_after=10,
        )
        wanted = set(self.hours)
        return [hour for key in found.partition_keys if (hour := parse_partition_key(key)) in wanted]

    @contextmanager
    def _sinks(self) -> Iterator[Pipeline]:
        folder = self.captured.folder.with_name("of_a_mood")
        shutil.copytree(self.captured.folder, folder)
        create_database(self.server, "mood", self.template)
        pipeline = replace(
            self.captured,
            database_url=self.server.url("mood"),
            folder=folder,
            judge_url=self.judge.base_url,
            budget={"daily_usd": CAP},
            concurrency=16,
        )
        pipeline.do(
            f"ALTER TABLE trajectory.spend_totals ADD CHECK (scope <> 'day' OR reserved_usd + spent_usd <= {CAP})"
        )
        try:
            yield pipeline
        finally:
            drop_database(self.server, "mood")
            shutil.rmtree(folder)


def capture(server: EmbeddedServer, judge: SimulatedJudge, folder: Path, hours: Sequence[datetime]) -> Sweep:
    """Capture hours of the sample once, for all moods."""
    create_database(server, "moods_letta")
    load_sample(server.url("moods_letta"))
    create_database(server, "moods_captured")
    migrate(server.url("moods_captured"))
    pipeline = Pipeline(server.url("moods_letta"), server.url("moods_captured"), folder / "captured")
    pipeline.capture(*hours)
    return Sweep(server, judge, hours, "moods_captured", pipeline)


def _statuses(pipeline: Pipeline) -> Counter[str]:
    rows = pipeline.ask(
        "SELECT coalesce(v.verdict_status, 'not asked') AS status, count(*) AS n FROM trajectory.trajectories t"
        " LEFT JOIN trajectory.verdicts v USING (run_id) GROUP BY 1"
    )
    return Counter({row["status"]: row["n"] for row in rows})


def _settled(judge: SimulatedJudge) -> dict[str, Any]:
    """The books once no call is open: the server notices that its client has left a little after it has."""
    deadline = time.monotonic() + 10
    while (books := judge.calls(10_000))["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return books
