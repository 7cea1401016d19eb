"""Random work of the pipeline over one source (ticks, backfills, ranges, prunes), and random damage to its state."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from trajectory_pipeline.errors import PipelineError, WithheldDeletionsError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.retention import RetentionTarget, prune_partition
from trajectory_pipeline.partition_keys import parse_partition_key, partition_key
from trajectory_pipeline.pipeline.capture import TerminalRunsResult
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.enums import JudgeOrder
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import ListOf, Scalar
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES, VERDICTS
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates, unpublished_partitions
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.random_source import HOURS
from trajectory_pipeline_tests.simulation.scheduler import Scheduler
from trajectory_pipeline_tests.simulation.skewed_clock import set_clock_skew

RETENTION_TARGETS: tuple[RetentionTarget, ...] = ("trajectories", "terminal_runs")
_EMPTY_VALUES = {
    Scalar.STRING: "",
    Scalar.INT: 0,
    Scalar.BOOL: False,
    Scalar.TIMESTAMP: datetime.now(UTC),
    Scalar.JSON: {},
}


class ConfirmingPipeline(Pipeline):
    """A pipeline whose user confirms the deletions that are withheld, while ``confirms`` is set: they are meant."""

    confirms = True

    def read(self, hour: datetime, *, accept_deletions: bool = False, **options: Any) -> TerminalRunsResult:
        try:
            return super().read(hour, accept_deletions=accept_deletions, **options)
        except WithheldDeletionsError:
            if not self.confirms:
                raise
            return super().read(hour, accept_deletions=True, **options)


class RandomWork:
    """The pipeline over one source.

    Args:
        pipeline: source and sinks.
        rng: the only source of chance.
        scheduler: runs the workers.
        source_event: changes the source while workers are paused; returns what it did.
    """

    def __init__(
        self, pipeline: Pipeline, rng: random.Random, scheduler: Scheduler, source_event: Callable[[], str]
    ) -> None:
        self.pipeline = pipeline
        self.verdicts: dict[str, str] = {}
        """By run id, the content digest that was judged."""
        self.with_leftovers: set[datetime] = set()
        """Hours in whose folders a killed process left a temporary file."""
        self.prunes = rng.random() < 0.25
        """Whether this history prunes partitions; then rows of deleted runs may be lost with them."""
        self._rng = rng
        self._scheduler = scheduler
        self._source_event = source_event

    def run_workers(self) -> str:
        """Run one to three random jobs at once; returns what happened."""
        jobs = [self._random_job() for _ in range(self._rng.choice([1, 2, 2, 3]))]
        actions = self._scheduler.random_actions(
            kills=self._rng.choice([0, 1, 2]), failures=self._rng.choice([0, 0, 1])
        )
        happened = self._scheduler.run([job for _, job in jobs], self._source_event, actions)
        return " + ".join([*(name for name, _ in jobs), *happened])

    def damage_state(self) -> str:
        """Change the pipeline's own state once, at random; returns what was done."""
        damage = self._rng.choice(
            [
                self.lose_ledger,
                self.leave_file,
                self.judge,
                self.judge,
                self.skew_clock,
                self.change_source_identity,
                self.judge_while_account_stalls,
            ]
        )
        return damage()

    def stale(self) -> list[datetime]:
        return find_stale_partitions(LettaSource(self.pipeline.letta_url), self.pipeline.database, HOURS)

    def tick(self) -> list[datetime]:
        """Capture what is stale, as the sensor and its runs do; returns which hours."""
        stale = self.stale()
        self.pipeline.capture(*self._rng.sample(stale, k=len(stale)))
        return stale

    def publish(self, hours: list[datetime]) -> None:
        """Write the verdicts of these hours to Parquet, as a run of the refinement sensor does; no judge is asked."""
        run = JudgingRun(self.pipeline.storage, self.pipeline.judge, publish_only=True)
        run.judge_partitions(hours)
        for hour in hours:
            run.publish(hour)

    def unpublished(self) -> list[datetime]:
        keys = [partition_key(hour) for hour in HOURS]
        return [parse_partition_key(key) for key in sorted(unpublished_partitions(self.pipeline.database, keys))]

    def lose_ledger(self) -> str:
        """A row of the ledger is lost."""
        key = partition_key(self._rng.choice(HOURS))
        asset = self._rng.choice([TERMINAL_RUNS.name, TRAJECTORIES.name, REFINED_OUTCOMES.name])
        self.pipeline.do(f"DELETE FROM trajectory.partitions WHERE asset = '{asset}' AND partition_key = '{key}'")
        return f"lost ledger of {asset} {key}"

    def change_source_identity(self) -> str:
        """What was captured before was another database, as after a failover: deletions wait for the user."""
        self.pipeline.do(
            f"UPDATE trajectory.sources SET identity = 'source before event {self._rng.getrandbits(64)}' WHERE accepted"
        )
        return "changed the source's identity"

    def leave_file(self) -> str:
        """A killed process leaves a temporary file."""
        table = self._rng.choice([TERMINAL_RUNS, TRAJECTORIES])
        hour = self._rng.choice(HOURS)
        path = Path(self.pipeline.store.path_of(table, hour))
        if path.exists():
            path.with_name(".writing-1-of-a-killed-one").write_bytes(b"PAR1")
            self.with_leftovers.add(hour)
        return "left file"

    def judge(self) -> str:
        """A trajectory gets a verdict on its present content."""
        policy_id, keys = self.pipeline.policy.policy_id, [partition_key(hour) for hour in HOURS]
        with open_verdicts(self.pipeline.database) as store:
            store.use_policy(policy_id, {}, "simulated-judge")
            found = judging_candidates(store.connection, policy_id, keys, JudgeOrder.NEWEST)
        if not found:
            return "nothing to judge"
        chosen = self._rng.choice(sorted(found, key=lambda candidate: candidate.run_id))
        required = [column for column in VERDICTS.columns if not column.nullable]
        verdict = {
            **{
                column.name: [] if isinstance(column.type, ListOf) else _EMPTY_VALUES[column.type]
                for column in required
            },
            "run_id": chosen.run_id,
            "partition_key": chosen.partition_key,
            "content_digest": chosen.content_digest,
            "verdict_key": chosen.verdict_key,
            "policy_id": policy_id,
            "verdict_status": "judged",
            "outcome": "success",
            "simulated": True,
            "attempts": 1,
            "judged_at": datetime.now(UTC),
        }
        with open_verdicts(self.pipeline.database) as store:
            store.save_verdicts([verdict], "worker")
        self.verdicts[chosen.run_id] = chosen.content_digest
        return f"judged {chosen.run_id}"

    def judge_while_account_stalls(self) -> str:
        """Two workers judge an hour, and the tables of the account answer nobody for a while."""
        held = self.pipeline.ask("SELECT DISTINCT partition_key FROM trajectory.trajectories ORDER BY 1")
        if not held:
            return "nothing to judge"
        hour = parse_partition_key(self._rng.choice(held)["partition_key"])
        seconds = self._rng.choice([0.1, 0.1, 0.1, 0.3, 0.3, 3.0])
        tables = self._rng.choice(["spend_totals", "spend_totals, trajectory.verdict_attempts", "verdicts"])

        def refine() -> None:
            with suppress(PipelineError):  # Its trajectories may not be complete.
                self.pipeline.refine(hour)

        with ThreadPoolExecutor() as threads, psycopg.connect(self.pipeline.database_url) as holder:
            workers = [threads.submit(refine) for _ in range(2)]
            time.sleep(self._rng.random() * 0.3)
            with suppress(psycopg.errors.DeadlockDetected):  # A worker locks them in another order, and goes on.
                holder.execute(f"LOCK TABLE trajectory.{tables} IN ACCESS EXCLUSIVE MODE".encode())
                time.sleep(seconds)
            holder.rollback()
            for worker in workers:
                worker.result()
        rows = self.pipeline.ask("SELECT run_id, content_digest FROM trajectory.verdicts")
        self.verdicts.update({row["run_id"]: row["content_digest"] for row in rows})
        return f"judged {HOURS.index(hour)} while {tables} stalled for {seconds} s: {len(rows)} verdicts"

    def skew_clock(self) -> str:
        """The clock of the sink's database changes."""
        with psycopg.connect(self.pipeline.database_url, autocommit=True) as connection:
            set_clock_skew(connection, self._rng.randint(-600, 600))
        return "changed the sink's clock"

    def _random_job(self) -> tuple[str, Callable[[], object]]:
        hours = self._rng.sample(HOURS, k=self._rng.choice([1, 1, 2, 3]))
        first = self._rng.randrange(len(HOURS))
        hour_range = HOURS[first : first + 2]
        jobs: list[tuple[str, Callable[[], object]]] = [
            ("tick", self.tick_one_by_one),
            ("tick", self.tick),
            (f"backfill {_indexes(hours)}", lambda: self.pipeline.capture(*hours)),
            (f"range {_indexes(hour_range)}", lambda: self.pipeline.capture(*hour_range)),
            (f"read {_indexes(hours[:1])}", lambda: self.pipeline.read(hours[0])),
            (f"convert {_indexes(hours[:1])}", lambda: self.pipeline.convert(hours[0])),
            (f"publish {_indexes(hours)}", lambda: self.publish(hours)),
        ]
        if self.prunes:
            target = self._rng.choice(RETENTION_TARGETS)
            prune = partial(prune_partition, target, hours[0], self.pipeline.storage)
            jobs.append((f"prune {target} {_indexes(hours[:1])}", prune))
        return self._rng.choice(jobs)

    def restore_pruned(self) -> list[datetime]:
        """Materialize what was pruned, as only a person does; returns which hours."""
        pruned = pruned_partitions(self.pipeline.database, [partition_key(hour) for hour in HOURS])
        hours = [hour for hour in HOURS if partition_key(hour) in pruned]
        self.pipeline.capture(*hours)
        return hours

    def tick_one_by_one(self) -> None:
        """Capture what is stale in a run for each hour; a failed run does not stop the others."""
        for hour in self.stale():
            try:
                self.pipeline.capture(hour)
            except PipelineError:
                continue


def _indexes(hours: list[datetime]) -> str:
    return ",".join(str(HOURS.index(hour)) for hour in hours)
