"""Resources: what the assets and sensors reach out to, as the settings name it.

Belongs here: thin wrappers around the middle floor's objects. Does not belong here: any work, and opening a connection
while the definitions load.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from trajectory_pipeline.databases import Databases, resolve_databases
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.settings import Settings

if TYPE_CHECKING:
    # What reads Arrow or speaks HTTP is imported by a run that needs it, not by every process that loads definitions.
    from trajectory_pipeline.judge.config import JudgeConfig
    from trajectory_pipeline.letta.snapshot import LettaSource
    from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
    from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class PipelineResource:
    """The source, the sinks and the judge.

    Not a ``ConfigurableResource``: Dagster makes a new object of that class from its public fields for every run, so
    that settings given to it would be lost, silently, for those of the environment; and secrets would be fields in
    the UI.

    Attributes:
        settings: that name all of them; nothing is opened before it is asked for.
    """

    settings: Settings

    @cached_property
    def _endpoints(self) -> Databases:
        return resolve_databases(self.settings)

    @property
    def source(self) -> "LettaSource":
        """The Letta database."""
        from trajectory_pipeline.letta.snapshot import LettaSource

        return LettaSource(self._endpoints.letta_url, self.settings.source.timeout_seconds)

    @property
    def storage(self) -> "Storage":
        """Both sinks."""
        from trajectory_pipeline.storage.storage import Storage

        return Storage.at(self.settings.storage.parquet_location, self._endpoints.database_url)

    @property
    def database(self) -> "TrajectoryDatabase":
        """The trajectory database."""
        from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

        return TrajectoryDatabase(self._endpoints.database_url)

    @property
    def judge(self) -> "JudgeConfig":
        """The judge.

        Raises:
            JudgeError: none is configured; the text says what to set.
            SettingsError: the price table cannot be read.
        """
        from trajectory_pipeline.budget.caps import Budget
        from trajectory_pipeline.budget.prices import load_prices
        from trajectory_pipeline.judge.access_lists import JudgeAccessList
        from trajectory_pipeline.judge.config import OPENAI_URL, JudgeConfig

        settings = self.settings
        if settings.judge.disabled_reason or settings.judge.model is None:
            raise JudgeError(settings.judge.disabled_reason or "No judge is configured.")
        key = settings.judge.api_key
        return JudgeConfig(
            model=settings.judge.model,
            base_url=settings.judge.base_url or OPENAI_URL,
            # A server of one's own asks for none, and the client insists on one.
            api_key=key.get_secret_value() if key else "not-needed",
            timeout_seconds=settings.judge.timeout_seconds,
            max_attempts=settings.judge.max_attempts,
            max_prompt_tokens=settings.judge.max_prompt_tokens,
            max_response_tokens=settings.judge.max_response_tokens,
            local_only=settings.privacy.egress == "off",
            response_format=settings.judge.response_format,
            requests_per_minute=settings.judge.requests_per_minute,
            tokens_per_minute=settings.judge.tokens_per_minute,
            concurrency=settings.judge.concurrency,
            redaction=settings.privacy.redaction,
            redaction_key=self.redaction_key,
            access=JudgeAccessList(
                settings.privacy.allow_agents,
                settings.privacy.deny_agents,
                settings.privacy.allow_organizations,
                settings.privacy.deny_organizations,
            ),
            budget=Budget(
                daily_usd=settings.budget.daily_usd,
                organization_usd=settings.budget.organization_daily_usd,
                materialization_usd=settings.budget.materialization_usd,
                daily_tokens=settings.budget.daily_tokens,
                materialization_tokens=settings.budget.materialization_tokens,
                prices=load_prices(settings.budget.prices_file),
                allow_unpriced=settings.budget.allow_unpriced,
            ),
        )

    @property
    def redaction_key(self) -> bytes | None:
        """The key of placeholders, where one is set."""
        key = self.settings.privacy.redaction_key
        return key.get_secret_value().encode() if key else None
