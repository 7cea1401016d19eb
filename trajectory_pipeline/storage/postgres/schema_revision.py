"""Which revision of the schema ``trajectory`` this version knows, and a refusal of databases at any other.

It loads no migration tool: each process that only reads would carry 20 MB of it.
"""

from functools import cache
from pathlib import Path

import psycopg

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.urls import describe_postgres

VERSION_TABLE = f"{SCHEMA_NAME}.alembic_version"
FOLDERS = [Path(__file__).parent / "migrations" / "versions"]
"""Where migrations are: each file is named after its revision, and these sort by age."""
_UNRELEASED = frozenset(f"{number:04}" for number in range(1, 12))
"""Revisions of versions before the first release, whose schema cannot be upgraded."""


@cache
def known_revisions() -> tuple[str, ...]:
    """Return the revisions that this version of the package knows, the oldest first."""
    files = (file for folder in FOLDERS for file in folder.glob("[0-9]*.py"))
    return tuple(sorted(file.stem for file in files))


def head_revision() -> str:
    """Return the newest revision that this version of the package knows."""
    return known_revisions()[-1]


def require_migrated(url: str, connection: psycopg.Connection) -> None:
    """Refuse a database whose schema is not that of this version.

    Raises:
        SinkError: the text says what to run.
    """
    try:
        found = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}".encode()).fetchone()
    except psycopg.errors.UndefinedTable:
        raise SinkError(
            f"The database {describe_postgres(url)} has no schema {SCHEMA_NAME!r} yet: run"
            " `trajectory-pipeline migrate`."
        ) from None
    revision: str | None = found[0] if found else None
    if revision != head_revision():
        raise SinkError(
            f"The schema {SCHEMA_NAME!r} in {describe_postgres(url)} is at revision {revision}, this version needs"
            f" {head_revision()}: {advice(revision)}."
        )


def advice(revision: str | None) -> str:
    """Return what to do about a database at a revision that is not the newest."""
    if revision in _UNRELEASED:
        return (
            "an unreleased trajectory-pipeline made it, and it cannot be upgraded. Save what you need of it,"
            f" `DROP SCHEMA {SCHEMA_NAME} CASCADE`, run `trajectory-pipeline migrate` and materialize again"
        )
    if revision is None or revision in known_revisions():
        return "run `trajectory-pipeline migrate`"
    return "a newer trajectory-pipeline made it: update this one"
