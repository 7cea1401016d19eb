"""The two sinks: Parquet in any fsspec storage, and the schema ``trajectory`` in Postgres.

Belongs here: where rows land, atomically, and how they are read back. Does not belong here: what a row means.
"""
