"""URLs of Postgres servers, HTTP endpoints and Parquet storage: validation, and forms that are safe to show."""

import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlencode

_POSTGRES_FORM = "postgresql://user:password@host:5432/database"
_HINT = f"it must look like {_POSTGRES_FORM}"
_POSTGRES_SCHEME = re.compile(r"^postgres(?:ql)?(?:\+[a-z0-9_]+)?://")
_POSTGRES_PARTS = re.compile(r"(postgresql://(?:[^@/]*@)?[^?]*)(?:\?(.*))?", re.DOTALL)
_REMOTE_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^?#]*)(.*)", re.DOTALL | re.IGNORECASE)
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "az", "wasb", "wasbs"})
"""Schemes of Azure, where ``container@account`` is a place, and no login."""
_PARAMETERS = re.compile(r"[;&]|%(?:3F|26|3B)|,(?=[^/,]*=)", re.IGNORECASE)
"""Where parameters begin in a place: some storages take them without a ``?``, and a ``?`` may be percent-encoded."""
_LOCAL_SCHEMES = frozenset({"file", "local"})
_HIDDEN = "***"
_UNREADABLE = "(unreadable URL)"
_MIN_HIDDEN_CHARACTERS = 3

_PLACE = ((1, "host"), (2, "port"))
_SSL_MODES = {"true": "require", "false": "disable"}
_CLIENT_ONLY = frozenset(
    {
        "async_fallback",
        "command_timeout",
        "max_cacheable_statement_size",
        "max_cached_statement_lifetime",
        "prepared_statement_cache_size",
        "prepared_statement_name_func",
        "statement_cache_size",
    }
)
"""Parameters of Letta's drivers that concern their own statements alone."""
_SECRET_PARAMETERS = frozenset({"password", "sslpassword", "passfile", "oauth_client_secret", "scram_client_key"})


def normalize_postgres_url(url: str) -> str:
    """Return a Postgres URL for libpq: ``postgresql://…``, without an SQLAlchemy driver and its parameters.

    libpq itself reads the result. A URL that Letta's drivers understand is translated: ``ssl=require``, several
    ``host=name:port``, ``unix_sock=…``.

    Raises:
        ValueError: it is not a Postgres URL, is malformed, or names no database. The text names the part or the
            parameter, and holds no password.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    normal, replaced = _POSTGRES_SCHEME.subn("postgresql://", url)
    if not replaced:
        raise ValueError(f"must look like {_POSTGRES_FORM}")
    if _exposes_password(normal):
        raise ValueError(
            "holds a character that must be percent-encoded in a user name or password (/ is %2F, @ is %40, % is %25)"
        )
    normal = _translate_parameters(normal)
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(normal).items()}
    except psycopg.ProgrammingError as error:
        # Its message would repeat parts of the URL, the password included.
        raise ValueError(_libpq_refusal(str(error))) from None
    hosts, ports = (given.get("host") or given.get("hostaddr") or "").split(","), given.get("port", "").split(",")
    if not all(re.fullmatch("[0-9]{0,5}", port) and int(port or 1) in range(1, 65536) for port in ports):
        raise ValueError(f"has a port that is not a number from 1 to 65535; {_HINT}")
    if len(ports) not in {1, len(hosts)}:
        raise ValueError(f"has {len(ports)} ports for {len(hosts)} hosts: give one port, or one for each host; {_HINT}")
    if not given.get("dbname") and "service" not in given:
        raise ValueError(f"names no database; {_HINT}")
    return normal


def _translate_parameters(url: str) -> str:
    """Return the URL with libpq's parameters in place of those of SQLAlchemy and of Letta's drivers."""
    match = _POSTGRES_PARTS.fullmatch(url)
    if match is None or not match[2]:
        return url
    parts = match[2].split("&")
    pairs = [part.partition("=") for part in parts]
    known = _libpq_parameters()
    hosts = [unquote(value) for name, _, value in pairs if name == "host"]
    places = [re.fullmatch(r"(.*?)(?::([0-9]+))?", host, re.DOTALL) for host in hosts if host.count(":") < 2]
    # SQLAlchemy writes a host with its port, and several as several parameters, of which libpq would take the last.
    rewritten = len(hosts) > 1 or any(place and place[2] for place in places)
    kept: list[str] = []
    for (name, equals, value), part in zip(pairs, parts, strict=True):
        if name in _CLIENT_ONLY or (name == "host" and rewritten):
            continue
        if name == "ssl":
            mode = _SSL_MODES.get(value.lower(), value)
            if any(other == "sslmode" and given != mode for other, _, given in pairs):
                raise ValueError(f"has the parameters 'ssl' and 'sslmode', which differ: remove one; {_HINT}")
            kept.append(f"sslmode={mode}")
        elif name == "unix_sock":
            folder, _, port = unquote(value).rpartition("/.s.PGSQL.")
            kept.append(f"host={quote(folder or unquote(value), safe='')}&port={port or 5432}")
        elif name == "timeout":
            kept.append(f"connect_timeout={value}")
        elif name and equals and unquote(name) not in known:
            raise ValueError(_unknown_parameter([known for known, _, _ in pairs], name))
        else:
            kept.append(part)
    if rewritten:
        kept += (f"{key}={','.join(quote(place[n] or '', safe='') for place in places if place)}" for n, key in _PLACE)
    return f"{match[1]}?{'&'.join(kept)}" if kept else match[1]


def _libpq_parameters() -> frozenset[str]:
    from psycopg.pq import Conninfo

    return frozenset(option.keyword.decode() for option in Conninfo.get_defaults())


def _unknown_parameter(names: list[str], name: str) -> str:
    # After a password with an & that is not percent-encoded, what looks like a name is a part of it.
    hidden = _SECRET_PARAMETERS.intersection(names[: names.index(name)]) or not re.fullmatch(r"\w+", name)
    shown = "after its password" if hidden else repr(name)
    return (
        f"cannot be read: Postgres has no connection parameter {shown} (an & in a value must be percent-encoded, %26);"
        f" {_HINT}"
    )


def _libpq_refusal(message: str) -> str:
    if "percent-encoded" in message or "%00" in message:
        return "holds a % that does not begin a percent-encoded character (% itself is %25)"
    if "key/value separator" in message:
        return (
            "has a parameter after '?' that is not name=value (an = in a value must be percent-encoded, %3D; & is %26)"
        )
    if "IPv6" in message or "]" in message:
        return f"has a host that cannot be read; {_HINT}"
    return f"cannot be read by libpq; {_HINT}"


def sqlalchemy_url(url: str, driver: str) -> str:
    """Return a normalized Postgres URL with an SQLAlchemy driver (``psycopg``, or ``psycopg2`` for Dagster)."""
    given = postgres_parameters(url)
    if given is None or "," not in given.get("host", ""):
        return "postgresql+" + driver + url.removeprefix("postgresql")
    # SQLAlchemy reads several hosts only as parameters.
    login = ":".join(quote(given.pop(name), safe="") for name in ("user", "password") if name in given)
    database = quote(given.pop("dbname", ""), safe="")
    return f"postgresql+{driver}://{login}{'@' if login else ''}/{database}?{urlencode(given)}"


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
    plain = _POSTGRES_SCHEME.sub("postgresql://", url)
    # A parameter that libpq does not know must not hide which server is meant.
    parts = _POSTGRES_PARTS.fullmatch(plain)
    given = postgres_parameters(plain) or (postgres_parameters(parts[1]) if parts else None)
    # Without a login, what looks like a port may be a password whose host is missing.
    if given is None or ("@" not in plain and re.search("[^0-9,]", given.get("port") or "")):
        return _UNREADABLE
    if "service" in given and not {"host", "hostaddr"} & given.keys():
        return f"service {given['service']}"
    hosts = (given.get("host") or given.get("hostaddr") or "localhost").split(",")
    ports = (given.get("port") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    bracketed = (f"[{host}]" if ":" in host else host for host in hosts)
    shown = (f"{host}:{port or 5432}" for host, port in zip(bracketed, ports, strict=False))
    return f"{','.join(shown)}/{given.get('dbname') or ''}"


def _exposes_password(url: str) -> bool:
    """Whether a part of the password would be read as a host, port or database, and so be shown."""
    rest = url.partition("://")[2]
    address, _, query = rest.partition("?")
    login, at, address = address.partition("@")
    malformed = re.search(r"%(?![0-9a-fA-F]{2})", url) is not None
    # Without a login, a colon, and an @ that comes later: the password holds a slash and a question mark.
    misread = not at and ":" in login and "@" in query and re.match(r"[^@/]*@", rest) is None
    return malformed or misread or (bool(at) and ("/" in login or "#" in login)) or "@" in address


def check_endpoint_url(url: str) -> str:
    """Return an HTTP endpoint's URL unchanged.

    Raises:
        ValueError: it is not an HTTP URL, is that of one function of the API, or holds a user or a password.
    """
    if not re.match(r"^https?://[^/?#]", url):
        raise ValueError("must look like https://host/v1 (with http:// or https://)")
    if "@" in url:
        raise ValueError("must hold no user and no password: the key goes into OPENAI_API_KEY")
    if "#" in url:
        raise ValueError("must have no part behind a #")
    function = re.search(r"/(chat/completions|completions|responses|models|messages|embeddings)/?(\?|$)", url)
    if function is not None:
        raise ValueError(f"must end before /{function[1]}, and mostly ends in /v1")
    return url


def without_credentials(url: str) -> str:
    """Return a URL of any kind, or a local path, in a form that is safe to show: without login and parameters.

    Every message, log line and metadata value that names a storage or an endpoint takes this form. What cannot be told
    apart from a credential is replaced by ``***``, or the whole by a remark.
    """
    if _POSTGRES_SCHEME.match(url):
        return describe_postgres(url)
    if "://" not in url:
        if re.match(r"\s*\w+\s*=", url):
            return _UNREADABLE
        is_path = re.match(r"/(?!/)|[.~]|[A-Za-z]:[\\/]", url) is not None
        return url if is_path or "@" not in url else f"{_HIDDEN}@{url.rpartition('@')[2]}"
    pieces = [_piece_without_credentials(piece) for piece in url.split("::")]
    return _UNREADABLE if None in pieces else "::".join(map(str, pieces))


def _piece_without_credentials(piece: str) -> str | None:
    """Return one part of a chained URL in a safe form; None where it cannot be read."""
    match = _REMOTE_URL.fullmatch(piece)
    if match is None:
        return piece if _PROTOCOL.fullmatch(piece) else None
    scheme, place, query = match.groups()
    authority = place.partition("/")[0]
    if scheme.lower() in _LOCAL_SCHEMES and "@" not in authority:
        return piece
    if "@" in query and "@" not in place:
        return None
    login, at, rest = place.rpartition("@")
    place = login + at + _PARAMETERS.split(rest, maxsplit=1)[0]
    if scheme.lower() in _CONTAINER_SCHEMES and place.count("@") == 1 and ":" not in authority.partition("@")[0]:
        return f"{scheme}://{place}"
    login, _, rest = place.rpartition("@")
    if not login and re.search(":(?![0-9]{0,5}$)", re.sub(r"^\[[0-9a-f:.]*\]", "", authority, flags=re.IGNORECASE)):
        return None
    return f"{scheme}://{f'{_HIDDEN}@' if '/' in login else ''}{rest}"


def hide_credentials(text: str, url: str) -> str:
    """Return a text, such as a library's error, without the credentials of a URL that it may repeat."""
    for secret in sorted(set(_credentials(url)), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _credentials(url: str) -> Iterator[str]:
    """Yield what must not be shown of a URL, as written and decoded."""
    for part in _hidden_parts(url):
        for form in (part, unquote(part), quote(part, safe=""), quote(unquote(part), safe="")):
            if len(form) >= _MIN_HIDDEN_CHARACTERS:
                yield form


def _hidden_parts(url: str) -> Iterator[str]:
    readable = without_credentials(url) != _UNREADABLE
    if readable and _POSTGRES_SCHEME.match(url):
        try:
            given = postgres_parameters(normalize_postgres_url(url)) or {}
        except ValueError:
            readable = False
        else:
            yield from (value for name, value in given.items() if name in _SECRET_PARAMETERS)
            return
    if not readable:
        # Any part of it may be one of a password.
        yield from (url, *re.split(r"[:/@?&=;#\s]+", url.partition("://")[2] or url))
        return
    for piece in url.split("::"):
        match = _REMOTE_URL.fullmatch(piece)
        place, query = (match[2], match[3]) if match else (piece, "")
        if piece == without_credentials(piece):
            continue
        login, at, _ = place.rpartition("@")
        if at:
            yield from (login, *re.split(r"[:/@]", login))
        for part in _PARAMETERS.split(f"{place.rpartition('@')[2]}&{query}".replace("?", "&").replace("#", "&"))[1:]:
            yield from (part, *re.split("/", re.split("=|%3D", part, maxsplit=1, flags=re.IGNORECASE)[-1]))
