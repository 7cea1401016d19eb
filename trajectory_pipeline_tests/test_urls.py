"""Forms of URLs that are safe to show hold no credentials; what cannot be read safely is refused."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from trajectory_pipeline.urls import (
    describe_postgres,
    endpoint_without_credentials,
    normalize_postgres_url,
    postgres_parameters,
    sqlalchemy_url,
    storage_without_credentials,
)

URL = "postgresql://me:geheim@host:5433/db"


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:geheim@host:5433/db",
        "postgresql://me:geheim@host:5433/db",
        "postgresql+psycopg://me:geheim@host:5433/db",
        "postgresql+psycopg2://me:geheim@host:5433/db",
        "postgres+asyncpg://me:geheim@host:5433/db",
    ],
)
def test_normalize_removes_any_driver(url: str) -> None:
    assert normalize_postgres_url(url) == URL
    assert normalize_postgres_url(normalize_postgres_url(url)) == URL


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "host:5433/db"),
        ("postgresql+psycopg2://me:geheim@host:5433/db", "host:5433/db"),
        ("postgres://me:geh%40eim@host/db", "host:5432/db"),
        ("postgresql://host/db", "host:5432/db"),
        ("postgresql:///db", "localhost:5432/db"),
        ("postgresql:///db?host=/run&password=geheim", "/run:5432/db"),
        ("postgresql://me:geheim@%2Ftmp/db", "/tmp:5432/db"),
        ("postgresql://me:geheim@host:6543/db?sslmode=require&password=geheim", "host:6543/db"),
        ("postgresql://me:geheim@host:6543/db?pool_size=5", "host:6543/db"),
        ("postgresql://me:geheim@[2001:db8::1]:5433/db", "[2001:db8::1]:5433/db"),
        ("postgresql://me:geheim@one,two:5433/db", "one:5432,two:5433/db"),
        ("postgresql://me:1234/geheim@host/db", "(unreadable URL)"),
        ("postgresql://me:ge/heim@host/db", "(unreadable URL)"),
        ("postgresql://me:geheim@host:x/db", "host:x/db"),
        ("nonsense", "(unreadable URL)"),
    ],
)
def test_describe_postgres_shows_host_port_and_database_only(url: str, shown: str) -> None:
    assert describe_postgres(url) == shown


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=6))
def test_percent_encoded_password_is_accepted_and_never_shown(password: str) -> None:
    url = normalize_postgres_url(f"postgres://me:{quote(password, safe='')}@host:5433/db")
    assert conninfo_to_dict(url)["password"] == password
    assert describe_postgres(url) == "host:5433/db"


@given(st.text(max_size=30))
def test_any_typed_url_is_shown_safely_or_refused(typed: str) -> None:
    def shown() -> str:
        try:
            return describe_postgres(normalize_postgres_url(f"postgresql://{typed}"))
        except ValueError as error:
            return str(error)

    assert re.search(r"^(?!.*@).*/|postgresql://|percent-encoded", shown(), re.DOTALL)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:ge%zzheim@host/db",
        "postgresql://me:ge#heim@host/db",
        "postgresql://me:x@geheim@host/db",
        "postgresql://me:geheim@host/db?pool_size=5",
        "postgresql+psycopg2://me:geheim@host/db",
        "mysql://me:geheim@host/db",
    ],
)
def test_postgres_parameters_of_an_unreadable_url_are_none(url: str) -> None:
    assert postgres_parameters(url) is None


def test_sqlalchemy_url_names_its_driver() -> None:
    assert sqlalchemy_url(URL, "psycopg2") == "postgresql+psycopg2://me:geheim@host:5433/db"


def test_endpoint_without_credentials_drops_login_and_query() -> None:
    assert endpoint_without_credentials("https://user:pw@host:8443/v1?key=x#y") == "https://host:8443/v1"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sftp://me:geheim@host/folder", "sftp://host/folder"),
        ("simplecache::sftp://me:geheim@host/folder", "simplecache::sftp://host/folder"),
        ("abfs://container@account/folder", "abfs://container@account/folder"),
        ("/data/a:b@c", "/data/a:b@c"),
    ],
)
def test_storage_without_credentials_drops_the_login_only(uri: str, shown: str) -> None:
    assert storage_without_credentials(uri) == shown
