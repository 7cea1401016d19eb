"""Fewer passes of Python's garbage collector while a batch is converted.

A conversion makes hundreds of thousands of short lists and dicts, none of them in a cycle: with the usual threshold
the collector goes through all of them, and through everything else in the process, again and again, and finds nothing.

Belongs here: the threshold. Does not belong here: converting.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 2_000_000
"""New containers until the collector looks at them; more than a batch makes."""

_lock = threading.Lock()
_inside = 0
_usual = gc.get_threshold()


@contextmanager
def fewer_collections() -> Iterator[None]:
    """Raise the collector's threshold inside; several threads may be inside at once."""
    global _inside, _usual
    with _lock:
        if not _inside:
            _usual = gc.get_threshold()
            gc.set_threshold(max(_OBJECTS, _usual[0]) if _usual[0] else 0, *_usual[1:])
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                gc.set_threshold(*_usual)
