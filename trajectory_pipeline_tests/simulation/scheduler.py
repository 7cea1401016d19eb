"""Lines of work that stop where they are told to: a worker's own thread, and each call in a thread that it starts.

A strand goes on only when it is let go, and of all strands one is let go at a time; so what real threads do at once is
one history, which a seed repeats.
"""

import threading
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Any, Self

_PATIENCE_SECONDS = 60.0

BEGINNING = "the beginning"
"""Of a worker, or of a call in a thread that it started."""


class State(Enum):
    """What a strand does."""

    QUEUED = "waits for the former call in its thread"
    STANDING = "stands at a point"
    GOING = "goes on, or waits in Postgres for a lock"
    WAITING = "waits for a call in another thread"
    ENDED = "ended"


class Killed(BaseException):
    """The worker ends here; no handler of the package may catch it."""


class Scene:
    """What strands share: the news that one of them changed its state, and which one a thread is."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._here = threading.local()

    @property
    def strand(self) -> "Strand | None":
        """The strand that the calling thread is; None for a thread that is none."""
        return getattr(self._here, "strand", None)

    @strand.setter
    def strand(self, strand: "Strand") -> None:
        self._here.strand = strand


class Band:
    """The strands of one worker: all of them are killed together."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        self.scene = scene
        self.strands: list[Strand] = []
        self.killed_at: str | None = None

    @property
    def ended(self) -> bool:
        return all(strand.state is State.ENDED for strand in self.strands)

    def kill(self, at: "Strand") -> None:
        """Let no strand get past the point at which it stands; nothing of the package runs but what unwinds."""
        with self.scene.changed:
            self.killed_at = at.standing_at
            for strand in self.strands:
                if strand.state is State.STANDING:
                    strand.doomed = True
                    strand.let_go()


class Strand:
    """One thread's work, which stands at its beginning and at every point."""

    def __init__(self, work: Callable[[], Any], band: Band, begin: State = State.STANDING) -> None:
        self.band = band
        self.state = begin
        self.standing_at = BEGINNING
        self.doomed = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._scene = band.scene
        self._work = work
        self._strikes: Exception | None = None
        self._may_go = threading.Semaphore(0)
        self._waits_for: Strand | None = None
        self._follower: Strand | None = None
        band.strands.append(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def let_go(self, error: Exception | None = None) -> None:
        """Let it go on, or raise an error where it stands."""
        with self._scene.changed:
            self.state, self._strikes = State.GOING, error
            self._may_go.release()

    def stop_at(self, point: str) -> None:
        """Stand until let go; called in the strand's own thread."""
        if self.band.killed_at is not None:
            raise Killed
        with self._scene.changed:
            self.state, self.standing_at = State.STANDING, point
            self._scene.changed.notify_all()
        self._stand()

    def _stand(self) -> None:
        self._may_go.acquire()
        if self.doomed:
            raise Killed
        if self._strikes is not None:
            raise self._strikes

    def result(self) -> Any:
        """Wait for this strand in another one's thread, and return what it gave; as a future does."""
        other = self._scene.strand
        assert other is not None
        with self._scene.changed:
            if self.state is not State.ENDED:
                other.state, other._waits_for = State.WAITING, self
                self._scene.changed.notify_all()
                self._scene.changed.wait_for(lambda: self.state is State.ENDED)
        if self.error is not None:
            raise self.error
        return self.value

    def followed_by(self, work: Callable[[], Any]) -> "Strand":
        """Return a strand that begins where this one ends."""
        with self._scene.changed:
            follower = Strand(work, self.band, State.QUEUED)
            if self.state is State.ENDED:
                follower._come()
            else:
                self._follower = follower
            return follower

    def join(self) -> None:
        self._thread.join(_PATIENCE_SECONDS)
        assert not self._thread.is_alive(), f"{self.band.name} does not end"

    def _come(self) -> None:
        self.state = State.STANDING
        if self.band.killed_at is not None:
            self.let_go()

    def _run(self) -> None:
        self._scene.strand = self
        try:
            self._stand()
            self.value = self._work()
        except BaseException as error:
            self.error = error
        with self._scene.changed:
            self.state = State.ENDED
            for strand in self.band.strands:
                if strand._waits_for is self:
                    strand.state, strand._waits_for = State.GOING, None
            if self._follower is not None:
                self._follower._come()
            self._scene.changed.notify_all()


class OneThread:
    """Stands in for an executor with one thread: its calls are strands, one after the other."""

    def __init__(self, band: Band) -> None:
        self._band = band
        self._last: Strand | None = None

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Strand:
        def work() -> Any:
            return call(*arguments)

        with self._band.scene.changed:
            if self._last is not None:
                self._last = self._last.followed_by(work)
            else:
                self._last = Strand(work, self._band, State.QUEUED)
                self._last._come()
            return self._last

    def shutdown(self, *, wait: bool) -> None:
        assert wait
        if self._last is not None:
            try:
                self._last.result()
            except BaseException:
                # An executor says nothing of calls whose results nobody asked for.
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(wait=True)
