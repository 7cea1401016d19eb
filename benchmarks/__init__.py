"""Measurements of the pipeline's speed, memory and cost, each compared with a reference in the same run."""
