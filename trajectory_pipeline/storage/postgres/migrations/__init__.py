"""Alembic's folder: its entry (``env``), and one module a revision of the schema ``trajectory`` (``versions``)."""
