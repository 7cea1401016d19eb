"""Settings: typed, documented and read when asked for; an invalid one gives one sentence that names it.

Variables of other programs are ignored, and no repr shows a secret. (Imports read none: ``test_architecture``.)
"""

import dataclasses
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.settings import Settings, load_settings, setting_fields

URL = "postgresql://me:geheim@host:5433/db"
GROUPS = [group for _, group in Settings()]
FIELD_NAMES = {name for group in GROUPS for name in type(group).model_fields}
RENAMED = {
    "TRAJECTORY_DELETED": "TRAJECTORY_DELETED_CONTENT",
    "TRAJECTORY_QUIET_MINUTES": "TRAJECTORY_JUDGE_SETTLE_MINUTES",
    "TRAJECTORY_HORIZON_DAYS": "TRAJECTORY_JUDGE_LOOKBACK_DAYS",
    "TRAJECTORY_JUDGE_MAX_ANSWER_TOKENS": "TRAJECTORY_JUDGE_MAX_RESPONSE_TOKENS",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*setting_fields(), *(name.upper() for name in FIELD_NAMES), *RENAMED]:
        monkeypatch.delenv(name, raising=False)


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(monkeypatch, **variables)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


# ---- defaults -----------------------------------------------------------------------------------------------------


def test_setting_is_documented_with_its_default() -> None:
    for field in setting_fields().values():
        assert field.alias
        assert field.description
        assert field.description.rstrip("`").endswith(".")
        if field.default is None or field.default is False or field.default in ((), frozenset(), ExportFilters()):
            assert "Unset:" in field.description or "Not needed" in field.description, field.alias
        else:
            assert "Default" in field.description, field.alias
    names = list(setting_fields())
    assert len(names) == sum(len(type(group).model_fields) for group in GROUPS) == 76
    known = ("LETTA_PG_URI", "DAGSTER_PG_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ENABLE_TRAJECTORY_CAPTURE")
    assert [name for name in names if name not in known and not name.startswith("TRAJECTORY_")] == []


def test_default_in_a_description_is_the_default() -> None:
    for field in setting_fields().values():
        match = re.search(r"Default `?([0-9][0-9.,:-]*[0-9]|[0-9])", str(field.description))
        if match:
            default = field.default
            numbers = default if isinstance(default, tuple) else (default,)
            written = ",".join(one.date().isoformat() if isinstance(one, datetime) else f"{one:g}" for one in numbers)
            assert match[1] == written, field.alias


def test_settings_of_an_empty_environment_have_defaults() -> None:
    settings = load_settings()
    assert (settings.source.postgres_url, settings.storage.database_url, settings.dagster.database_url) == (
        None,
        None,
        None,
    )
    assert settings.storage.parquet_location == str(Path("data/parquet").absolute())
    assert settings.storage.embedded_folder == Path("data/postgres").absolute()
    assert (settings.capture.enabled, settings.capture.start) == (False, datetime(2025, 1, 1, tzinfo=UTC))
    assert settings.budget.daily_usd == Decimal(5)


def test_settings_parse_each_variable_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        LETTA_PG_URI="postgres://me:geheim@host/letta",
        TRAJECTORY_DATABASE_URL="postgresql+psycopg2://me:geheim@host:5433/t",
        TRAJECTORY_STORAGE_URI="s3://bucket/prefix",
        TRAJECTORY_START="2026-01-01T05:00+05:00",
        ENABLE_TRAJECTORY_CAPTURE="true",
        TRAJECTORY_DAILY_BUDGET_USD="0.10",
        TRAJECTORY_JUDGE_TIMEOUT="1.5",
        OPENAI_API_KEY="sk-secret",
    )
    assert settings.source.postgres_url == "postgresql://me:geheim@host/letta"
    assert settings.storage.database_url == "postgresql://me:geheim@host:5433/t"
    assert settings.storage.parquet_location == "s3://bucket/prefix"
    assert settings.capture.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert settings.capture.enabled is True
    assert settings.budget.daily_usd == Decimal("0.10")
    assert settings.judge.timeout_seconds == 1.5
    assert settings.judge.api_key is not None
    assert settings.judge.api_key.get_secret_value() == "sk-secret"


@pytest.mark.parametrize("blank", ["", "   "])
@pytest.mark.parametrize(
    "name", ["LETTA_PG_URI", "TRAJECTORY_STORAGE_URI", "OPENAI_API_KEY", "OPENAI_BASE_URL", "TRAJECTORY_JUDGE_MODEL"]
)
def test_blank_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str, blank: str) -> None:
    assert loaded(monkeypatch, **{name: blank}) == Settings()


def test_empty_variable_of_any_type_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    assert loaded(monkeypatch, **dict.fromkeys(setting_fields(), "")) == defaults


def test_variables_of_other_programs_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {name.upper(): "postgresql://x:y@elsewhere/other" for name in FIELD_NAMES if name.endswith("_url")}
    assert "DATABASE_URL" in others
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    others = {name: value for name, value in others.items() if name not in setting_fields()}
    assert loaded(monkeypatch, **others, START="2020-01-01", HORIZON_DAYS="99") == Settings()
    assert load_settings().storage.database_url is None
    assert load_settings().judge.lookback_days == 7


# ---- invalid input--------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LETTA_PG_URI", "mysql://h/d", "must look like postgresql://user:password@host:5432/database"),
        ("LETTA_PG_URI", "host=127.0.0.1 password=geheim", "must look like postgresql://"),
        ("TRAJECTORY_DATABASE_URL", "postgresql://me:geheim@host", "names no database"),
        ("TRAJECTORY_DATABASE_URL", "postgresql://me:geheim@host:x/db", "has a port that is not a number"),
        ("TRAJECTORY_DATABASE_URL", "postgresql://me:geheim@[host/db", "has a host that cannot be read"),
        ("TRAJECTORY_DATABASE_URL", "postgresql://me:ge/heim@host/db", "must be percent-encoded"),
        ("DAGSTER_PG_URL", "postgresql://me:1234/geheim@host/db", "must be percent-encoded"),
        ("DAGSTER_PG_URL", "postgresql://me:x@geheim@host/db", "must be percent-encoded"),
        ("DAGSTER_PG_URL", "postgresql://me:ge%zzheim@host/db", "must be percent-encoded"),
        ("TRAJECTORY_START", "soon", "must be a time such as 2025-01-01"),
        ("TRAJECTORY_START", "2025-01-01T00:30", "must be a whole hour, UTC"),
        ("TRAJECTORY_START", "0001-01-01T00:00+14:00", "must be a time such as 2025-01-01"),
        ("ENABLE_TRAJECTORY_CAPTURE", "perhaps", "is wrong: input should be a valid boolean"),
        ("TRAJECTORY_SOURCE_TIMEOUT", "0", "is wrong: input should be greater than or equal to 1"),
        ("TRAJECTORY_BACKFILL_BATCH", "many", "is wrong: input should be a valid integer"),
        ("TRAJECTORY_BACKFILL_BATCH", "1001", "is wrong: input should be less than or equal to 1000"),
        ("OPENAI_BASE_URL", "localhost:8000/v1", "must look like https://host/v1"),
        ("OPENAI_BASE_URL", "http://", "must look like https://host/v1"),
        ("OPENAI_BASE_URL", "https://host/v1/chat/completions", "must end before /chat/completions"),
        ("OPENAI_BASE_URL", "https://host/v1/models/?x=1", "must end before /models"),
        ("OPENAI_BASE_URL", "https://host/v1#part", "must have no part behind a #"),
        ("OPENAI_BASE_URL", "https://me:geheim@host/v1", "the key goes into OPENAI_API_KEY"),
        ("TRAJECTORY_JUDGE_CONCURRENCY", "0", "is wrong: input should be greater than or equal to 1"),
        ("TRAJECTORY_JUDGE_TIMEOUT", "0", "is wrong: input should be greater than 0"),
        ("TRAJECTORY_JUDGE_TIMEOUT", "inf", "is wrong: input should be a finite number"),
        ("TRAJECTORY_JUDGE_ATTEMPTS", "11", "is wrong: input should be less than or equal to 10"),
        ("TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS", "7999", "is wrong: input should be greater than or equal to 8000"),
        ("TRAJECTORY_JUDGE_SETTLE_MINUTES", "-1", "is wrong: input should be greater than or equal to 0"),
        ("TRAJECTORY_JUDGE_LOOKBACK_DAYS", "1.5", "is wrong: input should be a valid integer"),
        ("TRAJECTORY_DAILY_BUDGET_USD", "five", "is wrong: input should be a valid decimal"),
        ("TRAJECTORY_DAILY_BUDGET_USD", "NaN", "is wrong: input should be a finite number"),
        ("TRAJECTORY_DAILY_BUDGET_USD", "-1", "is wrong: input should be greater than or equal to 0"),
    ],
)
def test_invalid_value_gives_one_sentence_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    text = refusal(monkeypatch, **{name: value})
    assert text.startswith(f"{name} ")
    assert message in text
    assert "geheim" not in text


def test_several_invalid_values_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(monkeypatch, TRAJECTORY_START="soon", LETTA_PG_URI="x")
    assert "TRAJECTORY_START must be" in text
    assert "; " in text
    assert "LETTA_PG_URI must look" in text


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_renamed_setting_raises_error_with_new_name(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    assert refusal(monkeypatch, **{old: "1"}) == f"{old} is now named {new}: rename it."


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TRAJECTORY_DAILY_BUDGET", "TRAJECTORY_DAILY_BUDGET_USD"),
        ("TRAJECTORY_RETENTION_DAY", "TRAJECTORY_RETENTION_DAYS"),
        ("TRAJECTORY_REDACTION", "TRAJECTORY_REDACT"),
    ],
)
def test_misspelled_setting_is_an_error_that_names_the_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    assert refusal(monkeypatch, **{name: "1"}) == f"{name} is no setting: write {meant}."


def test_variable_of_ours_that_is_like_no_setting_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "TRAJECTORY_DATABASE_URL_FILE": "/run/secrets/url",
        "TRAJECTORY_TOKEN": "x",
        "TRAJECTORY_DAILY_BUDGET": "",
    }
    assert loaded(monkeypatch, **others) == Settings()


def test_renamed_setting_that_is_empty_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(monkeypatch, **dict.fromkeys(RENAMED, "")) == Settings()


def test_renamed_settings_are_listed_with_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(monkeypatch, TRAJECTORY_DELETED="erase", TRAJECTORY_HORIZON_DAYS="7", TRAJECTORY_START="soon")
    for message in ("TRAJECTORY_DELETED_CONTENT", "TRAJECTORY_JUDGE_LOOKBACK_DAYS", "TRAJECTORY_START must be a time"):
        assert message in text


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({}, "TRAJECTORY_JUDGE_MODEL"),
        ({"OPENAI_API_KEY": "sk"}, "TRAJECTORY_JUDGE_MODEL"),
        ({"TRAJECTORY_JUDGE_MODEL": "m"}, "OPENAI_API_KEY"),
        ({"TRAJECTORY_JUDGE_MODEL": "m", "OPENAI_API_KEY": "sk"}, None),
        ({"TRAJECTORY_JUDGE_MODEL": "m", "OPENAI_BASE_URL": "http://localhost:8000/v1"}, None),
    ],
)
def test_disabled_reason_names_the_missing_setting(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], missing: str | None
) -> None:
    message = loaded(monkeypatch, **variables).judge.disabled_reason
    if missing is None:
        assert message is None
    else:
        assert missing in str(message)


def test_settings_repr_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(
        monkeypatch,
        LETTA_PG_URI=URL,
        TRAJECTORY_DATABASE_URL=URL,
        DAGSTER_PG_URL=URL,
        OPENAI_API_KEY="sk-geheim",
        OPENAI_BASE_URL="https://host/v1?key=geheim",
        TRAJECTORY_STORAGE_URI="sftp://me:geheim@host/x",
    )
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings)


@pytest.mark.parametrize("capped", [None, "TRAJECTORY_MATERIALIZATION_BUDGET_TOKENS", "TRAJECTORY_DAILY_BUDGET_USD"])
def test_unpriced_model_without_a_daily_cap_in_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch, capped: str | None
) -> None:
    """A cap of one materialization is none for a day: sensors begin any number of them."""
    variables = {"TRAJECTORY_ALLOW_UNPRICED": "true", **({capped: "1000"} if capped else {})}
    assert "set TRAJECTORY_DAILY_BUDGET_TOKENS too" in refusal(monkeypatch, **variables)
    assert loaded(monkeypatch, **variables, TRAJECTORY_DAILY_BUDGET_TOKENS="1000").budget.allow_unpriced


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "Infinity", "-0.01"])
@pytest.mark.parametrize("name", [name for name in setting_fields() if "_BUDGET_" in name])
def test_cap_that_is_no_amount_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert refusal(monkeypatch, **{name: value}).startswith(f"{name} is wrong")


def test_owners_are_addresses_or_teams(monkeypatch: pytest.MonkeyPatch) -> None:
    given = loaded(monkeypatch, TRAJECTORY_OWNERS=" team:data , me@example.com")
    assert given.dagster.owners == ("team:data", "me@example.com")
    for wrong in ("me", "team:", "me@", "team:a,b"):
        assert "neither an e-mail address nor team:name" in refusal(monkeypatch, TRAJECTORY_OWNERS=wrong)


def test_export_filters_take_what_their_description_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = re.findall(r"`(\{.*?\})`", str(setting_fields()["TRAJECTORY_EXPORT_FILTERS"].description), re.DOTALL)
    filters = loaded(monkeypatch, TRAJECTORY_EXPORT_FILTERS=shown).export.filters
    assert filters.completed_from == datetime(2026, 11, 1, tzinfo=UTC)
    assert set(json.loads(shown)) == {field.name for field in dataclasses.fields(ExportFilters)}
