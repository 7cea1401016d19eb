"""The contract of giving back memory: asked for after many rows only, and of whatever C library there is."""

from typing import Any

import pytest

from trajectory_pipeline.runtime import memory


class _Library:
    def __init__(self) -> None:
        self.kept: list[int] = []

    def malloc_trim(self, kept: int) -> int:
        self.kept.append(kept)
        return 1


@pytest.mark.parametrize(("rows", "asked"), [(0, []), (100, []), (500_000, [0])])
def test_the_c_library_is_asked_after_many_rows_only(
    monkeypatch: pytest.MonkeyPatch, rows: int, asked: list[int]
) -> None:
    library = _Library()
    monkeypatch.setattr(memory, "c_library", lambda: library)
    memory.trim_memory_after(rows)
    assert library.kept == asked


@pytest.mark.parametrize("library", [object(), None])
def test_a_c_library_that_cannot_be_asked_is_not(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(memory, "c_library", lambda: library)
    memory.trim_memory_after(500_000)


def test_the_c_library_of_this_process_can_be_asked() -> None:
    memory.trim_memory_after(500_000)
