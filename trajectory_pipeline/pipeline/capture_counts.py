"""What is counted while the raw rows of a partition are read, and under which names the ledger stores it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

# The ledger's names of counts: of runs, as ``CaptureCounts`` describes them. ``LOST`` never decreases.
DELETED_AND_KEPT = "deleted_and_kept"
ERASED = "erased_runs"
LOST = "lost_runs"
MISDATED = "misdated_runs"
UNSEEN = "unseen_runs"


@dataclass
class CaptureCounts:
    """What was read: terminal runs of the snapshot with their own steps and messages, and what became of former rows.

    Attributes:
        foreign_steps: other runs' steps that their messages name.
        deleted_and_kept: runs that hold content which is deleted at the source.
        present: ids of the runs in the snapshot, one array a batch (as ``str``, half a million would take 75 MB); empty
            in a result.
        carried: runs that are gone from the source and were carried forward.
        pending_move: runs that moved to a partition that did not capture them yet: they stay here until it does.
        misdated: runs that ended in the future by now, or at no known time: no partition takes them, so they stay here.
        unseen: runs that the source does not show, where that proves no deletion: they stay here.
        departed: runs that left this partition: not terminal any more, or moved to where no partition takes them.
        lost: runs that are gone from the source, and were lost with a corrupt file.
        lost_before: how many were lost in former materializations.
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
    misdated: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    departed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lost_before: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of the snapshot."""
        self.runs += batch.num_rows
        self.steps += count_items(batch.column("steps"))
        self.foreign_steps += count_items(batch.column("foreign_steps"))
        self.messages += count_items(batch.column("messages"))
        self.present.append(batch.column("run_id"))

    @classmethod
    def of_unchanged(cls, counts: Mapping[str, int], gone: Sequence[str]) -> Self:
        """Return the ledger's counts of a file that is up to date; ``gone`` are its runs that the source lacks.

        It holds no pending moves and no departed runs.
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
        """Return the counts as the ledger stores them."""
        return {
            "runs": self.runs,
            "steps": self.steps,
            "foreign_steps": self.foreign_steps,
            "messages": self.messages,
            "deleted_runs": len(self.carried),
            "pending_move_runs": len(self.pending_move),
            **({MISDATED: len(self.misdated)} if self.misdated else {}),
            **({UNSEEN: len(self.unseen)} if self.unseen else {}),
            LOST: self.lost_before + len(self.lost),
            ERASED: self.erased_runs,
            DELETED_AND_KEPT: self.deleted_and_kept,
        }


def count_items(lists: "pa.Array[Any]") -> int:
    """Return how many items all lists of a column hold together."""
    return pc.sum(pc.list_value_length(lists)).as_py() or 0


def strings_of(column: "pa.Array[Any]") -> list[str]:
    """Return the values of a column of strings without nulls."""
    return cast(list[str], column.to_pylist())
