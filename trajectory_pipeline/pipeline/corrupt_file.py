"""Raw rows that were damaged in the storage: what was lost with them.

Belongs here: keeping the damaged file aside, and what is told of it. Does not belong here: reading its runs again and
finding which are lost (``pipeline.capture``), and telling damage from a storage that fails
(``storage.parquet.corrupt_files``).
"""

from dataclasses import dataclass, field
from datetime import datetime

from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.corrupt_files import find_corruption, keep_corrupt_file
from trajectory_pipeline.storage.parquet.store import ParquetStore


@dataclass
class CorruptFile:
    """A former file that could not be read.

    Attributes:
        error: what is wrong with it.
        aside: URI of the copy of it that is kept.
        lost: runs that were in it and that the source does not have.
    """

    error: str
    aside: str
    lost: list[str] = field(default_factory=list)

    def sentence(self, partition_key: str) -> str:
        """Return what happened, for a person."""
        lost = (
            f"{len(self.lost)} of its runs are gone from the source: they are lost, and leave the trajectories too"
            if self.lost
            else "the source still has every run that was in them"
        )
        return (
            f"The raw rows of {partition_key} were damaged ({self.error}) and were read again from the source: {lost}."
            f" The damaged file is kept as {self.aside}."
        )


def set_aside_corrupt_file(store: ParquetStore, hour: datetime) -> CorruptFile | None:
    """Keep a copy of a partition's raw rows where they are damaged; None where they are whole. For use under its lock.

    The file itself stays until it is replaced: whatever breaks this off, the next materialisation finds it so again.

    Raises:
        SinkError: the storage cannot be read or written.
    """
    error = find_corruption(store, TERMINAL_RUNS, hour)
    return None if error is None else CorruptFile(error, keep_corrupt_file(store, TERMINAL_RUNS, hour))
