"""The three stages over databases and a folder of one test, without Dagster, and helpers to read the results."""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from trajectory_pipeline.budget.caps import Budget
from trajectory_pipeline.budget.prices import load_prices
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE
from trajectory_pipeline.judge.access_lists import UNRESTRICTED, JudgeAccessList
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture import TerminalRunsResult, materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import TrajectoriesResult, materialize_trajectories
from trajectory_pipeline.pipeline.convert_range import RangeConversion
from trajectory_pipeline.pipeline.judge import JudgingResult, JudgingRun
from trajectory_pipeline.schema.enums import DeletedContent, JudgeOrder, RedactionMode
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage

Row = dict[str, Any]

SIMULATED_PRICES = load_prices(PRICE_TABLE)
SCORES = (
    "outcome",
    "outcome_confidence",
    "disagrees",
    "learning_value",
    "interaction_depth",
    "task_complexity",
    "tool_use",
    "reference_value",
    "failure_owner",
    "failure_mode",
)
"""Columns of a verdict that are null unless it is judged."""


@dataclass
class Pipeline:
    """The stages with a source, sinks and a judge."""

    letta_url: str
    database_url: str
    folder: Path
    judge_url: str = ""
    model: str = JUDGE_MODEL
    judge_settings: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    max_prompt_tokens: int = 100_000
    access: JudgeAccessList = UNRESTRICTED
    redact: RedactionMode = RedactionMode.SECRETS
    deleted: DeletedContent = DeletedContent.KEEP
    budget: dict[str, Any] = field(default_factory=dict)
    order: JudgeOrder = JudgeOrder.NEWEST

    @property
    def database(self) -> TrajectoryDatabase:
        return TrajectoryDatabase(self.database_url)

    @property
    def store(self) -> ParquetStore:
        return ParquetStore(str(self.folder))

    @property
    def storage(self) -> Storage:
        return Storage(self.store, self.database)

    @property
    def judge(self) -> JudgeConfig:
        return JudgeConfig(
            self.model,
            self.judge_url,
            "sk-test-0123456789",
            max_prompt_tokens=self.max_prompt_tokens,
            concurrency=self.concurrency,
            redaction=self.redact,
            access=self.access,
            budget=Budget(**{"prices": SIMULATED_PRICES, **self.budget}),
            **self.judge_settings,
        )

    @property
    def policy(self) -> RefinementPolicy:
        return self.judge.policy

    def read(
        self,
        hour: datetime,
        *,
        accept_deletions: bool = False,
        source: LettaSource | None = None,
        storage: Storage | None = None,
    ) -> TerminalRunsResult:
        return materialize_terminal_runs(
            hour,
            source or LettaSource(self.letta_url),
            storage or self.storage,
            deleted=self.deleted,
            accept_deletions=accept_deletions,
        )

    def convert(
        self, hour: datetime, together: RangeConversion | None = None, storage: Storage | None = None
    ) -> TrajectoriesResult:
        return materialize_trajectories(hour, storage or self.storage, together=together)

    def refine(
        self, hour: datetime, *, concurrency: int | None = None, storage: Storage | None = None, **options: Any
    ) -> JudgingResult:
        judge = replace(self.judge, concurrency=concurrency or self.concurrency)
        run = JudgingRun(storage or self.storage, judge, order=self.order, **options)
        run.judge_partitions([hour])
        return run.publish(hour)

    def refine_range(self, hours: Sequence[datetime], storage: Storage | None = None) -> JudgingRun:
        """Judge partitions together, as a run of a range does; the caller publishes each."""
        run = JudgingRun(storage or self.storage, self.judge, order=self.order)
        run.judge_partitions(hours)
        return run

    def capture(self, *hours: datetime) -> list[TrajectoriesResult]:
        """Read and convert partitions, all of one stage first, as a range run does."""
        with self.storage.pooled() as storage:
            with LettaSource(self.letta_url).pooled_for(hours) as source:
                for hour in hours:
                    self.read(hour, source=source, storage=storage)
            together = RangeConversion(hours, self.store)
            return [self.convert(hour, together, storage) for hour in hours]

    def ask(self, question: str, *values: Any) -> list[Row]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            return connection.execute(question.encode(), values or None).fetchall()

    def do(self, *statements: str) -> None:
        do(self.database_url, *statements)

    def change_source(self, *statements: str) -> None:
        do(self.letta_url, *statements)

    def parquet(self, table: Table, hour: datetime) -> list[Row]:
        return [row for batch in self.store.read(table, hour) for row in batch.to_pylist()]

    def files(self) -> dict[str, bytes]:
        """Every file of the storage, by its path in it."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }

    def hour_of_run(self, run_id: str) -> datetime:
        """The partition that a run of the source belongs to."""
        with psycopg.connect(self.letta_url) as connection:
            row = connection.execute(
                "SELECT date_trunc('hour', coalesce(completed_at, created_at AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC'"
                " FROM runs WHERE id = %s",
                [run_id],
            ).fetchone()
        assert row is not None
        hour: datetime = row[0]
        return hour

    def trajectory(self, run_id: str) -> Row | None:
        return self.database.trajectory(run_id)

    def run_ids(self, hour: datetime) -> set[str]:
        """The runs that a partition holds in Parquet, which must be those that it holds in Postgres."""
        in_parquet = {row["run_id"] for row in self.parquet(TRAJECTORIES, hour)}
        rows = self.ask("SELECT run_id FROM trajectory.trajectories WHERE partition_key = %s", partition_key(hour))
        assert {row["run_id"] for row in rows} == in_parquet
        return in_parquet


def do(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def only(rows: Iterable[Row]) -> Row:
    (row,) = rows
    return row


def program_that_judges(pipeline: Pipeline, hour: datetime, **changes: Any) -> str:
    """Return a Python program that judges an hour in a process of its own, with some of the fields changed."""
    pickled = pickle.dumps((replace(pipeline, **changes), hour))
    return f"import pickle; pipeline, hour = pickle.loads({pickled!r}); pipeline.refine(hour)"


def some_run(pipeline: Pipeline, condition: str = "message_count > 2 AND continues_run_id IS NULL") -> str:
    rows = pipeline.ask(f"SELECT run_id FROM trajectory.trajectories WHERE {condition} ORDER BY run_id LIMIT 1")
    return str(rows[0]["run_id"])


def delete_run(pipeline: Pipeline, run_id: str) -> None:
    pipeline.change_source(
        f"DELETE FROM messages WHERE run_id = '{run_id}'",
        f"DELETE FROM step_metrics WHERE id IN (SELECT id FROM steps WHERE run_id = '{run_id}')",
        f"DELETE FROM steps WHERE run_id = '{run_id}'",
        f"DELETE FROM run_metrics WHERE id = '{run_id}'",
        f"DELETE FROM runs WHERE id = '{run_id}'",
    )
