"""Words and progress on a terminal.

Belongs here: consoles, and a step that shows that it is under way. Does not belong here: what is said.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
"""Results."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors."""

_SECONDS_BETWEEN_LINES = 2


@contextmanager
def step(what: str) -> Iterator[Callable[[str], None]]:
    """Show a step under way, then how long it took; yields a function that says how far it is."""
    began = time.monotonic()
    if not err.is_terminal:
        err.print(f"{what} …")
        said = began

        def tell(words: str) -> None:
            nonlocal said
            # In a log a line now and then is enough.
            if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                err.print(f"  {words}", markup=False)

        yield tell
    else:
        with err.status(f"{what} …") as status:
            yield lambda words: status.update(escape(f"{what} … {words}"))
    err.print(f"[green]✓[/green] {what} ({time.monotonic() - began:.1f} s)")
