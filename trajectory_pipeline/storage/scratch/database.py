"""A SQLite database of one process, in a file without a name."""

import errno
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SETTINGS = (
    # Nothing of it is wanted after a crash.
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "PRAGMA locking_mode = EXCLUSIVE",
    # Kilobytes in memory; the rest is written to the file.
    "PRAGMA cache_size = -4000",
    "BEGIN",
)


class ScratchDatabase:
    """Tables of one process, gone with it; ``close`` must be called."""

    def __init__(self, folder: Path, *tables: str) -> None:
        """Create tables, each by its statement, in a new file in a folder.

        Raises:
            OSError: the file cannot be written, here or in any method: its disk is full or read-only.
        """
        with tempfile.NamedTemporaryFile(dir=folder) as file, _as_os_error():
            self._connection = sqlite3.connect(file.name, isolation_level=None)
            for statement in (*_SETTINGS, *tables):
                self._connection.execute(statement)

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a query, as tuples; it must be read to its end before anything is written."""
        with _as_os_error():
            yield from self._connection.execute(statement, parameters)

    def row(self, statement: str, parameters: Sequence[Any] = ()) -> Any:
        """Return the first row of a query as a tuple; None where there is none."""
        with _as_os_error():
            return self._connection.execute(statement, parameters).fetchone()

    def write(self, statement: str, parameters: Sequence[Any]) -> int:
        """Write a row; returns its number."""
        with _as_os_error():
            return self._connection.execute(statement, parameters).lastrowid or 0

    def write_all(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Write rows; returns how many were written."""
        with _as_os_error():
            return self._connection.executemany(statement, rows).rowcount

    def close(self) -> None:
        """Remove it."""
        self._connection.close()


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise what SQLite says of a disk as any other file would."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(errno.ENOSPC if "full" in str(error) else errno.EIO, str(error)) from error
