"""Fewer passes of Python's garbage collector while much is made that is in no cycle.

With its usual threshold, of 700 new containers, the collector goes through all of them, and every so often through
everything else in the process, a quarter of a second each time, and finds nothing.

Belongs here: the threshold. Does not belong here: what is made.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_wanted: list[int] = []
_usual = gc.get_threshold()


@contextmanager
def raised_gc_threshold(containers: int) -> Iterator[None]:
    """Let the collector look only after so many new containers; several threads may be inside at once.

    The most that any of them asks for counts. A collector that is off stays off.

    Args:
        containers: objects that may hold others; cycles among so many are kept meanwhile.
    """
    global _usual
    with _lock:
        if not _wanted:
            _usual = gc.get_threshold()
        _wanted.append(containers)
        _set()
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(containers)
            _set()


def _set() -> None:
    first, *others = _usual
    gc.set_threshold(max(first, *_wanted) if first and _wanted else first, *others)
