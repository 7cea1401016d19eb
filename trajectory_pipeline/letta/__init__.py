"""Reading a Letta server's Postgres: read-only, one snapshot a partition, Arrow out.

Belongs here: what the source looks like and how rows come out of it, unchanged. Does not belong here: what rows mean
(``trajectories``), or where they go (``sinks``).
"""
