"""What converting a partition did, and the counts of its rows on both sides."""

from collections import Counter
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from trajectory_pipeline.storage.parquet.store import WrittenFile
from trajectory_pipeline.storage.postgres.capture_lag import CaptureLag
from trajectory_pipeline.storage.postgres.partition_writer import MergeStats
from trajectory_pipeline.trajectories.reference import QuarantinedRun


@dataclass
class RowBalance:
    """The rows of a partition on both sides of the conversion.

    Attributes:
        runs_in: rows of ``terminal_runs``.
        steps_in: own steps of them.
        messages_in: messages of them.
        trajectories: rows out.
        steps_out: turns of own steps.
        messages_out: messages in turns.
        quarantined: runs that could not be converted.
        quarantined_steps: their steps.
        quarantined_messages: their messages.
        moved_runs: raw rows that count on neither side, because their runs are in another partition now.
    """

    runs_in: int = 0
    steps_in: int = 0
    messages_in: int = 0
    trajectories: int = 0
    steps_out: int = 0
    messages_out: int = 0
    quarantined: int = 0
    quarantined_steps: int = 0
    quarantined_messages: int = 0
    moved_runs: int = 0

    @property
    def balanced(self) -> bool:
        """Whether no row is lost and none is there twice."""
        return (
            self.runs_in == self.trajectories + self.quarantined
            and self.steps_in == self.steps_out + self.quarantined_steps
            and self.messages_in == self.messages_out + self.quarantined_messages
        )

    def by_name(self) -> dict[str, int]:
        """Return the counts as the ledger stores them."""
        return asdict(self)


@dataclass
class TrajectoriesResult:
    """What a materialization of ``trajectories`` did.

    Attributes:
        row_balance: the rows on both sides.
        merge_stats: what happened to the rows in Postgres.
        written: the Parquet file.
        quarantined: the runs that could not be converted.
        executions: trajectories by how they ended.
        outcomes: trajectories by heuristic outcome.
        escaped: trajectories in which text had to be escaped.
        data_omitted: trajectories whose document ``jsonb`` cannot hold.
        lag: time from the end of runs to their first capture, of those that are captured for the first time.
        erased_verdicts: verdicts whose texts were erased, because they showed erased runs.
        unchanged: whether both sinks are as before, because converting would have given the same.
    """

    row_balance: RowBalance = field(default_factory=RowBalance)
    merge_stats: MergeStats | None = None
    written: WrittenFile | None = None
    quarantined: list[QuarantinedRun] = field(default_factory=list)
    executions: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    escaped: int = 0
    data_omitted: int = 0
    lag: CaptureLag | None = None
    erased_verdicts: int = 0
    unchanged: bool = False

    def count_rows(self, rows: pa.RecordBatch) -> None:
        """Count trajectories by their ending, and those with escaped text."""
        self.executions.update(map(str, rows.column("execution_status").to_pylist()))
        self.outcomes.update(map(str, rows.column("heuristic_outcome").to_pylist()))
        self.escaped += sum(map(bool, rows.column("escaped").to_pylist()))
