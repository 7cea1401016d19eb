"""What ticks, backfills, people and crashes do with the pipeline."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psycopg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.retention import RetentionTarget, prune_partition
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import ListOf, Scalar
from trajectory_pipeline.schema.verdicts import VERDICTS
from trajectory_pipeline.storage.postgres.retention import pruned_partitions
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.simulation.clocks import put_clock
from trajectory_pipeline_tests.simulation.interleaving import Crew
from trajectory_pipeline_tests.simulation.source import HOURS

POLICY = "policy-of-the-simulation"
PARTS: tuple[RetentionTarget, ...] = ("trajectories", "terminal_runs")
_NOTHING = {Scalar.STRING: "", Scalar.INT: 0, Scalar.BOOL: False, Scalar.TIMESTAMP: datetime.now(UTC), Scalar.JSON: {}}


class Work:
    """The pipeline over one source, and what happens to it."""

    def __init__(self, pipeline: Pipeline, chance: random.Random, crew: Crew, change: Callable[[], str]) -> None:
        self.pipeline = pipeline
        self.verdicts: dict[str, str] = {}
        """By run, the content digest that it was judged with."""
        self.untidy: set[datetime] = set()
        """Hours in whose folders a killed process left a file."""
        self.prunes = chance.random() < 0.25
        """Whether partitions are pruned now and then: what is gone from the source is not kept then."""
        self._chance = chance
        self._crew = crew
        self._change = change

    def act(self) -> str:
        """Let one to three workers do something, at once; returns what happened."""
        works = [self._some_work() for _ in range(self._chance.choice([1, 2, 2, 3]))]
        fates = self._crew.fates(kills=self._chance.choice([0, 1, 2]), faults=self._chance.choice([0, 0, 1]))
        told = self._crew.run([work for _, work in works], self._change, fates)
        return " + ".join([*(name for name, _ in works), *told])

    def disturb(self) -> str:
        """Do something to what the pipeline keeps; returns what it was."""
        disturbance = self._chance.choice([self.lose_ledger, self.leave_a_file, self.judge, self.judge, self.put_clock])
        return disturbance()

    def stale(self) -> list[datetime]:
        return find_stale_partitions(LettaSource(self.pipeline.letta_url), self.pipeline.database, HOURS)

    def tick(self) -> list[datetime]:
        """Capture what is stale, as the sensor and its runs do; returns what that was."""
        stale = self.stale()
        self.pipeline.capture(*self._shuffled(stale))
        return stale

    def lose_ledger(self) -> str:
        """Somebody loses rows of the ledger."""
        key = partition_key(self._chance.choice(HOURS))
        asset = self._chance.choice([TERMINAL_RUNS.name, TRAJECTORIES.name])
        self.pipeline.do(f"DELETE FROM trajectory.partitions WHERE asset = '{asset}' AND partition_key = '{key}'")
        return f"lost ledger of {asset} {key}"

    def leave_a_file(self) -> str:
        """A process that was killed leaves what it was writing."""
        table = self._chance.choice([TERMINAL_RUNS, TRAJECTORIES])
        hour = self._chance.choice(HOURS)
        path = Path(self.pipeline.store.path_of(table, hour))
        if path.exists():
            path.with_name(".writing-1-of-a-killed-one").write_bytes(b"PAR1")
            self.untidy.add(hour)
        return "left file"

    def judge(self) -> str:
        """A judge gives a verdict on a trajectory as it is now."""
        rows = self.pipeline.ask("SELECT run_id, partition_key, content_digest FROM trajectory.trajectories ORDER BY 1")
        if not rows:
            return "nothing to judge"
        row = self._chance.choice(rows)
        required = [column for column in VERDICTS.columns if not column.nullable]
        verdict = {
            **{column.name: [] if isinstance(column.type, ListOf) else _NOTHING[column.type] for column in required},
            **row,
            "verdict_key": row["content_digest"],
            "policy_id": POLICY,
            "verdict_status": "judged",
            "outcome": "success",
            "simulated": True,
            "attempts": 1,
            "judged_at": datetime.now(UTC),
        }
        with open_verdicts(self.pipeline.database) as store:
            store.use_policy(POLICY, {}, "simulated-judge")
            store.save_verdicts([verdict], "worker")
        self.verdicts[row["run_id"]] = row["content_digest"]
        return f"judged {row['run_id']}"

    def put_clock(self) -> str:
        """The sink's clock is put."""
        with psycopg.connect(self.pipeline.database_url, autocommit=True) as connection:
            put_clock(connection, self._chance.randint(-600, 600))
        return "put the sink's clock"

    def _some_work(self) -> tuple[str, Callable[[], object]]:
        some = self._chance.sample(HOURS, k=self._chance.choice([1, 1, 2, 3]))
        first = self._chance.randrange(len(HOURS))
        some_range = HOURS[first : first + 2]
        works: list[tuple[str, Callable[[], object]]] = [
            ("tick", self.tick_one_by_one),
            ("tick", self.tick),
            (f"backfill {_named(some)}", lambda: self.pipeline.capture(*some)),
            (f"range {_named(some_range)}", lambda: self.pipeline.capture(*some_range)),
            (f"read {_named(some[:1])}", lambda: self.pipeline.read(some[0])),
            (f"convert {_named(some[:1])}", lambda: self.pipeline.convert(some[0])),
        ]
        if self.prunes:
            part = self._chance.choice(PARTS)
            prune = partial(prune_partition, part, some[0], self.pipeline.storage)
            works.append((f"prune {part} {_named(some[:1])}", prune))
        return self._chance.choice(works)

    def bring_back(self) -> list[datetime]:
        """Materialise what was pruned, as only a person does; returns what that was."""
        pruned = pruned_partitions(self.pipeline.database, [partition_key(hour) for hour in HOURS])
        hours = [hour for hour in HOURS if partition_key(hour) in pruned]
        self.pipeline.capture(*hours)
        return hours

    def tick_one_by_one(self) -> None:
        """A run for each hour; one that fails is no affair of the others."""
        for hour in self.stale():
            try:
                self.pipeline.capture(hour)
            except PipelineError:
                continue

    def _shuffled(self, hours: list[datetime]) -> list[datetime]:
        return self._chance.sample(hours, k=len(hours))


def _named(hours: list[datetime]) -> str:
    return ",".join(str(HOURS.index(hour)) for hour in hours)
