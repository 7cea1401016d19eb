"""Bring the schema ``trajectory`` up to date.

Migrations are append-only: a released revision is never edited, a change to the schema is a new one.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.types import SCHEMA_NAME
from trajectory_pipeline.storage.postgres.comments import apply_comments
from trajectory_pipeline.storage.postgres.connection import begin, open_connection, translating_database_errors
from trajectory_pipeline.storage.postgres.pgvector import ensure_embeddings_table
from trajectory_pipeline.storage.postgres.schema_revision import (
    VERSION_TABLE,
    advice,
    head_revision,
    known_revisions,
)
from trajectory_pipeline.storage.postgres.service_tokens import complete_service_role
from trajectory_pipeline.urls import describe_postgres

_MINIMUM_SERVER = 14
_ALEMBIC = threading.Lock()


LOCK_TIMEOUT_SECONDS: float = 2
"""Whoever comes after a statement that waits for a lock waits behind it: so long at most."""
RETRY_PAUSES_SECONDS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)


def migrate(url: str, *, rehearse: bool = False) -> tuple[str | None, str]:
    """Bring the schema up to date, in one transaction; safe to run twice, concurrently and while it is in use.

    A lock that another session holds is waited for briefly, again and again, so that nobody waits long behind us.
    ``rehearse``: only try it, once, in a transaction that is rolled back.

    Returns:
        The revision before (None: there was no schema) and after.

    Raises:
        SinkError: the database refuses, or a lock was held all the time; nothing has changed.
    """
    with translating_database_errors(url, "Migrating"):
        for pause in () if rehearse else RETRY_PAUSES_SECONDS:
            try:
                return _migrate_once(url, rehearse=rehearse)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(pause)
        try:
            return _migrate_once(url, rehearse=rehearse)
        except psycopg.errors.LockNotAvailable as error:
            raise SinkError(
                f"Migrating {describe_postgres(url)} changed nothing: other sessions kept a table of the schema"
                f" {SCHEMA_NAME!r} locked. Stop the daemon and long queries (pg_stat_activity names them), then run"
                " `trajectory-pipeline migrate` again."
            ) from error


def _migrate_once(url: str, *, rehearse: bool) -> tuple[str | None, str]:
    # SQLAlchemy would read the URL by rules of its own.
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: open_connection(url), poolclass=sa.NullPool)
    with _raising_driver_errors(), engine.begin() as connection:
        driver_connection = cast("psycopg.Connection", connection.connection.driver_connection)
        begin(driver_connection)
        _refuse_old_servers(connection, url)
        limit = sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms'")
        if rehearse:
            connection.execute(limit)
        # Only another migration waits for this lock.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('trajectory migration', 0))"))
        connection.execute(limit)
        before = _revision(connection)
        if before is not None and before not in known_revisions():
            raise SinkError(
                f"The schema {SCHEMA_NAME!r} in {describe_postgres(url)} is at revision {before}, which this version"
                f" does not know (its newest is {head_revision()}): {advice(before)}."
            )
        if before != head_revision():
            if before is None:
                _make_schema(connection)
            config = _config()
            config.attributes |= {"connection": connection, "rehearse": rehearse}
            # Alembic holds the environment of a running migration in a global.
            with _ALEMBIC:
                command.upgrade(config, "head")
        ensure_embeddings_table(driver_connection)
        complete_service_role(driver_connection)
        if before != head_revision() or not rehearse:
            # Every time: descriptions change without a migration.
            apply_comments(driver_connection)
        if rehearse:
            connection.rollback()
        return before, head_revision()


@contextmanager
def _raising_driver_errors() -> Iterator[None]:
    """Raise the errors of psycopg that SQLAlchemy wraps."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from error
        raise psycopg.DatabaseError(str(error)) from error


def _make_schema(connection: sa.Connection) -> None:
    """Create the schema, unless an administrator did for a user who may not."""
    if connection.execute(sa.text("SELECT to_regnamespace(:name)"), {"name": SCHEMA_NAME}).scalar() is None:
        connection.execute(sa.text(f"CREATE SCHEMA {SCHEMA_NAME}"))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _revision(connection: sa.Connection) -> str | None:
    if connection.execute(sa.text(f"SELECT to_regclass('{VERSION_TABLE}')")).scalar() is None:
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _refuse_old_servers(connection: sa.Connection, url: str) -> None:
    number = int(connection.execute(sa.text("SHOW server_version_num")).scalar_one())
    if number < _MINIMUM_SERVER * 10_000:
        raise SinkError(
            f"The server {describe_postgres(url)} is Postgres {number // 10_000}; {_MINIMUM_SERVER} or later is needed"
            " for TRAJECTORY_DATABASE_URL."
        )
