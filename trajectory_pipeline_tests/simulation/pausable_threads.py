"""Threads that pause at named points and run one at a time, when the scheduler resumes them."""

import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Self

_JOIN_TIMEOUT_SECONDS = 60.0

START = "start"
"""Pause point of a worker, or of a call in a thread that it started, before anything is done."""


class State(Enum):
    """What a thread does."""

    QUEUED = "waits for the previous call of its executor"
    PAUSED = "waits at a pause point until it is resumed"
    RUNNING = "runs, or waits in Postgres for a lock"
    JOINING = "waits for the result of another thread"
    ENDED = "ended"


class Killed(BaseException):
    """The worker ends here; no handler of the package may catch it."""


class ThreadRegistry:
    """What all threads share: the condition that a state changed, and which one the calling thread is."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._local = threading.local()

    @property
    def current(self) -> "PausableThread | None":
        """The calling thread; None if the scheduler does not control it."""
        return getattr(self._local, "thread", None)

    @current.setter
    def current(self, thread: "PausableThread") -> None:
        self._local.thread = thread


class Worker:
    """One worker of the pipeline: its own thread and those that it starts. All of them are killed together."""

    def __init__(self, name: str, registry: ThreadRegistry) -> None:
        self.name = name
        self.registry = registry
        self.threads: list[PausableThread] = []
        self.killed_at: str | None = None

    @property
    def ended(self) -> bool:
        return all(thread.state is State.ENDED for thread in self.threads)

    def kill(self, at: "PausableThread") -> None:
        """Let no thread pass the point at which it is paused; of the package only what unwinds still runs."""
        with self.registry.changed:
            self.killed_at = at.paused_at
            for thread in self.threads:
                if thread.state is State.PAUSED:
                    thread.killed = True
                    thread.resume()


class PausableThread:
    """A call in a thread of its own, which pauses at its start and at every pause point."""

    def __init__(self, call: Callable[[], Any], worker: Worker, state: State = State.PAUSED) -> None:
        self.worker = worker
        self.state = state
        self.paused_at = START
        self.killed = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._registry = worker.registry
        self._call = call
        self._injected_error: Exception | None = None
        self._resumed = threading.Semaphore(0)
        self._joins: PausableThread | None = None
        self._next: PausableThread | None = None
        worker.threads.append(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self, error: Exception | None = None) -> None:
        """Let it continue, or raise an error at its pause point."""
        with self._registry.changed:
            self.state, self._injected_error = State.RUNNING, error
            self._resumed.release()

    def pause_at(self, point: str) -> None:
        """Pause until resumed; called in the thread itself."""
        if self.worker.killed_at is not None:
            raise Killed
        with self._registry.changed:
            self.state, self.paused_at = State.PAUSED, point
            self._registry.changed.notify_all()
        self._wait_until_resumed()

    def _wait_until_resumed(self) -> None:
        self._resumed.acquire()
        if self.killed:
            raise Killed
        if self._injected_error is not None:
            raise self._injected_error

    def result(self) -> Any:
        """Wait in another thread until this one ends, and return its value or raise its error, as a future does."""
        caller = self._registry.current
        assert caller is not None
        with self._registry.changed:
            if self.state is not State.ENDED:
                caller.state, caller._joins = State.JOINING, self
                self._registry.changed.notify_all()
                self._registry.changed.wait_for(lambda: self.state is State.ENDED)
        if self.error is not None:
            raise self.error
        return self.value

    def then(self, call: Callable[[], Any]) -> "PausableThread":
        """Return a thread that starts when this one has ended."""
        with self._registry.changed:
            following = PausableThread(call, self.worker, State.QUEUED)
            if self.state is State.ENDED:
                following.dequeue()
            else:
                self._next = following
            return following

    def join(self) -> None:
        self._thread.join(_JOIN_TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), f"{self.worker.name} does not end"

    def dequeue(self) -> None:
        """Pause at the start, now that the previous call has ended."""
        self.state = State.PAUSED
        if self.worker.killed_at is not None:
            self.resume()

    def _run(self) -> None:
        self._registry.current = self
        try:
            self._wait_until_resumed()
            self.value = self._call()
        except BaseException as error:
            self.error = error
        with self._registry.changed:
            self.state = State.ENDED
            # What waits for this thread counts as running before it really wakes up: else the scheduler could
            # see all threads paused in between, and the history would depend on the operating system.
            for thread in self.worker.threads:
                if thread._joins is self:
                    thread.state, thread._joins = State.RUNNING, None
            if self._next is not None:
                self._next.dequeue()
            self._registry.changed.notify_all()


class PausableExecutor:
    """Replaces a ``ThreadPoolExecutor`` of one thread: its calls are pausable threads, one after the other."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._last: PausableThread | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> PausableThread:
        def call() -> Any:
            return function(*arguments)

        with self._worker.registry.changed:
            if self._last is not None:
                self._last = self._last.then(call)
            else:
                self._last = PausableThread(call, self._worker, State.QUEUED)
                self._last.dequeue()
            return self._last

    def shutdown(self, *, wait: bool) -> None:
        assert wait
        if self._last is not None:
            try:
                self._last.result()
            except BaseException:
                # An executor does not report errors of calls whose results are never asked for.
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(wait=True)
