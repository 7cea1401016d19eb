"""Keep processes small: where memory is allocated, and when what was freed goes back to the OS."""

import ctypes
import os
from functools import cache
from typing import Any

import pyarrow as pa

_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt``: GNU C library, ``malloc.h``."""
_ARENAS = 2
_MANY_ROWS = 20_000
"""From so many rows on, trimming is worth its time: 0.09 s for 180 MB, once."""


@cache
def use_jemalloc() -> None:
    """Let Arrow allocate from jemalloc in this process, if available and ``ARROW_DEFAULT_MEMORY_POOL`` is not set.

    Arrow's default, mimalloc, retains about 100 MB more after batches of changing sizes (``python -m benchmarks 4``),
    at the same speed.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


def limit_arenas() -> None:
    """Let the threads of this process, and of those forked from it, share few pools of memory.

    The GNU C library gives each of a service's threads one of its own, up to eight a core, and each retains what was
    freed in it. Other C libraries have no such function.
    """
    mallopt = getattr(c_library(), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, _ARENAS)


def trim_memory_after(rows: int) -> None:
    """Return freed memory after a partition of many rows.

    The metadata of a Parquet file's row groups, 140 MB for half a million rows, is freed in small pieces.
    """
    if rows >= _MANY_ROWS:
        trim_memory()


def trim_memory() -> None:
    """Return freed memory to the operating system.

    What was freed in small pieces is retained by the GNU C library until it is asked to trim. Other C libraries have no
    such function.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def c_library() -> Any:
    """Return the C library of this process."""
    return ctypes.CDLL(None)
