"""A value of the database that every request needs, read once a second at most."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")
_SECONDS = 1.0


class Recent(Generic[_Value]):
    """What ``read`` returned within the last second; read again after that."""

    def __init__(self, read: Callable[[], _Value]) -> None:
        self._read = read
        self._found: tuple[float, _Value] | None = None

    def value(self) -> _Value:
        """Return the value, as of a second ago at the earliest."""
        now = time.monotonic()
        found = self._found
        if found is None or now - found[0] >= _SECONDS:
            # Two threads may read at once; the later answer stays.
            self._found = found = now, self._read()
        return found[1]
