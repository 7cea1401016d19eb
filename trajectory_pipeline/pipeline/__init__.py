"""The three stages of a partition: raw rows, trajectories, verdicts.

Belongs here: reading at one end, the work in the middle, writing at the other end, for one partition at a time, with
no word of Dagster: a notebook can call them. Does not belong here: when, and for which partition (``orchestration``).
"""
