"""What assets, sensors and schedules connect to: the sources, storage, the judge and its budget.

Dagster rebuilds a resource from its fields for every run, and shows these fields in the UI. So everything that a
resource needs is a field, and a value that may hold a secret is an ``EnvVar``, which each run reads.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.databases import LETTA_DATABASE, TRAJECTORY_DATABASE, database_or_embedded
from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.pipeline.configured_models import build_embedder, build_redactor, judge_config
from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.settings import (
    BudgetSettings,
    EmbeddingSettings,
    JudgeSettings,
    PrivacySettings,
    Settings,
    SourceSettings,
)

if TYPE_CHECKING:
    # Imports Arrow or an HTTP client: only for a run that needs it, not for every process that loads definitions.
    from trajectory_pipeline.judge.config import JudgeConfig
    from trajectory_pipeline.judge.redaction.redactor import Redactor
    from trajectory_pipeline.pipeline.embed import Embedder
    from trajectory_pipeline.source_protocol import Source
    from trajectory_pipeline.storage.storage import Storage

Values = dict[str, Any | None]
"""Settings that are no secret, by environment variable."""


class SourcesResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The Letta server's Postgres and the sources beside it, which are read and never written.

    Without a URL of Postgres: the embedded server, when used.
    """

    postgres_url: str | None
    timeout_seconds: int
    embedded_folder: str
    declared: str | None
    api_key: str | None
    requests_per_minute: int

    def source(self, name: str = LETTA, *, max_timeout_seconds: int | None = None) -> "Source":
        """Return a source by its name; no query of a database takes longer than the configured or the given timeout.

        Raises ``SettingsError`` if it is declared no more, or its kind is unknown.
        """
        if name == LETTA:
            from trajectory_pipeline.letta.snapshot import LettaSource

            url = database_or_embedded(self.postgres_url, LETTA_DATABASE, Path(self.embedded_folder))
            return LettaSource(url, min(self.timeout_seconds, max_timeout_seconds or self.timeout_seconds))
        from trajectory_pipeline.sources.kinds import Access, open_source

        settings = SourceSettings.model_validate({"TRAJECTORY_SOURCES": self.declared or ""})
        for spec in settings.others:
            if spec.name == name:
                return open_source(spec, Access(self.api_key, self.requests_per_minute))
        raise SettingsError(f"TRAJECTORY_SOURCES names no source {name}: restart Dagster's processes after a change.")


class StorageResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Parquet files and the Postgres schema ``trajectory``. Without a database URL: the embedded server, when used."""

    parquet_location: str
    file_access: str
    database_url: str | None
    embedded_folder: str

    def sinks(self) -> "Storage":
        """Return both sinks."""
        from trajectory_pipeline.storage.storage import Storage

        url = database_or_embedded(self.database_url, TRAJECTORY_DATABASE, Path(self.embedded_folder))
        return Storage.at(self.parquet_location, url, FileAccess(self.file_access))


class BudgetResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What judging may cost."""

    settings: Values


class JudgeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The model that judges, and what it may be sent."""

    settings: Values
    base_url: str | None
    api_key: str | None
    redaction_key: str | None

    def config(self, budget: BudgetResource) -> "JudgeConfig":
        """Return the judge with its limits and budget. Raises what ``judge_config`` raises."""
        values = {
            **self.settings,
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_KEY": self.api_key,
            "TRAJECTORY_REDACTION_KEY": self.redaction_key,
        }
        return judge_config(
            JudgeSettings.model_validate(values),
            PrivacySettings.model_validate(values),
            BudgetSettings.model_validate(budget.settings),
        )


class EmbeddingResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The model that embeds search texts, and what is redacted from these."""

    settings: Values
    base_url: str | None
    api_key: str | None
    judge_base_url: str | None
    judge_api_key: str | None
    redaction_key: str | None

    def embedder(self, budget: BudgetResource) -> "tuple[Embedder | None, str]":
        """Return the model; or None, and why there is none. Raises what ``build_embedder`` raises."""
        values = self._values()
        return build_embedder(
            EmbeddingSettings.model_validate(values),
            JudgeSettings.model_validate(values),
            PrivacySettings.model_validate(values),
            BudgetSettings.model_validate(budget.settings),
        )

    def redactor(self, storage: "Storage") -> "Redactor":
        """Return the redactor of the judge's prompts. Raises ``SinkError`` if its stored key cannot be read."""
        return build_redactor(PrivacySettings.model_validate(self._values()), storage)

    def _values(self) -> Values:
        return {
            **self.settings,
            "TRAJECTORY_EMBEDDING_BASE_URL": self.base_url,
            "TRAJECTORY_EMBEDDING_API_KEY": self.api_key,
            "OPENAI_BASE_URL": self.judge_base_url,
            "OPENAI_API_KEY": self.judge_api_key,
            "TRAJECTORY_REDACTION_KEY": self.redaction_key,
        }


def build_resources(settings: Settings) -> dict[str, "dg.ConfigurableResource[object]"]:
    """Return the resources by key."""
    storage, judge, privacy = settings.storage, settings.judge, settings.privacy
    embedded_folder = str(storage.embedded_folder)
    return {
        "sources": SourcesResource(
            postgres_url=_env_var("LETTA_PG_URI", settings.source.postgres_url),
            timeout_seconds=settings.source.timeout_seconds,
            embedded_folder=embedded_folder,
            declared=_env_var("TRAJECTORY_SOURCES", settings.source.others or None),
            api_key=_env_var("TRAJECTORY_LETTA_API_KEY", settings.source.api_key),
            requests_per_minute=settings.source.api_requests_per_minute,
        ),
        "storage": StorageResource(
            parquet_location=_env_var("TRAJECTORY_STORAGE_URI", storage.parquet_uri) or storage.parquet_location,
            file_access=storage.file_access,
            database_url=_env_var("TRAJECTORY_DATABASE_URL", storage.database_url),
            embedded_folder=embedded_folder,
        ),
        "judge": JudgeResource(
            settings={
                **judge.model_dump(mode="json", by_alias=True, exclude={"base_url", "api_key"}),
                **privacy.model_dump(mode="json", by_alias=True, exclude={"redaction_key"}),
            },
            base_url=_env_var("OPENAI_BASE_URL", judge.base_url),
            api_key=_env_var("OPENAI_API_KEY", judge.api_key),
            redaction_key=_env_var("TRAJECTORY_REDACTION_KEY", privacy.redaction_key),
        ),
        "embedding": EmbeddingResource(
            settings={
                **settings.embedding.model_dump(mode="json", by_alias=True, exclude={"base_url", "api_key"}),
                **privacy.model_dump(mode="json", by_alias=True, exclude={"redaction_key"}),
            },
            base_url=_env_var("TRAJECTORY_EMBEDDING_BASE_URL", settings.embedding.base_url),
            api_key=_env_var("TRAJECTORY_EMBEDDING_API_KEY", settings.embedding.api_key),
            judge_base_url=_env_var("OPENAI_BASE_URL", judge.base_url),
            judge_api_key=_env_var("OPENAI_API_KEY", judge.api_key),
            redaction_key=_env_var("TRAJECTORY_REDACTION_KEY", privacy.redaction_key),
        ),
        "budget": BudgetResource(settings=settings.budget.model_dump(mode="json", by_alias=True)),
    }


def _env_var(name: str, value: object) -> dg.EnvVar | None:
    return None if value is None else dg.EnvVar(name)
