"""Memory goes back to the OS after many rows alone, and any C library will do."""

import subprocess
import sys
from typing import Any

import pytest

from trajectory_pipeline.runtime import memory


class _Library:
    def __init__(self) -> None:
        self.pads: list[int] = []

    def malloc_trim(self, pad: int) -> int:
        self.pads.append(pad)
        return 1


@pytest.mark.parametrize(("rows", "calls"), [(0, []), (100, []), (500_000, [0])])
def test_trim_memory_calls_malloc_trim_only_after_many_rows(
    monkeypatch: pytest.MonkeyPatch, rows: int, calls: list[int]
) -> None:
    library = _Library()
    monkeypatch.setattr(memory, "c_library", lambda: library)
    memory.trim_memory_after(rows)
    assert library.pads == calls


@pytest.mark.parametrize("library", [object(), None])
def test_trim_memory_without_malloc_trim_does_nothing(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(memory, "c_library", lambda: library)
    memory.trim_memory_after(500_000)


def test_trim_memory_works_with_the_real_c_library() -> None:
    memory.trim_memory_after(500_000)


@pytest.mark.parametrize("library", [object(), None])
def test_limit_arenas_without_mallopt_does_nothing(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    monkeypatch.setattr(memory, "c_library", lambda: library)
    memory.limit_arenas()


def test_limit_arenas_works_with_the_real_c_library() -> None:
    """In a process of its own: the limit stays."""
    code = "from trajectory_pipeline.runtime.memory import limit_arenas; limit_arenas()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
