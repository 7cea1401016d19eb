"""Turns every finished run of a Letta server into a trajectory and has an LLM judge what came of it.

The house has three floors, and imports run downwards only:

* top: ``orchestration`` (Dagster), ``definitions`` and ``cli``: *when* and *for which partition*;
* middle: the work, which knows no Dagster and can be called from a notebook: ``letta``, ``trajectories``,
  ``refinement``, ``sinks``, and what makes a demonstration possible without any service:
  ``embedded_postgres``, ``simulated_judge``, ``sample``;
* ground: ``settings``, ``errors`` and ``schema``.
"""

__version__ = "0.1.0"
