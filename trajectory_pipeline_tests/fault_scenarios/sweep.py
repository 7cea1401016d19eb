"""Judging the sample in a scenario with sinks of its own, then with a healthy judge until no verdict is due."""

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
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import ProviderDownError
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts
from trajectory_pipeline.schema.enums import FINAL_STATUSES
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.fault_scenarios import contract
from trajectory_pipeline_tests.fault_scenarios.scenarios import Scenario
from trajectory_pipeline_tests.letta_sample import load_sample
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row
from trajectory_pipeline_tests.server_databases import create_database, drop_database

CAP = Decimal(5)
"""US dollars a day: the default. A constraint of the database enforces it at every moment."""
_MAX_DAYS = 4
_ALL_TIME = timedelta(days=36_500)


@dataclass
class ScenarioResult:
    """The result of one scenario.

    Attributes:
        calls: received by the server before it recovered.
        lost: calls of these whose answer never arrived.
        charged: US dollars by the usage log of the server.
        booked: US dollars by the spend totals, with lost calls and unpriced answers at their maximum cost.
        before: runs by status before the recovery, ``not asked`` among them.
        down: partitions that were not finished because the provider was down.
        recovery_calls: until no verdict was due any more.
        days: of the recovery; one is enough unless a cap defers calls.
        after: runs by status after the recovery.
        violations: of the contract, as sentences.
        seconds: of the whole scenario.
    """

    scenario: Scenario
    calls: int = 0
    lost: int = 0
    charged: Decimal = Decimal(0)
    booked: Decimal = Decimal(0)
    before: Counter[str] = field(default_factory=Counter)
    down: int = 0
    recovery_calls: int = 0
    days: int = 0
    after: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Sweep:
    """The captured sample, from which each scenario gets sinks of its own.

    Attributes:
        hours: the partitions that are judged.
        template: name of the database in which all of them are captured.
        captured: the pipeline that captured them.
        healthy: verdicts that a healthy judge gives, by run id.
    """

    server: EmbeddedServer
    judge: SimulatedJudge
    hours: Sequence[datetime]
    template: str
    captured: Pipeline
    healthy: dict[str, Row] | None = None

    def run(self, scenario: Scenario) -> ScenarioResult:
        """Judge everything in a scenario, then let the judge recover."""
        started = time.monotonic()
        result = ScenarioResult(scenario)
        with self._sinks() as pipeline:
            pipeline.judge_settings = {
                "timeout_seconds": scenario.timeout_seconds,
                "max_attempts": 2,
                "first_pause_seconds": 0.01,
            }
            self._judge_with_fault(pipeline, result)
            self._recover(pipeline, result)
            if scenario.fault is None:
                self.healthy = contract.verdicts(pipeline)
        result.seconds = time.monotonic() - started
        return result

    def _judge_with_fault(self, pipeline: Pipeline, result: ScenarioResult) -> None:
        self.judge.clear_faults()
        self.judge.reset_calls()
        self.judge.plan_faults(result.scenario.planned_faults)
        result.down = self._refine(pipeline, self.hours)
        usage_log = _wait_until_idle(self.judge)
        result.calls, result.charged = usage_log["received"], Decimal(usage_log["cost_usd"])
        spent = "SELECT coalesce(sum(spent_usd), 0) AS usd FROM trajectory.spend_totals WHERE scope = 'day'"
        result.booked = pipeline.ask(spent)[0]["usd"]
        lost = "SELECT count(*) AS n FROM trajectory.verdict_attempts WHERE result = 'lost'"
        result.lost = pipeline.ask(lost)[0]["n"]
        result.before = _statuses(pipeline)
        result.violations += contract.costs_agree(pipeline, usage_log)
        result.violations += contract.no_value_is_invented(pipeline, self.healthy)
        result.violations += contract.each_run_has_one_status(pipeline, down=result.down)

    def _recover(self, pipeline: Pipeline, result: ScenarioResult) -> None:
        self.judge.clear_faults()
        before = contract.verdicts(pipeline)
        while (due := self._due(pipeline, result.days)) and result.days < _MAX_DAYS:
            result.days += 1
            result.down += self._refine(pipeline, due)
        usage_log = _wait_until_idle(self.judge)
        result.recovery_calls = usage_log["received"] - result.calls
        result.after = _statuses(pipeline)
        open_before = sum(result.before.values()) - sum(result.before[status] for status in FINAL_STATUSES)
        if result.recovery_calls > open_before:
            result.violations.append(f"{open_before} were open, and the recovery took {result.recovery_calls} calls")
        result.violations += contract.costs_agree(pipeline, usage_log)
        result.violations += contract.no_value_is_invented(pipeline, self.healthy)
        result.violations += contract.each_run_has_one_status(pipeline, down=0)
        result.violations += contract.all_verdicts_are_final(pipeline)
        result.violations += contract.final_verdicts_are_unchanged(before, contract.verdicts(pipeline))

    def _refine(self, pipeline: Pipeline, hours: Sequence[datetime]) -> int:
        """Judge hours as one range; returns how many were not finished because the provider was down."""
        refinement = pipeline.refine_range(hours)
        down = 0
        for hour in hours:
            try:
                refinement.publish(hour)
            except ProviderDownError:
                down += 1
        return down

    def _due(self, pipeline: Pipeline, days: int) -> list[datetime]:
        """Advance time beyond every pause; returns the hours that the refinement sensor would request then."""
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
        hours = set(self.hours)
        return [hour for key in found.partition_keys if (hour := parse_partition_key(key)) in hours]

    @contextmanager
    def _sinks(self) -> Iterator[Pipeline]:
        folder = self.captured.folder.with_name("scenario")
        shutil.copytree(self.captured.folder, folder)
        create_database(self.server, "scenario", self.template)
        pipeline = replace(
            self.captured,
            database_url=self.server.url("scenario"),
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
            drop_database(self.server, "scenario")
            shutil.rmtree(folder)


def capture(server: EmbeddedServer, judge: SimulatedJudge, folder: Path, hours: Sequence[datetime]) -> Sweep:
    """Capture hours of the sample once, for all scenarios."""
    create_database(server, "scenarios_letta")
    load_sample(server.url("scenarios_letta"))
    create_database(server, "scenarios_captured")
    migrate(server.url("scenarios_captured"))
    pipeline = Pipeline(server.url("scenarios_letta"), server.url("scenarios_captured"), folder / "captured")
    pipeline.capture(*hours)
    return Sweep(server, judge, hours, "scenarios_captured", pipeline)


def _statuses(pipeline: Pipeline) -> Counter[str]:
    rows = pipeline.ask(
        "SELECT coalesce(v.verdict_status, 'not asked') AS status, count(*) AS n FROM trajectory.trajectories t"
        " LEFT JOIN trajectory.verdicts v USING (run_id) GROUP BY 1"
    )
    return Counter({row["status"]: row["n"] for row in rows})


def _wait_until_idle(judge: SimulatedJudge) -> dict[str, Any]:
    """The usage log once no call is in flight: the server notices late that its client has disconnected."""
    deadline = time.monotonic() + 10
    while (usage_log := judge.calls(10_000))["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return usage_log
