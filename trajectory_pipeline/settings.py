"""All settings: typed, in groups, read from the environment on request and never at import time."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trajectory_pipeline.errors import PipelineError, SettingsError
from trajectory_pipeline.partition_keys import LETTA, SOURCE_NAME, floor_to_hour, parse_timestamp
from trajectory_pipeline.schema.enums import (
    DeletedContent,
    Egress,
    FileAccess,
    JudgeMode,
    JudgeOrder,
    RedactionMode,
    ResponseFormatChoice,
)
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.urls import check_endpoint_url, normalize_postgres_url

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_OWNER = r"team:[\w.-]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}"
"""As Dagster takes it."""
LOCAL_EMBEDDING_MODEL = "wordllama"
"""The embedding model that runs in this process."""
LONGEST_RETENTION_DAYS = 36_500
"""A hundred years: longer ages could lie before the first year that a date can name."""
_PREFIX = "TRAJECTORY_"
_SIMILAR = 0.85
_RENAMED = {
    "TRAJECTORY_DELETED": "TRAJECTORY_DELETED_CONTENT",
    "TRAJECTORY_QUIET_MINUTES": "TRAJECTORY_JUDGE_SETTLE_MINUTES",
    "TRAJECTORY_HORIZON_DAYS": "TRAJECTORY_JUDGE_LOOKBACK_DAYS",
    "TRAJECTORY_JUDGE_MAX_ANSWER_TOKENS": "TRAJECTORY_JUDGE_MAX_RESPONSE_TOKENS",
}


def _utc(value: object) -> object:
    if isinstance(value, str):
        try:
            moment = parse_timestamp(value)
        except PipelineError:
            raise ValueError("must be a time such as 2025-01-01 or 2025-01-01T00:00+00:00") from None
        if moment != floor_to_hour(moment):
            raise ValueError("must be a whole hour, UTC")
        return moment
    return value


def _blank_is_unset(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _ids(value: object) -> object:
    return frozenset(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


class SourceSpec(NamedTuple):
    """A source beside the Letta database, as the settings name it: ``name=kind:place``."""

    name: str
    kind: str
    place: str


def _sources(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(_source(text.strip()) for text in value.split(";") if text.strip())


def _source(text: str) -> SourceSpec:
    name, _, rest = text.partition("=")
    kind, _, place = rest.partition(":")
    # The place may hold a password: it is not shown.
    if not SOURCE_NAME.fullmatch(name) or not kind or not place:
        raise ValueError("must be name=kind:place, with ; between two (a name is small letters, digits and _)")
    if name == LETTA:
        raise ValueError(f"has a source named {LETTA}, which is the Letta database's name: choose another")
    return SourceSpec(name, kind, place)


def _distinct_names(specs: tuple[SourceSpec, ...]) -> tuple[SourceSpec, ...]:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError("names two sources alike")
    return specs


def _listed(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _owner(value: str) -> str:
    if not re.fullmatch(_OWNER, value):
        raise ValueError(f"has {value!r}, which is neither an e-mail address nor team:name")
    return value


def _filters(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('must be JSON, such as {"outcomes": ["success"]}') from None


def _shares(value: object) -> object:
    return tuple(value.split(",")) if isinstance(value, str) else value


def _sums_up(value: tuple[float, float, float]) -> tuple[float, float, float]:
    if abs(sum(value) - 1) > 1e-9:
        raise ValueError("must add up to 1")
    return value


OptionalUrl = Annotated[Annotated[str, AfterValidator(normalize_postgres_url)] | None, BeforeValidator(_blank_is_unset)]
OptionalText = Annotated[str | None, BeforeValidator(_blank_is_unset)]
OptionalHttpUrl = Annotated[Annotated[str, AfterValidator(check_endpoint_url)] | None, BeforeValidator(_blank_is_unset)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_blank_is_unset)]
LongSecret = Annotated[Annotated[SecretStr, Field(min_length=16)] | None, BeforeValidator(_blank_is_unset)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
RetentionDays = Annotated[int, Field(ge=1, le=LONGEST_RETENTION_DAYS)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
OptionalSimilarity = Annotated[
    Annotated[float, Field(ge=0.5, le=1, allow_inf_nan=False)] | None, BeforeValidator(_blank_is_unset)
]
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Owners = Annotated[tuple[Annotated[str, AfterValidator(_owner)], ...], NoDecode, BeforeValidator(_listed)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Filters = Annotated[ExportFilters, NoDecode, BeforeValidator(_filters)]
Shares = Annotated[tuple[Share, Share, Share], NoDecode, BeforeValidator(_shares), AfterValidator(_sums_up)]
Sources = Annotated[tuple[SourceSpec, ...], NoDecode, BeforeValidator(_sources), AfterValidator(_distinct_names)]
Ids = Annotated[frozenset[str], NoDecode, BeforeValidator(_ids)]


def setting(variable: str, default: object = None, **options: Any) -> Any:
    """Return the field of one environment variable; ``options`` are those of ``pydantic.Field``."""
    return Field(default=default, alias=variable, **options)


class _Group(BaseSettings):
    """Settings of one concern. The text below a field is its description, on the settings page and in the command.

    A field's alias is its environment variable; an empty variable counts as unset.
    """

    # By alias only: under their own names, fields would read other programs' variables (DATABASE_URL).
    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Make one line of each description."""
        for field in cls.model_fields.values():
            field.description = " ".join(str(field.description).split())


class SourceSettings(_Group):
    """Sources: the Letta server's Postgres, and others."""

    postgres_url: OptionalUrl = setting("LETTA_PG_URI", repr=False)
    """The Letta server's Postgres, read only. Unset: the embedded server's database `letta`."""
    timeout_seconds: Positive = setting("TRAJECTORY_SOURCE_TIMEOUT", 600)
    """Timeout of one query to the source, in seconds. Default 600."""
    others: Sources = setting("TRAJECTORY_SOURCES", (), repr=False)
    """Sources beside the Letta database, `name=kind:place`, with `;` between two:
    `laptop=letta_code:~/.letta/lc-local-backend` (several folders with `,`), `bench=atif:s3://bucket/runs`,
    `cloud=letta_api:https://letta.example.com`. A kind with a dot is a class of yours, `module.Class`. Unset: none."""
    api_key: OptionalSecret = setting("TRAJECTORY_LETTA_API_KEY")
    """Key of the Letta servers that are read over REST. Unset: none is sent."""
    api_requests_per_minute: Positive = setting("TRAJECTORY_LETTA_API_REQUESTS_PER_MINUTE", 300)
    """The most requests a minute to a Letta server that is read over REST. Default 300."""
    stuck_hours: Positive = setting("TRAJECTORY_STUCK_HOURS", 24)
    """Age in hours after which a run that is still created or running is reported as stuck. Default 24."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all sources, the Letta database first."""
        return (LETTA, *(spec.name for spec in self.others))


class CaptureSettings(_Group):
    """Capture: which runs are captured, and when."""

    enabled: bool = setting("ENABLE_TRAJECTORY_CAPTURE", False)
    """`true`: the schedules and sensors run by default. Unset: they are defined, but stopped."""
    start: Annotated[datetime, BeforeValidator(_utc)] = setting("TRAJECTORY_START", datetime(2025, 1, 1, tzinfo=UTC))
    """First partition, a whole hour; a time without an offset is UTC. Default 2025-01-01."""
    closing_lag_minutes: int = setting("TRAJECTORY_CLOSING_LAG_MINUTES", 5, ge=0, le=1440)
    """Minutes after its end when an hour counts as closed; late rows arrive within two. Default 5."""
    deleted_content: DeletedContent = setting("TRAJECTORY_DELETED_CONTENT", DeletedContent.KEEP)
    """What happens to content that is deleted at the source: `keep` carries it forward, marked as deleted; `erase`
    removes its text from Parquet and Postgres and leaves ids, counts and times. Default `keep`."""


class StorageSettings(_Group):
    """Storage: where Parquet and the schema `trajectory` are written."""

    database_url: OptionalUrl = setting("TRAJECTORY_DATABASE_URL", repr=False)
    """Postgres 14 or later for the schema `trajectory`. Unset: the embedded server's database `trajectory`."""
    parquet_uri: OptionalText = setting("TRAJECTORY_STORAGE_URI", repr=False)
    """Folder or fsspec URL (`s3://bucket/prefix`) for Parquet. Unset: `parquet` in the data folder."""
    file_access: FileAccess = setting("TRAJECTORY_FILE_ACCESS", FileAccess.PRIVATE)
    """Who may read Parquet files in a local folder, whatever the umask: `private` (this user alone; modes 0600 and
    0700), `group` (0640, 0750) or `all` (0644, 0755). Default `private`."""
    data_folder: Path = setting("TRAJECTORY_DATA_FOLDER", Path("data"))
    """Folder for local data: the embedded server, Parquet, Dagster's logs. Default: `data` in the working
    directory."""

    @property
    def parquet_location(self) -> str:
        """Where Parquet is written: ``TRAJECTORY_STORAGE_URI``, or the folder ``parquet`` in the data folder."""
        return self.parquet_uri or str(self.data_folder.absolute() / "parquet")

    @property
    def embedded_folder(self) -> Path:
        """Folder of the embedded Postgres server."""
        return self.data_folder.absolute() / "postgres"


class DagsterSettings(_Group):
    """Dagster: its own storage and its backfills."""

    database_url: OptionalUrl = setting("DAGSTER_PG_URL", repr=False)
    """Postgres for Dagster's own storage. Unset: the embedded server's database `dagster`."""
    backfill_batch: int = setting("TRAJECTORY_BACKFILL_BATCH", 24, ge=1, le=1000)
    """Partitions per Dagster run of a backfill. Default 24."""
    owners: Owners = setting("TRAJECTORY_OWNERS", ("team:agents",))
    """Comma-separated owners of the assets, shown in the UI: e-mail addresses, or teams as `team:name`. Default
    `team:agents`."""


class NoticeSettings(_Group):
    """Notices: what is sent where a Dagster run fails."""

    webhook_url: OptionalSecret = setting("TRAJECTORY_WEBHOOK_URL")
    """Webhook that gets a message for each failed run, as Slack's incoming webhooks take it (`{"text": …}`). The
    message has no transcript and no secret. Unset: nothing is sent."""
    dagster_ui_url: OptionalHttpUrl = setting("TRAJECTORY_DAGSTER_UI_URL")
    """Address of the Dagster UI, for the links in messages and for what clients of the service request. Unset: messages
    have no link, and the service takes no requests."""


class RetentionSettings(_Group):
    """Retention: ages after which data is deleted, once a day."""

    trajectory_days: RetentionDays | None = setting("TRAJECTORY_RETENTION_DAYS")
    """Age in days, from the end of its hour, after which a partition's trajectories, quarantine, verdicts, search
    texts and embeddings are deleted from Postgres and Parquet. Unset: never."""
    raw_days: RetentionDays | None = setting("TRAJECTORY_RAW_RETENTION_DAYS")
    """The same for raw rows (`terminal_runs`); it may be shorter or longer than for trajectories. Unset: never."""
    dagster_days: int = setting("TRAJECTORY_DAGSTER_RETENTION_DAYS", 30, ge=0, le=LONGEST_RETENTION_DAYS)
    """Age in days after which this project's finished Dagster runs are deleted, with their events and compute logs.
    0: never. Default 30."""


class JudgeSettings(_Group):
    """Judge: the model, its limits, and which trajectories it judges."""

    model: OptionalText = setting("TRAJECTORY_JUDGE_MODEL")
    """Model that judges. Unset: no judge; trajectories are captured but not judged."""
    policy_file: Path | None = setting("TRAJECTORY_JUDGE_POLICY")
    """Policy file (.toml or .json) that names several judges, or samples of one, and how their votes are combined; it
    goes before TRAJECTORY_JUDGE_MODEL. Unset: one judge."""
    api_key: OptionalSecret = setting("OPENAI_API_KEY")
    """API key of the judge's provider. Not needed where OPENAI_BASE_URL is set."""
    base_url: OptionalHttpUrl = setting("OPENAI_BASE_URL", repr=False)
    """Endpoint with an OpenAI-compatible chat API: what stands before `/chat/completions`, mostly ending in `/v1`. A
    query (`?api-version=…`) is sent with each call. Unset: OpenAI itself."""
    mode: JudgeMode = setting("TRAJECTORY_JUDGE_MODE", JudgeMode.ONLINE)
    """How the judge is asked: `online` (a call for each trajectory, answered at once) or `batch` (files of calls
    through the provider's batch API: cheaper, answered within 24 hours). Default `online`."""
    batch_minutes: NonNegative = setting("TRAJECTORY_JUDGE_BATCH_MINUTES", 60)
    """In the mode `batch`: least time in minutes between two batches that the sensor submits, so that each is large.
    Default 60."""
    response_format: ResponseFormatChoice = setting("TRAJECTORY_JUDGE_FORMAT", ResponseFormatChoice.AUTO)
    """How the response schema is sent to the judge: `json_schema` (strict), `tool_call`, `prompt` (in the prompt's
    text), or `auto`: the first of these that the server accepts. Default `auto`."""
    concurrency: int = setting("TRAJECTORY_JUDGE_CONCURRENCY", 16, ge=1, le=512)
    """Concurrent calls to the judge. Default 16."""
    requests_per_minute: Positive | None = setting("TRAJECTORY_JUDGE_REQUESTS_PER_MINUTE")
    """Rate limit in calls per minute to one model at one endpoint, all workers together. Unset: no limit."""
    tokens_per_minute: int | None = setting("TRAJECTORY_JUDGE_TOKENS_PER_MINUTE", ge=1000)
    """Rate limit in tokens per minute to one model at one endpoint, all workers together: estimated prompt tokens
    plus the largest possible response. Unset: no limit."""
    timeout_seconds: float = setting("TRAJECTORY_JUDGE_TIMEOUT", 120.0, gt=0, allow_inf_nan=False)
    """Timeout of one call to the judge, in seconds. Default 120."""
    max_attempts: int = setting("TRAJECTORY_JUDGE_ATTEMPTS", 3, ge=1, le=10)
    """Calls per prompt in one materialization, where they fail with a transient error. The one repair call, and
    calls in a simpler response format after a refusal, are not counted. Default 3."""
    max_prompt_tokens: int = setting("TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS", 100_000, ge=8000)
    """Largest prompt, in estimated tokens, instructions and response schema included. Default 100000."""
    max_response_tokens: int = setting("TRAJECTORY_JUDGE_MAX_RESPONSE_TOKENS", 8000, ge=500)
    """Largest response, in tokens, hidden reasoning included (`max_completion_tokens`). It bounds the cost of a
    call. Default 8000."""
    instructions_tokens: NonNegative = setting("TRAJECTORY_JUDGE_INSTRUCTIONS_TOKENS", 6000)
    """Most estimated tokens of what the agent was told that the judge is shown before the transcript: half for the
    system prompt, three eighths for memory, an eighth for names of tools. Never more than a quarter of the largest
    prompt without its rules. 0: none of it. Default 6000."""
    earlier_turns_tokens: NonNegative = setting("TRAJECTORY_JUDGE_EARLIER_TURNS_TOKENS", 2000)
    """Most estimated tokens of earlier runs of the same conversation, shortened, that the judge is shown before the
    transcript. Never more than a quarter of the largest prompt without its rules. 0: none. Default 2000."""
    settle_minutes: NonNegative = setting("TRAJECTORY_JUDGE_SETTLE_MINUTES", 5)
    """Minutes that a trajectory must be unchanged before the sensor requests its verdict. Default 5."""
    lookback_days: NonNegative = setting("TRAJECTORY_JUDGE_LOOKBACK_DAYS", 7)
    """Age in days up to which the sensor requests verdicts; older trajectories need an explicit backfill. Default
    7."""
    order: JudgeOrder = setting("TRAJECTORY_JUDGE_ORDER", JudgeOrder.NEWEST)
    """Which trajectories are judged first, in case the budget does not cover all: `newest`, or `signals` (heuristic
    failures, disagreements, retries and tool errors first). Default `newest`."""
    give_up_after: Positive = setting("TRAJECTORY_JUDGE_GIVE_UP_AFTER", 10)
    """Failures of one verdict after which the sensor stops retrying it (first after 15 minutes, doubled each time
    up to a day); an asset check lists these. Default 10."""

    @property
    def name(self) -> str:
        """The model, or the policy file, for people."""
        return str(self.policy_file or self.model)

    @property
    def disabled_reason(self) -> str | None:
        """Why there is no judge, as a sentence that says what to set; None where there is one."""
        if self.policy_file is not None:
            return None
        if self.model is None:
            return (
                "No judge is configured: set TRAJECTORY_JUDGE_MODEL (and OPENAI_API_KEY, or OPENAI_BASE_URL for your"
                " own server)."
            )
        if self.api_key is None and self.base_url is None:
            return "The judge has no key: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that needs none."
        return None


class EmbeddingSettings(_Group):
    """Embeddings: the model by which search finds what means the same."""

    model: OptionalText = setting("TRAJECTORY_EMBEDDING_MODEL")
    """Model that embeds: `wordllama` runs in this process without a key or network (extra `embeddings`, English), any
    other name is asked for at TRAJECTORY_EMBEDDING_BASE_URL. Unset: no embeddings; search finds words alone."""
    base_url: OptionalHttpUrl = setting("TRAJECTORY_EMBEDDING_BASE_URL", repr=False)
    """Endpoint with an OpenAI-compatible embeddings API: what stands before `/embeddings`. Unset: as the judge's,
    OPENAI_BASE_URL, else OpenAI itself."""
    api_key: OptionalSecret = setting("TRAJECTORY_EMBEDDING_API_KEY")
    """API key of that endpoint. Unset: OPENAI_API_KEY, unless TRAJECTORY_EMBEDDING_BASE_URL names another endpoint."""
    dimensions: int | None = setting("TRAJECTORY_EMBEDDING_DIMENSIONS", ge=1, le=16_000)
    """Numbers of an embedding to ask for, of a model that can shorten them. Unset: as many as the model makes."""
    texts_per_call: int = setting("TRAJECTORY_EMBEDDING_BATCH", 64, ge=1, le=2048)
    """Most texts in one call. Default 64."""
    concurrency: int = setting("TRAJECTORY_EMBEDDING_CONCURRENCY", 4, ge=1, le=128)
    """Concurrent calls. Default 4."""
    requests_per_minute: Positive | None = setting("TRAJECTORY_EMBEDDING_REQUESTS_PER_MINUTE")
    """Rate limit in calls per minute to the model, all workers and searches together. Unset: no limit."""
    tokens_per_minute: int | None = setting("TRAJECTORY_EMBEDDING_TOKENS_PER_MINUTE", ge=1000)
    """Rate limit in estimated tokens per minute to the model, all workers and searches together. Unset: no limit."""
    timeout_seconds: float = setting("TRAJECTORY_EMBEDDING_TIMEOUT", 60.0, gt=0, allow_inf_nan=False)
    """Timeout of one call, in seconds. Default 60."""

    @property
    def is_local(self) -> bool:
        """Whether the model runs in this process."""
        return self.model == LOCAL_EMBEDDING_MODEL

    def disabled_reason(self, judge: JudgeSettings) -> str | None:
        """Return why there is no model, as a sentence that says what to set; None where there is one."""
        if self.model is None:
            return (
                "No embedding model is configured, so that search finds words alone: set TRAJECTORY_EMBEDDING_MODEL to"
                " `wordllama`, which needs no key, or to a model at TRAJECTORY_EMBEDDING_BASE_URL."
            )
        if self.is_local:
            missing = find_spec("wordllama") is None
            return "pip install 'trajectory-pipeline[embeddings]': it has the model `wordllama`." if missing else None
        if self.base_url is None and judge.base_url is None and self.api_key is None and judge.api_key is None:
            return (
                "The embedding model has no key: set TRAJECTORY_EMBEDDING_API_KEY or OPENAI_API_KEY, or"
                " TRAJECTORY_EMBEDDING_BASE_URL for a server that needs none."
            )
        return None


class PrivacySettings(_Group):
    """Privacy: what may be sent to the judge."""

    egress: Egress = setting("TRAJECTORY_LLM_EGRESS", Egress.ON)
    """`off`: only a judge on this machine (a loopback address, or localhost) is called. Default `on`."""
    redaction: RedactionMode = setting("TRAJECTORY_REDACT", RedactionMode.SECRETS)
    """What is replaced by placeholders before anything is sent to the judge: `secrets` (keys, tokens, passwords),
    `personal` (also email addresses, phone, card and account numbers, IP addresses) or `off`. Default `secrets`."""
    redaction_key: LongSecret = setting("TRAJECTORY_REDACTION_KEY")
    """Key for the tags in placeholders, at least 16 characters. Unset: one is generated once and stored in the
    trajectory database."""
    allow_agents: Ids = setting("TRAJECTORY_JUDGE_ALLOW_AGENTS", frozenset())
    """Comma-separated agent ids: only their trajectories are judged. Unset: all."""
    deny_agents: Ids = setting("TRAJECTORY_JUDGE_DENY_AGENTS", frozenset())
    """Comma-separated agent ids: their trajectories are never sent to a judge. Unset: none."""
    allow_organizations: Ids = setting("TRAJECTORY_JUDGE_ALLOW_ORGANIZATIONS", frozenset())
    """Comma-separated organization ids: only their trajectories are judged. Unset: all."""
    deny_organizations: Ids = setting("TRAJECTORY_JUDGE_DENY_ORGANIZATIONS", frozenset())
    """Comma-separated organization ids: their trajectories are never sent to a judge. Unset: none."""

    @property
    def configured_redaction_key(self) -> bytes | None:
        """The key as the redactor takes it; None where the stored one is used."""
        return self.redaction_key.get_secret_value().encode() if self.redaction_key else None


class BudgetSettings(_Group):
    """Budget: what judging may cost."""

    daily_usd: Usd = setting("TRAJECTORY_DAILY_BUDGET_USD", Decimal(5))
    """Cap on the cost of judging and embedding per UTC day, in US dollars, for sensors, manual runs and searches
    together: a call that could exceed it is not made. Default 5."""
    organization_daily_usd: Usd | None = setting("TRAJECTORY_ORGANIZATION_DAILY_BUDGET_USD")
    """Cap per UTC day and organization, in US dollars. Unset: no such cap."""
    materialization_usd: Usd | None = setting("TRAJECTORY_MATERIALIZATION_BUDGET_USD")
    """Cap for one materialization (a Dagster run with all its partitions), in US dollars. Unset: no such cap."""
    daily_tokens: NonNegative | None = setting("TRAJECTORY_DAILY_BUDGET_TOKENS")
    """Cap per UTC day in tokens, prompts and responses, for models without a price. Unset: no such cap."""
    materialization_tokens: NonNegative | None = setting("TRAJECTORY_MATERIALIZATION_BUDGET_TOKENS")
    """Cap for one materialization, in tokens. Unset: no such cap."""
    prices_file: Path | None = setting("TRAJECTORY_PRICES")
    """Your own price table (.json or .toml), which takes precedence over the built-in one: a list `prices` of
    `model`, `input`, `output` and optionally `cached_input` and `cache_write` (US dollars per million tokens), `batch`
    (the share of these that a batch costs) and `base_url`. Unset: the built-in table only."""
    allow_unpriced: bool = setting("TRAJECTORY_ALLOW_UNPRICED", False)
    """`true`: a model without a known price may judge; then only token caps apply, and `TRAJECTORY_DAILY_BUDGET_TOKENS`
    must be set. Unset: it is refused."""

    @model_validator(mode="after")
    def _require_token_cap(self) -> Self:
        if self.allow_unpriced and self.daily_tokens is None:
            raise ValueError(
                "TRAJECTORY_ALLOW_UNPRICED=true lets a model judge that no cap in dollars holds: set"
                " TRAJECTORY_DAILY_BUDGET_TOKENS too, or name the model in a price table (TRAJECTORY_PRICES) instead"
            )
        return self


class QualitySettings(_Group):
    """Quality: the bars that a policy's verdicts must reach, each compared with the end of a 95 % interval."""

    agreement: Share = setting("TRAJECTORY_GATE_AGREEMENT", 0.75)
    """Lowest agreement with people's labels on whether a run is a success, 0 to 1. Default 0.75."""
    abstention: Share = setting("TRAJECTORY_GATE_ABSTENTION", 0.2)
    """Highest share of verdicts that decide nothing, 0 to 1. Default 0.2."""
    verified_quotes: Share = setting("TRAJECTORY_GATE_QUOTES", 0.9)
    """Lowest share of citations whose quote is found where the judge says, 0 to 1. Default 0.9."""
    self_agreement: Share = setting("TRAJECTORY_GATE_SELF_AGREEMENT", 0.8)
    """Lowest agreement of the judge with itself on runs that were judged twice, 0 to 1. Default 0.8."""


class ExportSettings(_Group):
    """Exports: datasets that are kept up to date as assets."""

    formats: Names = setting("TRAJECTORY_EXPORTS", ())
    """Comma-separated formats, each of which is an asset `exports/FORMAT`: as `trajectory-pipeline export --help` lists
    them. That of `dpo` has no partitions: its pairs join runs of many. Unset: none."""
    uri: OptionalText = setting("TRAJECTORY_EXPORT_URI", repr=False)
    """Folder or fsspec URL for these datasets. Unset: `exports` beside the Parquet files."""
    filters: Filters = setting("TRAJECTORY_EXPORT_FILTERS", ExportFilters())
    """Which runs they hold, as JSON: `{"outcomes": ["success"], "judged_only": true, "min_confidence": 0.8,
    "min_learning_value": 0.5, "agents": [], "tools": [], "sources": [], "labels": [], "families": [],
    "completed_from": "2026-11-01", "completed_to": "2026-12-01"}`. A time without an offset is UTC. Unset: all."""
    splits: Shares = setting("TRAJECTORY_EXPORT_SPLITS", (0.8, 0.1, 0.1))
    """Shares of train, validation and test, with commas between. Default 0.8,0.1,0.1."""
    redaction: RedactionMode = setting("TRAJECTORY_EXPORT_REDACT", RedactionMode.SECRETS)
    """What is replaced in their texts: `secrets`, `personal` or `off`, as in TRAJECTORY_REDACT. Default `secrets`."""
    reasoning: bool = setting("TRAJECTORY_EXPORT_REASONING", False)
    """`true`: what models reasoned is passed on. Their terms may forbid it. Unset: it is left out."""
    near_duplicates: OptionalSimilarity = setting("TRAJECTORY_EXPORT_NEAR_DUPLICATES")
    """Leave out runs whose words are at least so similar to those of an earlier one with the same outcome, 0.5 to 1,
    such as 0.9. Needs the extra `near-duplicates`. Unset: only those that say the same, word by word."""


class Settings(BaseModel):
    """All settings, by concern. ``Settings()`` reads the environment."""

    model_config = ConfigDict(frozen=True)

    source: SourceSettings = Field(default_factory=SourceSettings)
    capture: CaptureSettings = Field(default_factory=CaptureSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    dagster: DagsterSettings = Field(default_factory=DagsterSettings)
    notices: NoticeSettings = Field(default_factory=NoticeSettings)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    judge: JudgeSettings = Field(default_factory=JudgeSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    privacy: PrivacySettings = Field(default_factory=PrivacySettings)
    budget: BudgetSettings = Field(default_factory=BudgetSettings)
    quality: QualitySettings = Field(default_factory=QualitySettings)
    export: ExportSettings = Field(default_factory=ExportSettings)


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: values are wrong, or variables have been renamed or are misspelled; the text names each and says
            what to set.
    """
    defined = {name.upper() for name, value in os.environ.items() if value}
    problems = [f"{old} is now named {new}: rename it" for old, new in _RENAMED.items() if old in defined]
    problems += _misspelled(defined)
    groups: dict[str, _Group] = {}
    for name, group in _groups().items():
        try:
            groups[name] = group()
        except ValidationError as error:
            problems.extend(_describe(problem) for problem in error.errors())
    if problems:
        raise SettingsError("; ".join(problems) + ".")
    return Settings.model_validate(groups)


def _misspelled(defined: set[str]) -> Iterator[str]:
    """Yield what to do about variables that are almost a setting: a cap that is not read would be passed unseen."""
    known = setting_fields().keys()
    # A container's secret is in a file, whose name such a variable holds.
    ours = (name for name in defined if name.startswith(_PREFIX) and not name.endswith("_FILE"))
    for name in sorted(set(ours) - known - _RENAMED.keys()):
        if meant := difflib.get_close_matches(name, known, 1, _SIMILAR):
            yield f"{name} is no setting: write {meant[0]}"


def _describe(problem: "ErrorDetails") -> str:
    variable = ".".join(map(str, problem["loc"]))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{variable} {text}".lstrip()
    return f"{variable} is wrong: {text[0].lower()}{text[1:]}"


def _groups() -> dict[str, type[_Group]]:
    return {name: cast("type[_Group]", field.annotation) for name, field in Settings.model_fields.items()}


def setting_groups() -> dict[str, dict[str, FieldInfo]]:
    """Return for each group's heading its environment variables, in order, with their types and descriptions."""
    return {
        str(group.__doc__): {str(field.alias): field for field in group.model_fields.values()}
        for group in _groups().values()
    }


def setting_fields() -> dict[str, FieldInfo]:
    """Return every environment variable, in order, with its type and description."""
    return {name: field for fields in setting_groups().values() for name, field in fields.items()}
