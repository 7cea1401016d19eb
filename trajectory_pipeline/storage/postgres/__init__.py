"""The schema ``trajectory`` in Postgres.

Whatever uses the database raises ``SinkError`` if it cannot be reached, is not migrated, or refuses a statement.
"""
