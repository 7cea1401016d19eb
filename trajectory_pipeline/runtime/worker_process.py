"""What a process does first that another one has spawned to work for it."""

import gc
import multiprocessing
import os
import threading

_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def prepare_worker_process() -> None:
    """Let this process end with the one that spawned it, and look for garbage less often.

    Rows and transcripts are thousands of objects that refer to none before them: looking for cycles takes a fifth of
    the time.
    """
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A parent that is killed closes no queue, which this process itself holds open: it would wait for ever.
        parent.join()
        os._exit(1)
