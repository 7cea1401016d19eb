"""The contract of overlapping: one item ahead, errors where items are used, and nothing under way after the end."""

import threading
from collections.abc import Iterator

import pytest

from trajectory_pipeline.runtime.threads import read_ahead


def test_at_most_one_item_is_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    with read_ahead(items()) as reading:
        assert next(reading) == 0
        assert next(reading) == 1
    assert len(made) <= 3


def test_an_error_of_the_maker_is_raised_where_the_items_are_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    with read_ahead(items()) as reading:
        assert next(reading) == 1
        with pytest.raises(ZeroDivisionError, match="here"):
            next(reading)


def test_an_error_of_the_user_is_raised_when_nothing_is_being_made_any_more() -> None:
    begun, may_end = threading.Event(), threading.Event()
    told: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield 1
            begun.set()
            may_end.wait()
            told.append("made")
            yield 2
        finally:
            told.append("closed")
            raise OSError("no error of the closing takes the place of the first one")

    def use() -> None:
        with read_ahead(items()) as reading:
            next(reading)
            begun.wait()
            threading.Timer(0.05, may_end.set).start()
            raise ZeroDivisionError("first")

    with pytest.raises(ZeroDivisionError, match="first") as caught:
        use()
    # While the error, and with it the frames that it went through, is still there.
    assert caught.value.__traceback__ is not None
    assert told == ["made", "closed"]


def test_what_was_never_asked_for_is_not_begun() -> None:
    begun: list[bool] = []

    def items() -> Iterator[int]:
        begun.append(True)
        yield 1

    with read_ahead(items()):
        pass
    assert begun == []
