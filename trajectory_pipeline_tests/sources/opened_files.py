"""Which files are opened, by whatever way: as the interpreter's audit events say."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_LISTENERS: list[list[str]] = []


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Yield a list that gets the path of each file that is opened in the block."""
    _listen()
    opened: list[str] = []
    _LISTENERS.append(opened)
    try:
        yield opened
    finally:
        _LISTENERS.remove(opened)


@cache
def _listen() -> None:
    """Begin to listen, once: a hook cannot be removed."""
    sys.addaudithook(_hear)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _LISTENERS and isinstance(arguments[0], str | os.PathLike):
        for opened in _LISTENERS:
            opened.append(os.fspath(arguments[0]))
