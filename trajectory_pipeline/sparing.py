"""Arrow's memory, given back to the system soon after it is free.

Belongs here: which of Arrow's allocators is used. Does not belong here: what is allocated.
"""

import os
from functools import cache

import pyarrow as pa

_CHOSEN_OUTSIDE = "ARROW_DEFAULT_MEMORY_POOL"
"""Arrow's own environment variable: who sets it wants that one."""


@cache
def spare_memory() -> None:
    """Let Arrow allocate from jemalloc in this process, where it has that.

    Arrow's default, mimalloc, holds on to about 100 MB more of what batches of changing sizes leave free
    (``python -m benchmarks 4``), at the same speed. Does nothing where ``ARROW_DEFAULT_MEMORY_POOL`` is set.
    """
    if _CHOSEN_OUTSIDE not in os.environ and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
