"""The threshold of the garbage collector is raised inside the context and restored afterwards."""

import gc
import threading

import pytest

from trajectory_pipeline.runtime.gc_threshold import raised_gc_threshold


def test_raised_gc_threshold_is_restored_after_an_error() -> None:
    usual = gc.get_threshold()
    seen: list[int] = []

    @raised_gc_threshold(100_000)
    def conversion() -> None:
        seen.append(gc.get_threshold()[0])
        raise ValueError("of the conversion")

    with pytest.raises(ValueError, match="of the conversion"):
        conversion()
    assert seen[0] > usual[0]
    assert gc.get_threshold() == usual


def test_raised_gc_threshold_is_restored_by_the_last_thread() -> None:
    usual = gc.get_threshold()
    first_may_leave, first_left = threading.Event(), threading.Event()

    def first() -> None:
        with raised_gc_threshold(100_000):
            inside.set()
            assert first_may_leave.wait(10)
        first_left.set()

    inside = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with raised_gc_threshold(100_000):
        first_may_leave.set()
        assert first_left.wait(10)
        assert gc.get_threshold()[0] > usual[0]
    thread.join(10)
    assert gc.get_threshold() == usual


def test_raised_gc_threshold_leaves_a_disabled_collector_off() -> None:
    usual = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with raised_gc_threshold(100_000):
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*usual)


def test_raised_gc_threshold_nested_is_the_highest() -> None:
    usual = gc.get_threshold()
    with raised_gc_threshold(100_000):
        with raised_gc_threshold(300_000):
            assert gc.get_threshold()[0] == 300_000
            with raised_gc_threshold(200_000):
                assert gc.get_threshold()[0] == 300_000
        assert gc.get_threshold()[0] == 100_000
    assert gc.get_threshold() == usual
