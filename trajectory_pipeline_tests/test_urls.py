"""Forms of URLs that are safe to show hold no credentials; what cannot be read safely is refused."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

import trajectory_pipeline
from trajectory_pipeline.urls import (
    describe_postgres,
    hide_credentials,
    normalize_postgres_url,
    postgres_parameters,
    sqlalchemy_url,
    without_credentials,
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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://me:geheim@host/db?ssl=require",
        "postgresql+asyncpg://me:geheim@host/db?ssl=verify-full&prepared_statement_cache_size=0&timeout=3",
        "postgresql+pg8000://me:geheim@host/db",
        "postgresql+psycopg_async://me:geheim@host/db",
        "postgresql://me:geheim@one:5432,two:5433/db?target_session_attrs=any",
        "postgresql://me:geheim@[::1]:5432,two/db",
        "postgresql+asyncpg://me:geheim@/db?host=one:5432&host=two:5433",
        "postgresql+pg8000://me:geheim@/db?unix_sock=/run/postgresql/.s.PGSQL.5433",
        "postgresql:///db?host=/run/postgresql&user=me&password=geheim",
        "postgresql://me:geheim@%2Frun%2Fpostgresql/db",
        "postgresql://me:geheim@host?dbname=db",
        "postgresql://me:ge?heim@host/db",
        "postgresql://?service=letta",
        "postgresql:///?service=letta&password=geheim",
    ],
)
def test_normalize_accepts_what_letta_and_libpq_accept(url: str) -> None:
    normal = normalize_postgres_url(url)
    assert conninfo_to_dict(normal)
    assert normalize_postgres_url(normal) == normal
    assert "heim" not in describe_postgres(normal)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+asyncpg://h/db?ssl=require", {"host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgresql+asyncpg://h/db?ssl=true", {"host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgresql+asyncpg://h/db?ssl=false", {"host": "h", "dbname": "db", "sslmode": "disable"}),
        ("postgresql://h/db?ssl=require&sslmode=require", {"host": "h", "dbname": "db", "sslmode": "require"}),
        ("postgresql://h/db?statement_cache_size=0", {"host": "h", "dbname": "db"}),
        ("postgresql:///db?host=a:1&host=b", {"host": "a,b", "port": "1,", "dbname": "db"}),
        ("postgresql:///db?host=a:1", {"host": "a", "port": "1", "dbname": "db"}),
        ("postgresql:///db?unix_sock=/run/.s.PGSQL.7", {"host": "/run", "port": "7", "dbname": "db"}),
    ],
)
def test_normalize_translates_driver_parameters_to_libpq(url: str, expected: dict[str, str]) -> None:
    assert postgres_parameters(normalize_postgres_url(url)) == expected


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://me:geheim@host/db?sslmod=require", "'sslmod'"),
        ("postgresql://me:geheim@host/db?pool_size=5&sslmode=require", "'pool_size'"),
        ("postgresql://me:geheim@host/db?ssl=require&sslmode=disable", "'ssl' and 'sslmode'"),
        ("postgresql://me@host/db?password=x&geheim=y", "after its password"),
        ("postgresql://me@host/db?password=x&geheim", "not name=value"),
        ("postgresql://me@host/db?password=geheim&application_name=a=b", "not name=value"),
        ("postgresql://me:geheim@host:1,two:x/db", "port that is not a number"),
        ("postgresql://me:geheim@host:99999/db", "port that is not a number"),
        ("postgresql://me:geheim@/db?host=a,b,c&port=1,2", "2 ports for 3 hosts"),
        ("postgresql://me:geh/e?im=geheim@host/db", "percent-encoded"),
        ("postgresql://me:geheim", "port that is not a number"),
        ("host=h password=geheim dbname=db", "must look like postgresql://"),
    ],
)
def test_normalize_names_the_part_and_no_password(url: str, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)) as caught:
        normalize_postgres_url(url)
    assert "geheim" not in str(caught.value)
    assert "geheim" not in describe_postgres(url)
    assert "geheim" not in without_credentials(url)


@pytest.mark.parametrize(
    "url", ["postgresql://me:ge%20heim@one:5432,two:5433/db?sslmode=require", "postgresql://me:pw@one,two/db"]
)
def test_sqlalchemy_url_of_several_hosts_is_read_alike(url: str) -> None:
    read = make_url(sqlalchemy_url(url, "psycopg2"))
    arguments = read.get_dialect()().create_connect_args(read)[1]
    assert {name: str(value) for name, value in arguments.items()} == postgres_parameters(url)


def test_without_credentials_of_an_endpoint_drops_login_and_query() -> None:
    assert without_credentials("https://user:pw@host:8443/v1?key=x#y") == "https://host:8443/v1"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sftp://me:geheim@host/folder", "sftp://host/folder"),
        ("simplecache::sftp://me:geheim@host/folder", "simplecache::sftp://host/folder"),
        ("abfs://container@account/folder", "abfs://container@account/folder"),
        ("/data/a:b@c", "/data/a:b@c"),
        ("github://geheim@host/folder", "github://host/folder"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("s3://key:ge/heim@bucket/prefix", "s3://***@bucket/prefix"),
        ("s3://key:ge@heim@bucket/prefix", "s3://bucket/prefix"),
        ("https://account.example/c?sv=1&sig=geheim", "https://account.example/c"),
        ("abfs://container@account/folder?sig=geheim", "abfs://container@account/folder"),
        ("abfs://me:geheim@account/folder", "abfs://account/folder"),
        ("filecache::zip://a.zip::sftp://me:geheim@host/f", "filecache::zip://a.zip::sftp://host/f"),
        ("sftp://me:ge::heim@host/f", "(unreadable URL)"),
        ("sftp://me:geheim", "(unreadable URL)"),
        ("s3:/key:geheim@bucket", "***@bucket"),
        ("host=h password=geheim", "(unreadable URL)"),
        ("password = geheim", "(unreadable URL)"),
        ("az://container/folder;AccountKey=geheim", "az://container/folder"),
        ("az://container@account/folder&sig=geheim", "az://container@account/folder"),
        ("s3://bucket/team=a,b/prefix,key=geheim", "s3://bucket/team=a,b/prefix"),
        ("https://host/c%3fsig%3Dgeheim", "https://host/c"),
        ("file:///data/a b&c/%41@é", "file:///data/a b&c/%41@é"),
        ("file://me:geheim@host/f", "file://host/f"),
        ("//me:geheim@host/f", "***@host/f"),
        ("postgresql+asyncpg://me:geheim@host/db", "host:5432/db"),
    ],
)
def test_without_credentials_keeps_the_place_alone(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


SECRETS = st.text(st.characters(categories=["L", "N"]), min_size=4).map("Zq9{}".format)


@given(
    SECRETS,
    st.sampled_from(
        [
            "s3://me:{}@bucket/prefix",
            "s3://{}@bucket/prefix",
            "s3://me:ab/{}@bucket/prefix",
            "s3://me:ab@{}@bucket/prefix",
            "https://host/c?sv=1&sig={}",
            "abfs://c@account/f?sig={}#x",
            "simplecache::sftp://me:{}@host/f",
            "sftp://me:a::{}@host/f",
            "sftp://me:{}",
            "s3:/me:{}@bucket",
            "postgresql+asyncpg://me:{}@host/db?ssl=require",
            "postgresql://me:ab/{}@host/db",
            "postgresql://host/db?password={}&sslmode=require",
            "postgresql://host/db?password=ab&{}=1",
            "host=h password={}",
            "passwrd={} host=h",
            "az://container/f;AccountKey={}",
            "az://container@account/f&sig={}",
            "s3://bucket/f,key={}",
            "https://host/c%3Fsig%3D{}",
            "file://me:{}@host/f",
            "//me:{}@host/f",
        ]
    ),
)
def test_no_credential_is_shown_of_any_url(secret: str, form: str) -> None:
    for written in (secret, quote(secret, safe="")):
        url = form.format(written)
        error = f"cannot open {url}: {written!r} of {secret} refused"
        assert secret not in without_credentials(url)
        assert secret not in hide_credentials(error, url)
        assert written not in hide_credentials(error, url)


UNCHECKED = {
    "urls.py": "the functions that make URLs safe",
    "cli/url.py": "prints the URL, which is what it is for",
    "demo/embedded_postgres/server.py": "builds the URL of its own server",
    "demo/simulated_judge/server.py": "names the path of a request to it",
    "storage/parquet/query.py": "builds SQL",
    "demo/simulated_judge/process.py": "builds the URL of its own server, which has no credentials",
}
SHOWN_SAFELY = {"describe_postgres", "without_credentials", "hide_credentials", "quote"}
URL_NAME = re.compile(r"(^|_)(url|uri|dsn|conninfo)$|^(parquet_location|storage_options)$")
SAFE_NAMES = {"shown_uri", "copy_uri", "data_uri"}
"""Names of URIs that are made by ``without_credentials``, or hold an image and no place."""


def messages_with_urls(source: str) -> Iterator[str]:
    """Yield the expressions in f-strings, prints and log calls that show a URL as it is."""
    for node in ast.walk(ast.parse(source)):
        shown: list[ast.expr] = []
        if isinstance(node, ast.FormattedValue):
            shown = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in {"print", "echo", "info", "warning", "error", "debug", "exception", "format"}:
                shown = [*node.args, *(keyword.value for keyword in node.keywords)]
        for value in shown:
            for part in parts_as_they_are(value):
                found = part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "")
                if URL_NAME.search(found) and found not in SAFE_NAMES:
                    yield ast.unparse(part)


def parts_as_they_are(value: ast.AST) -> Iterator[ast.AST]:
    """Yield an expression and its parts, without what a function makes safe; f-strings come by themselves."""
    if isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Call) and ast.unparse(value.func) in SHOWN_SAFELY):
        return
    yield value
    for part in ast.iter_child_nodes(value):
        yield from parts_as_they_are(part)


def test_messages_show_no_url_but_in_its_safe_form() -> None:
    root = Path(trajectory_pipeline.__path__[0])
    found = {
        str(path.relative_to(root)): urls
        for path in root.rglob("*.py")
        if str(path.relative_to(root)) not in UNCHECKED
        and (urls := list(messages_with_urls(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_messages_with_urls_finds_one() -> None:
    source = "print(url)\nraise E(f'no {self.storage.database_url} and {describe_postgres(url).strip()}')\n"
    source += "log.info('%s', a.base_url.rstrip('/') or b)"
    assert sorted(messages_with_urls(source)) == ["a.base_url", "self.storage.database_url", "url"]
