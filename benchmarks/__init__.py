"""Measurements of the pipeline's speed, memory and cost, each beside a reference in the same run.

Belongs here: what generates large Letta databases, what is measured, and how it is told. Does not belong here: anything
that the project imports; benchmarks use it as its users do.
"""
