"""Turns every terminal run of a Letta server into a trajectory, and has an LLM judge what it achieved.

Imports run downward: ``cli`` and ``defs``, then ``maintenance`` and ``pipeline``, ``storage``, then ``conversion``,
``letta`` and ``judge``, ``budget``, ``schema``, and the single modules.
Only ``cli.demo`` and ``databases`` import ``demo``.

For notebooks, the functions of ``reading`` are here too:

>>> import trajectory_pipeline as tp
>>> tp.trajectories("2026-11-23", "2026-11-25").to_pandas()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajectory_pipeline.reading import messages, tool_calls, trajectories, verdicts

__version__ = "0.2.0"
__all__ = ["messages", "tool_calls", "trajectories", "verdicts"]


def __getattr__(name: str) -> Any:
    """Import the functions for notebooks only where they are used: Dagster's processes must load fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trajectory_pipeline import reading

    return getattr(reading, name)
