"""Consoles and progress displays for the terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_CLOSED_PIPE = 141


class _Console(Console):
    """Ends the process as the signal of a closed pipe does: other codes say what a command found."""

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(_CLOSED_PIPE) from None


# Plain text by default: what is printed may hold brackets, colons and ids of the user's own.
out = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Results."""
err = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
"""Progress and errors."""

_SECONDS_BETWEEN_LOG_LINES = 2


@contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Show a step while it runs, then how long it took; yields a function that reports its progress."""
    started = time.monotonic()
    if err.is_terminal:
        with err.status(f"{title} …") as status:
            yield lambda text: status.update(escape(f"{title} … {text}"))
    else:
        err.print(f"{title} …")
        last_line = started

        def report(text: str) -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= _SECONDS_BETWEEN_LOG_LINES:
                last_line = time.monotonic()
                err.print(f"  {text}")

        yield report
    err.print("✓", style="green", end=" ")
    err.print(f"{title} ({time.monotonic() - started:.1f} s)")


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar; yields a function that takes the number done and what is being worked on."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done, text: progress.update(task, completed=done, description=f"{title} {text}")
