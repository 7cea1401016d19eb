"""Which databases are used: those in the settings, else those of the embedded server, which is offered only here."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from trajectory_pipeline.errors import EmbeddedPostgresError, SettingsError
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import normalize_postgres_url, sqlalchemy_url

if TYPE_CHECKING:
    from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer

LETTA_DATABASE = "letta"
TRAJECTORY_DATABASE = "trajectory"
DAGSTER_DATABASE = "dagster"
_DAGSTER_DRIVER = "psycopg2"


@dataclass(frozen=True)
class Databases:
    """The URLs in use, whether any of them is ``embedded``, and the ``server``, if this process holds it."""

    letta_url: str = field(repr=False)
    database_url: str = field(repr=False)
    dagster_url: str = field(repr=False)
    embedded: bool = field(kw_only=True)
    server: "EmbeddedServer | None" = field(default=None, repr=False, compare=False, kw_only=True)

    def release(self) -> None:
        """Release the embedded server; wait until it is down if no other process uses it."""
        if self.server is not None:
            self.server.release()

    def environment(self) -> dict[str, str]:
        """Return the variables that hand these URLs to other processes; Dagster's with the driver that it needs."""
        return {
            "LETTA_PG_URI": self.letta_url,
            "TRAJECTORY_DATABASE_URL": self.database_url,
            "DAGSTER_PG_URL": sqlalchemy_url(self.dagster_url, _DAGSTER_DRIVER),
        }


def require_dagster_driver() -> None:
    """Refuse a ``DAGSTER_PG_URL`` that Dagster's own processes read with a driver other than theirs.

    Raises:
        SettingsError: the text says what the URL must begin with.
    """
    scheme, separator, _ = os.environ.get("DAGSTER_PG_URL", "").strip().partition("://")
    expected = sqlalchemy_url("postgresql", _DAGSTER_DRIVER)
    if separator and scheme != expected:
        raise SettingsError(
            f"DAGSTER_PG_URL must begin with {expected}:// for Dagster's webserver, daemon and code server: with"
            " another driver, or none, every run would fail. (`trajectory-pipeline dev`, `demo` and `materialize` add"
            " it.)"
        )


def resolve_databases(settings: Settings, report: Callable[[str], None] | None = None) -> Databases:
    """Return the databases to use; starts the embedded server if a URL is unset.

    The embedded server is held until this process ends. Only its own trajectory database is migrated.

    Raises:
        EmbeddedPostgresError: the embedded server cannot be started.
    """
    given = _given_urls(settings)
    if all(given.values()):
        return Databases(*given.values(), embedded=False)
    from trajectory_pipeline.demo import embedded_postgres

    server = embedded_postgres.start(settings.storage.embedded_folder, report=report)
    urls = [url or _ready(server, name) for name, url in given.items()]
    return Databases(*urls, embedded=True, server=server)


def running_databases(settings: Settings) -> Databases:
    """Return the databases in use without starting anything.

    Raises:
        EmbeddedPostgresError: a URL is unset, and the embedded server does not run.
    """
    given = _given_urls(settings)
    if all(given.values()):
        return Databases(*given.values(), embedded=False)
    from trajectory_pipeline.demo import embedded_postgres

    server = embedded_postgres.running(settings.storage.embedded_folder)
    if server is None:
        raise EmbeddedPostgresError(
            f"The embedded server in {settings.storage.embedded_folder} does not run: start `trajectory-pipeline demo`"
            " or `dev` (with the same TRAJECTORY_DATA_FOLDER), or set the databases' URLs."
        )
    return Databases(*(url or server.url(name) for name, url in given.items()), embedded=True)


def _given_urls(settings: Settings) -> dict[str, str]:
    """Return the URL of each database by its embedded name; empty where none is set."""
    return {
        LETTA_DATABASE: settings.source.postgres_url or "",
        TRAJECTORY_DATABASE: settings.storage.database_url or "",
        DAGSTER_DATABASE: settings.dagster.database_url or "",
    }


def remove_embedded_server(folder: Path) -> None:
    """Stop the embedded server in a folder and delete it with all its data; nothing to do where there is none.

    Raises:
        EmbeddedPostgresError: it is in use, or cannot be deleted.
    """
    if folder.exists():
        from trajectory_pipeline.demo import embedded_postgres

        embedded_postgres.remove(folder)


def database_or_embedded(url: str | None, name: str, embedded_folder: Path) -> str:
    """Return a database's URL: the given one, else the embedded server's, which is started and held by this process.

    The embedded trajectory database is migrated.

    Raises:
        EmbeddedPostgresError: the embedded server cannot be started.
    """
    return normalize_postgres_url(url) if url else _embedded_database(name, embedded_folder)


@cache
def _embedded_database(name: str, folder: Path) -> str:
    return _ready(_embedded_server(folder), name)


@cache
def _embedded_server(folder: Path) -> "EmbeddedServer":
    from trajectory_pipeline.demo import embedded_postgres

    return embedded_postgres.start(folder)


def _ready(server: "EmbeddedServer", name: str) -> str:
    """Create an embedded database unless it exists, migrate the trajectory database, and return the URL."""
    from trajectory_pipeline.storage.postgres.migrate import migrate

    server.ensure_database(name)
    url = server.url(name)
    if name == TRAJECTORY_DATABASE:
        migrate(url)
    return url
