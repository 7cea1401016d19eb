"""Refining outcomes: render → ask → validate, for one trajectory under one policy.

Belongs here: what a judge is shown, how it is asked, and what follows from its answer. Does not belong here: where
trajectories come from and verdicts go (``sinks``, ``stages``).
"""
