"""Renders transcripts off the event loop, which times calls: in another process where there are many."""

import asyncio
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from trajectory_pipeline.judge.transcript.rendering import Rendered, Rendering
from trajectory_pipeline.runtime.worker_process import prepare_worker_process

WORTH_A_PROCESS = 300
"""Transcripts from which on another process saves more than its start costs."""
_AT_ONCE = 2
"""In work or on their way to the process: it need not wait for the next one."""

_LOG = logging.getLogger(__name__)


class Renderer:
    """Renders one transcript at a time.

    In a thread, rendering and the loop take turns; in a process, they use two cores. If the process is killed, what
    is left is rendered in a thread.
    """

    def __init__(self, transcripts: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if transcripts >= WORTH_A_PROCESS and (os.cpu_count() or 1) > 1:
            # Not forked: this process has threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=prepare_worker_process)
        self._turn = asyncio.Semaphore(1 if self._pool is None else _AT_ONCE)

    async def __call__(self, rendering: Rendering) -> Rendered:
        """Return what is shown.

        Raises:
            RedactionTimeoutError: it took longer than it may.
        """
        async with self._turn:
            if self._pool is not None:
                try:
                    return await asyncio.get_running_loop().run_in_executor(self._pool, rendering.render)
                except BrokenProcessPool:
                    _LOG.warning("The process that renders transcripts was killed: the rest is rendered more slowly.")
                    self.close()
            return await asyncio.to_thread(rendering.render)

    def close(self) -> None:
        """End the process, after what it is rendering."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
