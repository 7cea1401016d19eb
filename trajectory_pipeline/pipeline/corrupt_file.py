"""Raw rows whose file is corrupt: a copy of it is kept, and what was lost is reported."""

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
        copy_uri: URI of the copy that is kept.
        lost: runs that it held and that the source does not have.
    """

    error: str
    copy_uri: str
    lost: list[str] = field(default_factory=list)

    def sentence(self, partition_key: str) -> str:
        """Return what happened, for a person."""
        lost = (
            f"{len(self.lost)} of its runs are gone from the source: they are lost, and leave the trajectories too"
            if self.lost
            else "the source still has every run that was in them"
        )
        return (
            f"The raw rows of {partition_key} were corrupt ({self.error}) and were read again from the source: {lost}."
            f" A copy of the corrupt file is {self.copy_uri}."
        )


def set_aside_corrupt_file(store: ParquetStore, hour: datetime) -> CorruptFile | None:
    """Copy a partition's raw rows if they are corrupt; return None if they can be read. To be called under its lock.

    Raises:
        SinkError: the storage cannot be read or written.
    """
    error = find_corruption(store, TERMINAL_RUNS, hour)
    # A copy, not a move: if anything fails before the file is replaced, the next materialization finds it again.
    return None if error is None else CorruptFile(error, keep_corrupt_file(store, TERMINAL_RUNS, hour))
