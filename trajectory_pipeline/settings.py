"""All settings, typed, read from the environment when asked for and never at import time.

Belongs here: each variable's name, type, default and meaning. Does not belong here: what follows from a value.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trajectory_pipeline.errors import SettingsError

DEFAULT_DATA_FOLDER = Path("data")
LONGEST_RETENTION_DAYS = 36_500
"""A hundred years: longer ages could lie before the first year that a date can name."""


def normalize_postgres_url(url: str) -> str:
    """Return a Postgres URL as libpq and our engines take it: ``postgresql://…``, without a driver.

    Raises:
        ValueError: it is no Postgres URL, or names no host or database.
    """
    match = re.match(r"^(postgres|postgresql)(\+[a-z0-9_]+)?://", url)
    if not match:
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    normal = "postgresql://" + url[match.end() :]
    if _misread(normal):
        raise ValueError(
            "holds a character that must be percent-encoded in a user name or password (/ is %2F, @ is %40, % is %25)"
        )
    form = "it must look like postgresql://user:password@host:5432/database"
    try:
        parts = urlsplit(normal)
    except ValueError:
        raise ValueError(f"has a host that cannot be read; {form}") from None
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"has a port that is not a number; {form}") from None
    if not parts.path.strip("/"):
        raise ValueError(f"names no database; {form}")
    return normal


def _misread(url: str) -> bool:
    """Whether a piece of the password would be taken for a host, a port or a database, and be shown as one."""
    login, at, address = url.partition("://")[2].partition("?")[0].partition("@")
    malformed = re.search(r"%(?![0-9a-fA-F]{2})", url) is not None
    return malformed or (bool(at) and ("/" in login or "#" in login)) or "@" in address


def sqlalchemy_url(url: str, driver: str) -> str:
    """Return a normalised URL for SQLAlchemy with a driver (``psycopg``, or ``psycopg2`` for Dagster's storage)."""
    return "postgresql+" + driver + url.removeprefix("postgresql")


def without_password(url: str) -> str:
    """Return a database URL as it may be shown: ``host:port/database``, no user and no password."""
    try:
        parts = urlsplit(url)
        port = parts.port or 5432
    except ValueError:
        return "(unreadable URL)"
    if _misread(url):
        return "(unreadable URL)"
    return f"{parts.hostname or 'localhost'}:{port}{parts.path}"


def _url(value: str) -> str:
    return normalize_postgres_url(value)


def _utc(value: object) -> object:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError("must be a time such as 2025-01-01 or 2025-01-01T00:00+00:00") from None
        if moment.minute or moment.second or moment.microsecond:
            raise ValueError("must be a whole hour, UTC")
        return moment
    return value


def _blank_is_unset(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _http_url(value: str) -> str:
    if not re.match(r"^https?://[^/?#]", value):
        raise ValueError("must look like https://host/v1 (with http:// or https://)")
    if "@" in value:
        raise ValueError("must hold no user and no password: the key goes into OPENAI_API_KEY")
    return value


def _ids(value: object) -> object:
    return frozenset(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


PostgresUrl = Annotated[str, AfterValidator(_url)]
OptionalUrl = Annotated[PostgresUrl | None, BeforeValidator(_blank_is_unset)]
OptionalText = Annotated[str | None, BeforeValidator(_blank_is_unset)]
OptionalHttpUrl = Annotated[Annotated[str, AfterValidator(_http_url)] | None, BeforeValidator(_blank_is_unset)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(_blank_is_unset)]
LongSecret = Annotated[Annotated[SecretStr, Field(min_length=16)] | None, BeforeValidator(_blank_is_unset)]
Ids = Annotated[frozenset[str], NoDecode, BeforeValidator(_ids)]


class Settings(BaseSettings):
    """The settings; each field's alias is its environment variable, and no other name counts. An empty one is unset."""

    # By alias only: under their own names, fields would take up other programs' variables (DATABASE_URL).
    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    letta_pg_uri: OptionalUrl = Field(
        default=None,
        repr=False,
        alias="LETTA_PG_URI",
        description="The Letta server's Postgres, read only. Unset: the embedded server's database `letta`.",
    )
    database_url: OptionalUrl = Field(
        default=None,
        repr=False,
        alias="TRAJECTORY_DATABASE_URL",
        description="Postgres 14+ that takes the schema `trajectory`. Unset: the embedded server's database"
        " `trajectory`.",
    )
    dagster_pg_url: OptionalUrl = Field(
        default=None,
        repr=False,
        alias="DAGSTER_PG_URL",
        description="Postgres for Dagster's own storage. Unset: the embedded server's database `dagster`.",
    )
    storage_uri: OptionalText = Field(
        default=None,
        repr=False,
        alias="TRAJECTORY_STORAGE_URI",
        description="Folder or fsspec URL (`s3://bucket/prefix`) for Parquet. Unset: `parquet` in the data folder.",
    )
    data_folder: Path = Field(
        default=DEFAULT_DATA_FOLDER,
        alias="TRAJECTORY_DATA_FOLDER",
        description="Folder for what is kept on this machine: the embedded server, Parquet, Dagster's logs."
        " Default: `data` in the working directory.",
    )
    start: Annotated[datetime, BeforeValidator(_utc)] = Field(
        default=datetime(2025, 1, 1, tzinfo=UTC),
        alias="TRAJECTORY_START",
        description="First partition, a whole hour; a time without offset is UTC. Default 2025-01-01.",
    )
    enable_capture: bool = Field(
        default=False,
        alias="ENABLE_TRAJECTORY_CAPTURE",
        description="`true`: the schedule and the sensors are on by default. Unset: they are there, stopped.",
    )
    source_timeout_seconds: int = Field(
        default=600,
        ge=1,
        alias="TRAJECTORY_SOURCE_TIMEOUT",
        description="Seconds that one query to the source may take. Default 600.",
    )
    backfill_batch: int = Field(
        default=24,
        ge=1,
        le=1000,
        alias="TRAJECTORY_BACKFILL_BATCH",
        description="Partitions that one Dagster run of a backfill takes. Default 24.",
    )
    closing_lag_minutes: int = Field(
        default=5,
        ge=0,
        le=1440,
        alias="TRAJECTORY_CLOSING_LAG_MINUTES",
        description="Minutes after its end from which an hour counts as closed: late rows arrive within two. Default"
        " 5.",
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST_RETENTION_DAYS,
        alias="TRAJECTORY_RETENTION_DAYS",
        description="Age in days, from the end of its hour, from which a partition's trajectories, quarantine and"
        " verdicts are removed from Postgres and Parquet, daily. Unset: they are kept for ever.",
    )
    raw_retention_days: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST_RETENTION_DAYS,
        alias="TRAJECTORY_RAW_RETENTION_DAYS",
        description="The same for its raw rows (`terminal_runs`), sooner or later than the trajectories. Unset: they"
        " are kept for ever.",
    )
    dagster_retention_days: int | None = Field(
        default=None,
        ge=1,
        alias="TRAJECTORY_DAGSTER_RETENTION_DAYS",
        description="Age in days from which Dagster's own finished runs are deleted with their events, daily."
        " Unset: they are kept for ever.",
    )
    stuck_hours: int = Field(
        default=24,
        ge=1,
        alias="TRAJECTORY_STUCK_HOURS",
        description="Age in hours from which a run that never ended (created or running) is reported. Default 24.",
    )
    deleted_content: Literal["keep", "erase"] = Field(
        default="keep",
        alias="TRAJECTORY_DELETED_CONTENT",
        description="What becomes of content that is deleted at the source: `keep` carries it forward, marked; `erase`"
        " removes the words from every sink, and leaves ids, counts and times. Default keep.",
    )
    openai_api_key: OptionalSecret = Field(
        default=None,
        alias="OPENAI_API_KEY",
        description="Key of the judge's provider. Not needed where OPENAI_BASE_URL is set.",
    )
    openai_base_url: OptionalHttpUrl = Field(
        default=None,
        repr=False,
        alias="OPENAI_BASE_URL",
        description="Endpoint that speaks the OpenAI chat API. Unset: OpenAI itself.",
    )
    judge_model: OptionalText = Field(
        default=None,
        alias="TRAJECTORY_JUDGE_MODEL",
        description="Model that judges. Unset: no judge; trajectories are captured and not judged.",
    )
    judge_format: Literal["auto", "json_schema", "tool_call", "prompt"] = Field(
        default="auto",
        alias="TRAJECTORY_JUDGE_FORMAT",
        description="How the judge is asked for the answer's form: `json_schema` (strict), `tool_call`, `prompt` (the"
        " schema in words), or `auto`: the first that the server does not refuse. Default auto.",
    )
    judge_concurrency: int = Field(
        default=16,
        ge=1,
        le=512,
        alias="TRAJECTORY_JUDGE_CONCURRENCY",
        description="Calls to the judge under way at once. Default 16.",
    )
    judge_requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        alias="TRAJECTORY_JUDGE_REQUESTS_PER_MINUTE",
        description="Calls a minute that all workers together make to one model at one endpoint. Unset: no limit.",
    )
    judge_tokens_per_minute: int | None = Field(
        default=None,
        ge=1000,
        alias="TRAJECTORY_JUDGE_TOKENS_PER_MINUTE",
        description="Tokens a minute, prompts (estimated) and largest answers together, that all workers send to one"
        " model at one endpoint. Unset: no limit.",
    )
    judge_timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        allow_inf_nan=False,
        alias="TRAJECTORY_JUDGE_TIMEOUT",
        description="Seconds that one call to the judge may take. Default 120.",
    )
    judge_attempts: int = Field(
        default=3,
        ge=1,
        le=10,
        alias="TRAJECTORY_JUDGE_ATTEMPTS",
        description="Calls that one materialisation makes at most for one question, where they fail in passing; the one"
        " repair turn, and simpler forms after a refusal, come on top. Default 3.",
    )
    judge_max_prompt_tokens: int = Field(
        default=100_000,
        ge=8000,
        alias="TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS",
        description="Tokens (estimated) that one prompt may have, the rules and the answer's schema included."
        " Default 100000.",
    )
    judge_max_response_tokens: int = Field(
        default=8000,
        ge=500,
        alias="TRAJECTORY_JUDGE_MAX_RESPONSE_TOKENS",
        description="Tokens that one answer of the judge may have, hidden reasoning included (`max_completion_tokens`):"
        " what bounds the price of a call. Default 8000.",
    )
    llm_egress: Literal["on", "off"] = Field(
        default="on",
        alias="TRAJECTORY_LLM_EGRESS",
        description="`off`: no call is made to a judge that is not on this machine (a loopback address, or localhost)."
        " Default `on`.",
    )
    judge_allow_agents: Ids = Field(
        default=frozenset(),
        alias="TRAJECTORY_JUDGE_ALLOW_AGENTS",
        description="Ids of agents, by commas: trajectories of these alone are judged. Unset: of all.",
    )
    judge_deny_agents: Ids = Field(
        default=frozenset(),
        alias="TRAJECTORY_JUDGE_DENY_AGENTS",
        description="Ids of agents, by commas, whose trajectories are never shown to a judge. Unset: none.",
    )
    judge_allow_organizations: Ids = Field(
        default=frozenset(),
        alias="TRAJECTORY_JUDGE_ALLOW_ORGANIZATIONS",
        description="Ids of organisations, by commas: trajectories of these alone are judged. Unset: of all.",
    )
    judge_deny_organizations: Ids = Field(
        default=frozenset(),
        alias="TRAJECTORY_JUDGE_DENY_ORGANIZATIONS",
        description="Ids of organisations, by commas, whose trajectories are never shown to a judge. Unset: none.",
    )
    redact: Literal["secrets", "personal", "off"] = Field(
        default="secrets",
        alias="TRAJECTORY_REDACT",
        description="What is replaced by placeholders before anything is sent to the judge: `secrets` (keys, tokens,"
        " passwords), `personal` (these, and e-mail addresses, phone, card and account numbers, IP addresses) or `off`."
        " Default `secrets`.",
    )
    redaction_key: LongSecret = Field(
        default=None,
        alias="TRAJECTORY_REDACTION_KEY",
        description="Key of the tags in placeholders, 16 characters at least. Unset: one that is made once and kept in"
        " the trajectory database.",
    )
    judge_settle_minutes: int = Field(
        default=5,
        ge=0,
        alias="TRAJECTORY_JUDGE_SETTLE_MINUTES",
        description="Minutes that a trajectory must have been unchanged before the sensor has it judged. Default 5.",
    )
    judge_lookback_days: int = Field(
        default=7,
        ge=0,
        alias="TRAJECTORY_JUDGE_LOOKBACK_DAYS",
        description="Age in days up to which the sensor has trajectories judged; older ones go by an explicit backfill."
        " Default 7.",
    )
    judge_order: Literal["newest", "signals"] = Field(
        default="newest",
        alias="TRAJECTORY_JUDGE_ORDER",
        description="Which trajectories are judged first, where a budget may end before them: `newest`, or `signals`"
        " (heuristic failures, disagreements, retries and tool trouble, then the rest). Default newest.",
    )
    judge_give_up_after: int = Field(
        default=10,
        ge=1,
        alias="TRAJECTORY_JUDGE_GIVE_UP_AFTER",
        description="Failures after which the sensor does not have a verdict tried again (first after 15 minutes,"
        " doubled each time up to a day); an asset check lists them. Default 10.",
    )
    daily_budget_usd: Decimal = Field(
        default=Decimal(5),
        ge=0,
        allow_inf_nan=False,
        alias="TRAJECTORY_DAILY_BUDGET_USD",
        description="Dollars that judging may cost a day (UTC), whoever asks for it: a call that may pass it is not"
        " made. Default 5.",
    )
    organization_daily_budget_usd: Decimal | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        alias="TRAJECTORY_ORGANIZATION_DAILY_BUDGET_USD",
        description="Dollars that judging the runs of one organisation may cost a day (UTC). Unset: no such cap.",
    )
    materialization_budget_usd: Decimal | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        alias="TRAJECTORY_MATERIALIZATION_BUDGET_USD",
        description="Dollars that one materialisation (a Dagster run, with all its partitions) may cost. Unset: no such"
        " cap.",
    )
    daily_budget_tokens: int | None = Field(
        default=None,
        ge=0,
        alias="TRAJECTORY_DAILY_BUDGET_TOKENS",
        description="Tokens, prompts and answers, that judging may take a day (UTC): for models without a price. Unset:"
        " no such cap.",
    )
    materialization_budget_tokens: int | None = Field(
        default=None,
        ge=0,
        alias="TRAJECTORY_MATERIALIZATION_BUDGET_TOKENS",
        description="Tokens that one materialisation may take. Unset: no such cap.",
    )
    prices_file: Path | None = Field(
        default=None,
        alias="TRAJECTORY_PRICES",
        description="A price table of your own (.json or .toml), before the one that is shipped: a list `prices` of"
        " `model`, `input`, `output`, perhaps `cached_input` (US dollars per million tokens) and `base_url`. Unset:"
        " only the one that is shipped.",
    )
    allow_unpriced: bool = Field(
        default=False,
        alias="TRAJECTORY_ALLOW_UNPRICED",
        description="`true`: a model without a known price may judge; only caps in tokens hold it then. Unset: it is"
        " refused.",
    )

    @property
    def storage(self) -> str:
        """Where Parquet goes: ``TRAJECTORY_STORAGE_URI``, or the folder ``parquet`` in the data folder."""
        return self.storage_uri or str(self.data_folder.absolute() / "parquet")

    @property
    def embedded_folder(self) -> Path:
        """Where the embedded server lives."""
        return self.data_folder.absolute() / "postgres"

    @property
    def judge_disabled_reason(self) -> str | None:
        """Why there is no judge, as a sentence that says what to set; None where there is one."""
        if self.judge_model is None:
            return (
                "No judge is configured: set TRAJECTORY_JUDGE_MODEL (and OPENAI_API_KEY, or OPENAI_BASE_URL"
                " for a server of"
                " your own)."
            )
        if self.openai_api_key is None and self.openai_base_url is None:
            return "The judge has no key: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that needs none."
        return None


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: one is wrong; the text names it and says what to set.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))} {_words(problem)}" for problem in error.errors()]
        raise SettingsError("; ".join(problems) + ".") from None


def _words(problem: Mapping[str, Any]) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return text
    return f"is wrong: {text[0].lower()}{text[1:]}"


def setting_rows() -> list[tuple[str, str]]:
    """Return each environment variable and what it means, in order: for the documentation and ``--help``."""
    return [(str(field.alias), str(field.description)) for field in Settings.model_fields.values()]
