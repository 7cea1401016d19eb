"""The databases and storage that the settings name, opened for one command."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trajectory_pipeline.cli.console import err
from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.errors import MissingTableError, SettingsError
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.source_protocol import Source
from trajectory_pipeline.sources.kinds import Access, open_source
from trajectory_pipeline.storage.storage import Storage

if TYPE_CHECKING:
    from trajectory_pipeline.letta.snapshot import LettaSource


@dataclass(frozen=True)
class Connections:
    """Source and sinks; each connects only when it is used."""

    settings: Settings
    databases: Databases
    storage: Storage

    @cached_property
    def source(self) -> "LettaSource":
        """The Letta database."""
        # Its driver is half of the memory of a command that does not use it.
        from trajectory_pipeline.letta.snapshot import LettaSource

        return LettaSource(self.databases.letta_url, self.settings.source.timeout_seconds)

    def others(self) -> list[Source]:
        """Return the sources beside the Letta database. Raises ``SettingsError`` if one is of an unknown kind."""
        settings = self.settings.source
        key = settings.api_key.get_secret_value() if settings.api_key else None
        access = Access(key, settings.api_requests_per_minute)
        return [open_source(spec, access) for spec in settings.others]

    def has_letta(self) -> bool:
        """Whether there is a Letta database: not where none is set, other sources are, and the embedded one is empty.

        Raises:
            SourceError: it cannot be reached.
        """
        settings = self.settings.source
        if settings.postgres_url or not settings.others:
            return True
        try:
            with self.source.snapshot():
                return True
        except MissingTableError:
            return False

    def source_named(self, name: str) -> Source:
        """Return a source by its name; ``letta`` is the Letta database.

        Raises:
            SettingsError: no source has that name.
        """
        sources: list[Source] = [self.source, *self.others()]
        for source in sources:
            if source.name == name:
                return source
        raise SettingsError(
            f"There is no source {name}: there are {', '.join(source.name for source in sources)} (TRAJECTORY_SOURCES)."
        )


def open_connections(report: Callable[[str], None] | None = None) -> Connections:
    """Read the settings and return what they name; starts the embedded server if a URL is unset.

    ``report`` is called with a sentence about what takes more than two seconds.

    Raises:
        PipelineError: a setting is wrong, or the embedded server cannot be started.
    """
    settings = load_settings()
    databases = databases_of(settings, report)
    return Connections(
        settings,
        databases,
        Storage.at(settings.storage.parquet_location, databases.database_url, settings.storage.file_access),
    )


def databases_of(settings: Settings, report: Callable[[str], None] | None = None) -> Databases:
    """Return the databases that the settings name; says so where it makes the embedded ones, which are empty.

    Raises:
        EmbeddedPostgresError: the embedded server cannot be started.
    """
    folder = settings.storage.embedded_folder
    is_new = not folder.exists()
    databases = resolve_databases(settings, report)
    if databases.embedded and is_new:
        err.print(
            f"New, empty databases were made in {folder}, for a URL is unset. To use others, set"
            " TRAJECTORY_DATABASE_URL and LETTA_PG_URI, or TRAJECTORY_DATA_FOLDER (data/demo: the demonstration's)."
        )
    return databases


@dataclass(frozen=True)
class Sinks:
    """The sinks alone, for a command that needs neither the source nor Dagster."""

    settings: Settings
    storage: Storage


def open_sinks() -> Sinks:
    """Read the settings and return the sinks; starts the embedded server if TRAJECTORY_DATABASE_URL is unset.

    Raises:
        PipelineError: a setting is wrong, or the embedded server cannot be started.
    """
    settings = load_settings()
    url = settings.storage.database_url or databases_of(settings).database_url
    location = settings.storage.parquet_location
    return Sinks(settings, Storage.at(location, url, settings.storage.file_access))
