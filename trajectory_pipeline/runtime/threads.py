"""Reading, converting and writing at the same time: one thread more, and one item under way in it, never two.

Belongs here: the two ways to overlap, for work that waits or that lets go of Python's lock (sockets, Arrow, zstd). Does
not belong here: what is read or written.
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
    """Give items as they are; while the caller works on one, the next one is being made in a thread.

    Their errors are raised where the next one is asked for. At the end of the block, whatever ends it, nothing is
    being made any more: the connections and files that the items are made of may be closed then, and not before.

    Example:
        >>> with read_ahead(range(3)) as numbers:
        ...     print(list(numbers))
        [0, 1, 2]
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
    coming = thread.submit(next, iterator, cast(Item, _END))
    while (item := coming.result()) is not _END:
        coming = thread.submit(next, iterator, cast(Item, _END))
        yield item


def _close(iterator: Iterator[Any], thread: ThreadPoolExecutor) -> None:
    """Close a generator in the thread that it runs in, after the item that it is making."""
    close: Callable[[], None] | None = getattr(iterator, "close", None)
    if close is not None:
        thread.submit(close).result()


class WriteBehind:
    """Carries out calls one after the other in a thread; a new one waits until the former is done.

    Used as a context manager: at the end of the block all is done, or the error of a call is raised.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")
        self._former: Future[Any] | None = None

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Carry out a call soon. The error of the former call, if any, is raised here."""
        self._wait()
        self._former = self._thread.submit(call, *arguments)

    def _wait(self) -> None:
        former, self._former = self._former, None
        if former is not None:
            former.result()

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the last call; an error that is under way already is not replaced by its own."""
        self._thread.shutdown(wait=True)
        if error is None:
            self._wait()
