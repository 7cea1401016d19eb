"""Groups of so many runs that memory should not hold their keys; ``exports.splits.groups_of`` divides few alike."""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

from trajectory_pipeline.storage.scratch.database import ScratchDatabase

_TABLE = "CREATE TABLE group_keys (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)"


class RunGroups:
    """Which keys are connected: those of one run are, and so are all that others connect; ``close`` must be called."""

    def __init__(self, folder: Path, keys: Iterable[Sequence[str]]) -> None:
        """Keep the keys of runs in a file in a folder; each run has at least one.

        Raises:
            OSError: the file cannot be written.
        """
        self._database = ScratchDatabase(folder, _TABLE)
        self._parents = array("q", [0])
        for own in keys:
            first, *others = map(self._number_of, own)
            for other in others:
                self._parents[self._root(other)] = self._root(first)
        self._names = array("q", bytes(8 * len(self._parents)))
        for (number,) in self._database.rows("SELECT number FROM group_keys ORDER BY name"):
            root = self._root(number)
            self._names[root] = self._names[root] or number

    def name_of(self, key: str) -> str:
        """Return the smallest key that is connected with a key of a run: the name of their group."""
        (number,) = self._database.row("SELECT number FROM group_keys WHERE name = ?", (key,))
        smallest = self._names[self._root(number)]
        name: str = self._database.row("SELECT name FROM group_keys WHERE number = ?", (smallest,))[0]
        return name

    def close(self) -> None:
        """Remove the file."""
        self._database.close()

    def _number_of(self, key: str) -> int:
        found = self._database.row("SELECT number FROM group_keys WHERE name = ?", (key,))
        if found is not None:
            number: int = found[0]
            return number
        number = self._database.write("INSERT INTO group_keys (name) VALUES (?)", (key,))
        self._parents.append(number)
        return number

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number
