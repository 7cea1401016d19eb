"""Several processes that answer at one address, forked from one that has loaded all modules: they share its memory."""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from trajectory_pipeline.errors import PipelineError

SHORTEST_LIFE = 10.0
"""Seconds. A worker that ends sooner would do so again and again, and is not replaced."""


class Workers:
    """Forks workers, replaces one that ends, and ends all of them when this process is told to stop.

    Attributes:
        work: what a worker does; it returns after SIGTERM.
        ended: called with the id of a worker that ended.
    """

    def __init__(self, count: int, work: Callable[[], None], ended: Callable[[int], None]) -> None:
        self._count = count
        self.work = work
        self.ended = ended
        self._started: dict[int, float] = {}
        self._stopping = False
        self._alive, self._alive_here = os.pipe()

    def run(self) -> None:
        """Run the workers until SIGTERM or SIGINT. No other thread may run when it is called.

        Raises:
            PipelineError: a worker ended right after it had started.
        """
        # What is there now is never freed: a collection in a worker would copy the pages that it looks at.
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            for _ in range(self._count):
                self._start()
            while self._started:
                process, status = os.wait()
                started = self._started.pop(process, None)
                if started is None:
                    continue
                self.ended(process)
                if self._stopping:
                    continue
                if time.monotonic() - started < SHORTEST_LIFE:
                    raise PipelineError(
                        f"A worker of the service ended right after its start (status {status}): see above."
                    )
                self._start()
        finally:
            self._stop()
            for process in self._started:
                os.waitpid(process, 0)

    def _start(self) -> None:
        process = os.fork()
        if process:
            self._started[process] = time.monotonic()
            if self._stopping:
                os.kill(process, signal.SIGTERM)
            return
        # Whatever happens, nothing of what called the parent may run on in a worker.
        code = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._alive_here)
            threading.Thread(target=self._end_with_parent, daemon=True).start()
            self.work()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _end_with_parent(self) -> None:
        # It ends when no process has the other end of the pipe: the parent was killed, and the port must be free.
        os.read(self._alive, 1)
        os._exit(1)

    def _stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        self._stopping = True
        for process in list(self._started):
            os.kill(process, signal.SIGTERM)
