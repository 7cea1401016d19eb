"""Overlap reading, converting and writing, with one more thread and never more than one item in progress in it.

For work that waits or releases Python's lock: sockets, Arrow, zstd.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar, cast

Item = TypeVar("Item")

_END = object()


@contextmanager
def read_ahead(items: Iterable[Item]) -> Iterator[Iterator[Item]]:
    """Yield the items; while the caller works on one, a thread produces the next.

    An error of the producer is raised where the next item is requested. After the block, however it ends, nothing is
    being produced: only then may the connections and files behind the items be closed.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        try:
            yield _ahead(iterator, thread)
        except BaseException:
            with suppress(Exception):
                _close(iterator, thread)
            raise
        _close(iterator, thread)


def _ahead(iterator: Iterator[Item], thread: ThreadPoolExecutor) -> Iterator[Item]:
    upcoming = thread.submit(next, iterator, cast(Item, _END))
    while (item := upcoming.result()) is not _END:
        upcoming = thread.submit(next, iterator, cast(Item, _END))
        yield item


def _close(iterator: Iterator[Any], thread: ThreadPoolExecutor) -> None:
    """Close a generator in the thread that it runs in, after its current item."""
    close: Callable[[], None] | None = getattr(iterator, "close", None)
    if close is not None:
        thread.submit(close).result()


class WriteBehind:
    """Runs calls one after the other in a thread; a new one waits for the one before it.

    Used as a context manager: after the block all calls are done, or the error of one is raised.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")
        self._previous: Future[Any] | None = None

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Start a call. The error of the one before it, if any, is raised here."""
        self._wait()
        self._previous = self._thread.submit(call, *arguments)

    def _wait(self) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            previous.result()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last call; its error does not replace one that is already being raised."""
        self._thread.shutdown(wait=True)
        if error is None:
            self._wait()
