"""Which databases are used: the ones that the settings name, else the embedded server's.

Belongs here: the fallback, and making the embedded databases ready. Does not belong here: running the server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import sqlalchemy_url

if TYPE_CHECKING:
    from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer

LETTA_DATABASE = "letta"
TRAJECTORY_DATABASE = "trajectory"
DAGSTER_DATABASE = "dagster"
_NAMES = (LETTA_DATABASE, TRAJECTORY_DATABASE, DAGSTER_DATABASE)


@dataclass(frozen=True)
class Databases:
    """The URLs in use.

    Attributes:
        letta_url: the source.
        database_url: the schema ``trajectory``.
        dagster_url: Dagster's own storage.
        embedded: whether any of them is the embedded server.
        server: the embedded server, where this process holds it.
    """

    letta_url: str = field(repr=False)
    database_url: str = field(repr=False)
    dagster_url: str = field(repr=False)
    embedded: bool
    server: "EmbeddedServer | None" = field(default=None, repr=False, compare=False)

    def release(self) -> None:
        """Let go of the embedded server, and wait until it is down if nobody else uses it."""
        if self.server is not None:
            self.server.release()

    def environment(self) -> dict[str, str]:
        """Return the variables that hand these URLs to other processes; Dagster's with the driver that it needs."""
        return {
            "LETTA_PG_URI": self.letta_url,
            "TRAJECTORY_DATABASE_URL": self.database_url,
            "DAGSTER_PG_URL": sqlalchemy_url(self.dagster_url, "psycopg2"),
        }


def resolve_databases(settings: Settings, report: Callable[[str], None] | None = None) -> Databases:
    """Return the databases to use, and start the embedded server if a setting leaves one open.

    The embedded server is held until this process ends. Its trajectory database is migrated; one that a setting names
    is left as it is.

    Raises:
        EmbeddedPostgresError: the embedded server cannot be started.
    """
    given = (settings.source.postgres_url, settings.storage.database_url, settings.dagster.database_url)
    if all(given):
        letta, database, dagster = given
        return Databases(str(letta), str(database), str(dagster), embedded=False)
    # Only needed where there is no Postgres.
    from trajectory_pipeline.demo import embedded_postgres
    from trajectory_pipeline.storage.postgres.migrate import migrate

    server = embedded_postgres.start(settings.storage.embedded_folder, report=report)
    for url, name in zip(given, _NAMES, strict=True):
        if url is None:
            server.ensure_database(name)
    endpoints = replace(_with_fallback(given, server), server=server)
    if settings.storage.database_url is None:
        migrate(endpoints.database_url)
    return endpoints


def running_databases(settings: Settings) -> Databases:
    """Return the databases in use without starting anything.

    Raises:
        EmbeddedPostgresError: a setting leaves one open, and the embedded server does not run.
    """
    given = (settings.source.postgres_url, settings.storage.database_url, settings.dagster.database_url)
    if all(given):
        letta, database, dagster = given
        return Databases(str(letta), str(database), str(dagster), embedded=False)
    from trajectory_pipeline.demo import embedded_postgres

    server = embedded_postgres.running(settings.storage.embedded_folder)
    if server is None:
        raise EmbeddedPostgresError(
            f"The embedded server in {settings.storage.embedded_folder} does not run: start `trajectory-pipeline"
            " demo` or `dev`"
            " (with the same TRAJECTORY_DATA_FOLDER), or set the databases' URLs."
        )
    return _with_fallback(given, server)


def remove_embedded_server(folder: Path) -> None:
    """Stop the embedded server in a folder and delete it with all its data; nothing to do where there is none.

    Raises:
        EmbeddedPostgresError: it is in use, or cannot be deleted.
    """
    if folder.exists():
        from trajectory_pipeline.demo import embedded_postgres

        embedded_postgres.remove(folder)


def _with_fallback(given: Sequence[str | None], server: "EmbeddedServer") -> Databases:
    letta, database, dagster = (url or server.url(name) for url, name in zip(given, _NAMES, strict=True))
    return Databases(letta, database, dagster, embedded=True)
