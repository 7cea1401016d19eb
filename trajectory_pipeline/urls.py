"""URLs of Postgres servers, HTTP endpoints and Parquet storage: validation, and forms that are safe to show."""

import re
from urllib.parse import urlsplit, urlunsplit

_STORAGE_LOGIN = re.compile(r"^([a-z0-9+.:-]+://)[^/@]*:[^/]*@", re.IGNORECASE)
_POSTGRES_FORM = "postgresql://user:password@host:5432/database"


def normalize_postgres_url(url: str) -> str:
    """Return a Postgres URL for libpq: ``postgresql://…``, without an SQLAlchemy driver.

    Raises:
        ValueError: it is not a Postgres URL, or names no host or database. The text never holds a part of the URL.
    """
    normal, replaced = re.subn(r"^postgres(ql)?(\+[a-z0-9_]+)?://", "postgresql://", url)
    if not replaced:
        raise ValueError(f"must look like {_POSTGRES_FORM}")
    if _exposes_password(normal):
        raise ValueError(
            "holds a character that must be percent-encoded in a user name or password (/ is %2F, @ is %40, % is %25)"
        )
    try:
        parts = urlsplit(normal)
    except ValueError:
        raise ValueError(f"has a host that cannot be read; it must look like {_POSTGRES_FORM}") from None
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"has a port that is not a number; it must look like {_POSTGRES_FORM}") from None
    if not parts.path.strip("/"):
        raise ValueError(f"names no database; it must look like {_POSTGRES_FORM}")
    return normal


def sqlalchemy_url(url: str, driver: str) -> str:
    """Return a normalized Postgres URL with an SQLAlchemy driver (``psycopg``, or ``psycopg2`` for Dagster)."""
    return "postgresql+" + driver + url.removeprefix("postgresql")


def postgres_parameters(url: str) -> dict[str, str] | None:
    """Return the parameters that libpq reads from a URL; None where it cannot read it or would misread a password."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    if not re.match(r"^postgres(ql)?://", url) or _exposes_password(url):
        return None
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        return None


def describe_postgres(url: str) -> str:
    """Return a Postgres URL in a form that is safe to show: ``host:port/database``, without user and password."""
    plain = re.sub(r"^(\w+)\+\w+://", r"\1://", url)
    # A parameter that libpq does not know must not hide which server is meant.
    given = postgres_parameters(plain) or postgres_parameters(plain.partition("?")[0])
    if given is None:
        return "(unreadable URL)"
    hosts = (given.get("host") or given.get("hostaddr") or "localhost").split(",")
    ports = (given.get("port") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    bracketed = (f"[{host}]" if ":" in host else host for host in hosts)
    shown = (f"{host}:{port or 5432}" for host, port in zip(bracketed, ports, strict=False))
    return f"{','.join(shown)}/{given.get('dbname') or ''}"


def _exposes_password(url: str) -> bool:
    """Whether a part of the password would be read as a host, port or database, and so be shown."""
    login, at, address = url.partition("://")[2].partition("?")[0].partition("@")
    malformed = re.search(r"%(?![0-9a-fA-F]{2})", url) is not None
    return malformed or (bool(at) and ("/" in login or "#" in login)) or "@" in address


def check_endpoint_url(url: str) -> str:
    """Return an HTTP endpoint's URL unchanged.

    Raises:
        ValueError: it is not an HTTP URL, or holds a user or a password.
    """
    if not re.match(r"^https?://[^/?#]", url):
        raise ValueError("must look like https://host/v1 (with http:// or https://)")
    if "@" in url:
        raise ValueError("must hold no user and no password: the key goes into OPENAI_API_KEY")
    return url


def endpoint_without_credentials(url: str) -> str:
    """Return an HTTP endpoint's URL in a form that is safe to store and show: without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def storage_without_credentials(uri: str) -> str:
    """Return a storage URI in a form that is safe to show: ``sftp://host/path``, without user and password."""
    return _STORAGE_LOGIN.sub(r"\1", uri)
