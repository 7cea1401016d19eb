"""The schema ``trajectory`` in Postgres."""
