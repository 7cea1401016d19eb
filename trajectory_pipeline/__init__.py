"""Turns every terminal run of a Letta server into a trajectory, and has an LLM judge what it achieved.

Imports run downward: ``cli`` and ``defs``, then ``maintenance`` and ``pipeline``, ``storage``, then ``trajectories``,
``letta`` and ``judge``, ``budget``, ``schema``, and the single modules.
Only ``cli.demo`` and ``databases`` import ``demo``.
"""

__version__ = "0.2.0"
