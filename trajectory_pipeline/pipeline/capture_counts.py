"""What is counted while the raw rows of a partition are read, and under which names the ledger holds it.

Belongs here: the counts. Does not belong here: which rows there are (``raw_rows``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

DELETED_AND_KEPT = "deleted_and_kept"
"""Name, among the ledger's counts, of runs that hold content which is deleted at the source."""
ERASED = "erased_runs"
"""Name, among the ledger's counts, of runs without the content that was deleted at the source."""
LOST = "lost_runs"
"""Name, among the ledger's counts, of runs that were lost with a damaged file; once there, it stays."""


@dataclass
class CaptureCounts:
    """What was read.

    Attributes:
        runs: terminal runs in the snapshot.
        steps: their own steps.
        foreign_steps: other runs' steps that their messages name.
        messages: their messages.
        erased_runs: runs without the content that was deleted at the source.
        deleted_and_kept: runs that still hold such content.
        present: ids of the runs in the snapshot, an array a batch: half a million as ``str`` would be 75 MB; none in
            a result.
        carried: runs that are gone from the source and were carried forward.
        awaited: runs that moved to a partition that did not see them yet: they stay here until it does.
        left: runs that were in this partition and run again, or are where no partition is, or only a pruned one.
        lost: runs that are gone from the source, and from here with a file that was damaged.
        lost_before: how many were lost so before.
    """

    runs: int = 0
    steps: int = 0
    foreign_steps: int = 0
    messages: int = 0
    erased_runs: int = 0
    deleted_and_kept: int = 0
    present: "list[pa.Array[Any]]" = field(default_factory=list, repr=False, compare=False)
    carried: list[str] = field(default_factory=list)
    pending_move: list[str] = field(default_factory=list)
    departed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lost_before: int = 0

    @property
    def deleted_runs(self) -> int:
        """How many runs are gone from the source and were carried forward."""
        return len(self.carried)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of the snapshot."""
        self.runs += batch.num_rows
        for name in ("steps", "foreign_steps", "messages"):
            lengths = pc.sum(pc.list_value_length(batch.column(name))).as_py() or 0
            setattr(self, name, getattr(self, name) + lengths)
        self.present.append(batch.column("run_id"))

    @classmethod
    def present_runs(cls, counts: Mapping[str, int], gone: Sequence[str]) -> Self:
        """Return the counts of raw rows that are left alone: no run of them is awaited elsewhere, or left.

        Args:
            counts: as the ledger holds them.
            gone: runs that the file holds and the source does not.
        """
        return cls(
            runs=counts["runs"],
            steps=counts["steps"],
            foreign_steps=counts["foreign_steps"],
            messages=counts["messages"],
            erased_runs=counts[ERASED],
            deleted_and_kept=counts[DELETED_AND_KEPT],
            carried=list(gone),
            lost_before=counts.get(LOST, 0),
        )

    def by_name(self) -> dict[str, int]:
        """Return the counts as the ledger holds them."""
        return {
            "runs": self.runs,
            "steps": self.steps,
            "foreign_steps": self.foreign_steps,
            "messages": self.messages,
            "deleted_runs": self.deleted_runs,
            "awaited_runs": len(self.pending_move),
            LOST: self.lost_before + len(self.lost),
            ERASED: self.erased_runs,
            DELETED_AND_KEPT: self.deleted_and_kept,
        }
