"""The two sinks: Parquet in any fsspec storage, and the schema ``trajectory`` in Postgres."""
