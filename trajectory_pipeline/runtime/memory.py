"""Memory that is free, given back to the system soon.

Belongs here: which of Arrow's allocators is used, and when what is free is given back. Does not belong here: what is
allocated.
"""

import ctypes
import os
from functools import cache
from typing import Any

import pyarrow as pa

_CHOSEN_OUTSIDE = "ARROW_DEFAULT_MEMORY_POOL"
"""Arrow's own environment variable: who sets it wants that one."""


@cache
def use_jemalloc() -> None:
    """Let Arrow allocate from jemalloc in this process, where it has that.

    Arrow's default, mimalloc, holds on to about 100 MB more of what batches of changing sizes leave free
    (``python -m benchmarks 4``), at the same speed. Does nothing where ``ARROW_DEFAULT_MEMORY_POOL`` is set.
    """
    if _CHOSEN_OUTSIDE not in os.environ and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())


_MANY_ROWS = 20_000
"""From so many on, what is free afterwards is worth the time that giving it back takes: 0.09 s for 180 MB, once."""


def trim_memory_after(rows: int) -> None:
    """Give back what is free after a partition of so many rows, if these are many.

    What a Parquet file's many row groups were told of while it was written, 140 MB after half a million rows, is freed
    in small pieces, which the GNU C library keeps for itself unless it is asked. Other libraries have no such question.
    """
    if rows >= _MANY_ROWS:
        pa.default_memory_pool().release_unused()
        trim = getattr(c_library(), "malloc_trim", None)
        if trim is not None:
            trim(0)


def c_library() -> Any:
    """Return the C library of this process."""
    return ctypes.CDLL(None)
