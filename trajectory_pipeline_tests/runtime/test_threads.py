"""Reading ahead in a thread: at most one item; errors are raised where items are used; no thread outlives its use."""

import threading
from collections.abc import Iterator

import pytest

from trajectory_pipeline.runtime.threads import read_ahead


def test_read_ahead_makes_at_most_one_item_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    with read_ahead(items()) as reading:
        assert next(reading) == 0
        assert next(reading) == 1
    assert len(made) <= 3


def test_read_ahead_raises_the_error_of_the_iterator_on_use() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    with read_ahead(items()) as reading:
        assert next(reading) == 1
        with pytest.raises(ZeroDivisionError, match="here"):
            next(reading)


def test_read_ahead_raises_the_error_of_its_user_after_the_thread() -> None:
    """Not before the thread has ended, so that nothing runs on."""
    started, may_end = threading.Event(), threading.Event()
    events: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield 1
            started.set()
            may_end.wait()
            events.append("made")
            yield 2
        finally:
            events.append("closed")
            raise OSError("no error of the closing takes the place of the first one")

    def use() -> None:
        with read_ahead(items()) as reading:
            next(reading)
            started.wait()
            threading.Timer(0.05, may_end.set).start()
            raise ZeroDivisionError("first")

    with pytest.raises(ZeroDivisionError, match="first") as caught:
        use()
    # While the error, and with it the frames that it went through, is still there.
    assert caught.value.__traceback__ is not None
    assert events == ["made", "closed"]


def test_read_ahead_that_is_never_read_starts_nothing() -> None:
    started: list[bool] = []

    def items() -> Iterator[int]:
        started.append(True)
        yield 1

    with read_ahead(items()):
        pass
    assert started == []
