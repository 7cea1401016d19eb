"""What assets, sensors and schedules connect to: the Letta database, storage, the judge and its budget.

Dagster rebuilds a resource from its public fields for every run, and shows these fields in the UI. So everything that a
resource needs is a public field, and ``build_resources`` passes a secret as the name of its environment variable.
"""

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Self

import dagster as dg
from pydantic import PrivateAttr

from trajectory_pipeline.databases import LETTA_DATABASE, TRAJECTORY_DATABASE, database_or_embedded
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.schema.enums import RedactionMode, ResponseFormatChoice
from trajectory_pipeline.settings import Settings

if TYPE_CHECKING:
    # Imports Arrow or an HTTP client: only for a run that needs it, not for every process that loads definitions.
    from trajectory_pipeline.budget.caps import Budget
    from trajectory_pipeline.judge.config import JudgeConfig
    from trajectory_pipeline.letta.snapshot import LettaSource
    from trajectory_pipeline.storage.storage import Storage


class LettaResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The Letta server's Postgres, which is read and never written. Without a URL: the embedded server's database."""

    postgres_url: str | None
    timeout_seconds: int
    embedded_folder: str
    _url: str = PrivateAttr()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the resource with the settings' values, secrets included."""
        source = settings.source
        return cls(
            postgres_url=source.postgres_url,
            timeout_seconds=source.timeout_seconds,
            embedded_folder=str(settings.storage.embedded_folder),
        )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Start the embedded server if there is no URL."""
        self._url = database_or_embedded(self.postgres_url, LETTA_DATABASE, Path(self.embedded_folder))

    def source(self, *, max_timeout_seconds: int | None = None) -> "LettaSource":
        """Return the Letta database; no query takes longer than the configured or the given timeout."""
        from trajectory_pipeline.letta.snapshot import LettaSource

        return LettaSource(self._url, min(self.timeout_seconds, max_timeout_seconds or self.timeout_seconds))


class StorageResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Parquet files and the Postgres schema ``trajectory``. Without a database URL: the embedded server's database."""

    parquet_uri: str
    database_url: str | None
    embedded_folder: str
    _url: str = PrivateAttr()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the resource with the settings' values, secrets included."""
        storage = settings.storage
        return cls(
            parquet_uri=storage.parquet_location,
            database_url=storage.database_url,
            embedded_folder=str(storage.embedded_folder),
        )

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Start the embedded server and migrate its database if there is no URL."""
        self._url = database_or_embedded(self.database_url, TRAJECTORY_DATABASE, Path(self.embedded_folder))

    def sinks(self) -> "Storage":
        """Return both sinks; nothing is connected yet."""
        from trajectory_pipeline.storage.storage import Storage

        return Storage.at(self.parquet_uri, self._url)


class JudgeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The model that judges, and what it may be sent."""

    disabled_reason: str | None
    model: str | None
    base_url: str | None
    api_key: str | None
    timeout_seconds: float
    max_attempts: int
    max_prompt_tokens: int
    max_response_tokens: int
    response_format: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int
    egress: str
    redaction: str
    redaction_key: str | None
    allow_agents: list[str]
    deny_agents: list[str]
    allow_organizations: list[str]
    deny_organizations: list[str]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the resource with the settings' values, secrets included."""
        judge, privacy = settings.judge, settings.privacy
        return cls(
            disabled_reason=judge.disabled_reason,
            model=judge.model,
            base_url=judge.base_url,
            api_key=judge.api_key.get_secret_value() if judge.api_key else None,
            timeout_seconds=judge.timeout_seconds,
            max_attempts=judge.max_attempts,
            max_prompt_tokens=judge.max_prompt_tokens,
            max_response_tokens=judge.max_response_tokens,
            response_format=judge.response_format,
            requests_per_minute=judge.requests_per_minute,
            tokens_per_minute=judge.tokens_per_minute,
            concurrency=judge.concurrency,
            egress=privacy.egress,
            redaction=privacy.redaction,
            redaction_key=privacy.redaction_key.get_secret_value() if privacy.redaction_key else None,
            allow_agents=sorted(privacy.allow_agents),
            deny_agents=sorted(privacy.deny_agents),
            allow_organizations=sorted(privacy.allow_organizations),
            deny_organizations=sorted(privacy.deny_organizations),
        )

    def config(self, budget: "BudgetResource") -> "JudgeConfig":
        """Return the judge with its limits and budget.

        Raises:
            JudgeError: no judge is configured; the text says what to set.
            SettingsError: the price table cannot be read.
        """
        from trajectory_pipeline.judge.access_lists import JudgeAccessList
        from trajectory_pipeline.judge.config import OPENAI_URL, JudgeConfig

        if self.disabled_reason or self.model is None:
            raise JudgeError(self.disabled_reason or "No judge is configured.")
        return JudgeConfig(
            model=self.model,
            base_url=self.base_url or OPENAI_URL,
            # The client insists on a key, which a server of one's own may not need.
            api_key=self.api_key or "not-needed",
            timeout_seconds=self.timeout_seconds,
            max_attempts=self.max_attempts,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            local_only=self.egress == "off",
            response_format=ResponseFormatChoice(self.response_format),
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            concurrency=self.concurrency,
            redaction=RedactionMode(self.redaction),
            redaction_key=self.redaction_key.encode() if self.redaction_key else None,
            access=JudgeAccessList(
                frozenset(self.allow_agents),
                frozenset(self.deny_agents),
                frozenset(self.allow_organizations),
                frozenset(self.deny_organizations),
            ),
            budget=budget.budget(),
        )


class BudgetResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """What judging may cost. Amounts in US dollars are decimal numbers as text."""

    daily_usd: str
    organization_daily_usd: str | None
    materialization_usd: str | None
    daily_tokens: int | None
    materialization_tokens: int | None
    prices_file: str | None
    allow_unpriced: bool

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the resource with the settings' values."""
        return cls(**settings.budget.model_dump(mode="json"))

    def budget(self) -> "Budget":
        """Return the caps, with the prices that apply.

        Raises:
            SettingsError: the price table cannot be read.
        """
        from trajectory_pipeline.budget.caps import Budget
        from trajectory_pipeline.budget.prices import load_prices

        return Budget(
            daily_usd=Decimal(self.daily_usd),
            organization_usd=_decimal(self.organization_daily_usd),
            materialization_usd=_decimal(self.materialization_usd),
            daily_tokens=self.daily_tokens,
            materialization_tokens=self.materialization_tokens,
            prices=load_prices(Path(self.prices_file) if self.prices_file else None),
            allow_unpriced=self.allow_unpriced,
        )


def judge_config(settings: Settings) -> "JudgeConfig":
    """Return the judge that the settings name, for use outside Dagster.

    Raises:
        JudgeError: no judge is configured; the text says what to set.
        SettingsError: the price table cannot be read.
    """
    return JudgeResource.from_settings(settings).config(BudgetResource.from_settings(settings))


def build_resources(settings: Settings) -> dict[str, object]:
    """Return the resources by key. A value that may hold a secret is an ``EnvVar``, which each run reads."""
    parquet = {"parquet_uri": "TRAJECTORY_STORAGE_URI"} if settings.storage.parquet_uri else {}
    return {
        "letta": _with_env_vars(LettaResource.from_settings(settings), postgres_url="LETTA_PG_URI"),
        "storage": _with_env_vars(
            StorageResource.from_settings(settings), database_url="TRAJECTORY_DATABASE_URL", **parquet
        ),
        "judge": _with_env_vars(
            JudgeResource.from_settings(settings),
            base_url="OPENAI_BASE_URL",
            api_key="OPENAI_API_KEY",
            redaction_key="TRAJECTORY_REDACTION_KEY",
        ),
        "budget": BudgetResource.from_settings(settings),
    }


def _with_env_vars(resource: "dg.ConfigurableResource[object]", **variables: str) -> "dg.ConfigurableResource[object]":
    """Return the resource with those of these fields that are set replaced by their environment variables."""
    values = dict(resource)
    env_vars = {field: dg.EnvVar(name) for field, name in variables.items() if values[field] is not None}
    return type(resource)(**{**values, **env_vars})


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
