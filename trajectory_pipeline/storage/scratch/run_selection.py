"""The runs of an export, of which there may be more than memory should hold."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from trajectory_pipeline.schema.exports import SelectedRun
from trajectory_pipeline.storage.scratch.database import ScratchDatabase

_COLUMNS = [field.name for field in fields(SelectedRun)]
_TABLE = f"CREATE TABLE selected ({', '.join(_COLUMNS)}, PRIMARY KEY (partition_key, run_id)) WITHOUT ROWID"
_INSERT = f"INSERT INTO selected VALUES ({', '.join('?' * len(_COLUMNS))})"
_ALL = f"SELECT {', '.join(_COLUMNS)} FROM selected"
_FIND = f"{_ALL} WHERE partition_key = ? AND run_id = ?"


class RunSelection:
    """Runs by partition; ``close`` must be called."""

    def __init__(self, folder: Path, runs: Iterable[SelectedRun]) -> None:
        """Keep runs in a file in a folder.

        Raises:
            OSError: the file cannot be written.
        """
        self._database = ScratchDatabase(folder, _TABLE)
        self._number = max(0, self._database.write_all(_INSERT, map(astuple, runs)))

    def __len__(self) -> int:
        """Return how many there are."""
        return self._number

    def __iter__(self) -> Iterator[SelectedRun]:
        """Yield them, by partition and id."""
        for row in self._database.rows(_ALL):
            yield SelectedRun(*row)

    def partitions(self) -> list[tuple[str, int]]:
        """Return the partitions that they are in, in order, each with how many are in it."""
        return list(
            self._database.rows("SELECT partition_key, count(*) FROM selected GROUP BY partition_key ORDER BY 1")
        )

    def find(self, partition_key: str, run_ids: Sequence[str]) -> dict[str, SelectedRun]:
        """Return those of a partition that have one of these ids, by id."""
        rows = (self._database.row(_FIND, (partition_key, run_id)) for run_id in run_ids)
        return {row[0]: SelectedRun(*row) for row in rows if row is not None}

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
