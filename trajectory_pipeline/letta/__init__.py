"""Reading a Letta server's Postgres: read-only, one snapshot a partition, Arrow out.

Rows come out unchanged; what they mean belongs in ``trajectories``. Whatever reads the source
raises ``SourceError`` if it cannot be read.
"""
