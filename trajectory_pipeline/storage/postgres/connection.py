"""Opening connections to the trajectory database, and the texts of its errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import set_json_loads

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.lossless_json import exact_numbers
from trajectory_pipeline.storage.postgres.prepared import Prepared
from trajectory_pipeline.urls import describe_postgres, hide_credentials, normalize_postgres_url

_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "client_encoding": "UTF8",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # Another worker may hold a partition for hours, and reading the source may take as long.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
"""What a transaction needs, whatever the server, the database, the role or a pooler sets."""

_OUR_POLICIES = (
    "(SELECT bool_and(starts_with(p.polname::text, 'service_') IS TRUE)"
    " FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_policy p ON p.polrelid = c.oid"
    " WHERE c.relnamespace = to_regnamespace('trajectory') AND c.relrowsecurity)"
    " AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = 'trajectory_service'"
    " AND pg_has_role(r.oid, 'USAGE'))"
)
_IS_OWNER = (
    "coalesce((SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_catalog.pg_class c"
    " WHERE c.oid = to_regclass('trajectory.trajectories')), false)"
)
_FIXED = ", ".join(
    (
        # Setting one and putting it back takes longer than looking whether it is so anyway.
        *(
            f"CASE WHEN current_setting('{name}') <> '{value}' THEN set_config('{name}', '{value}', true) END"
            for name, value in _SETTINGS.items()
        ),
        "CASE WHEN current_setting('server_version_num')::int >= 170000"
        " THEN set_config('transaction_timeout', '0', true) END",
        # With "replica", no foreign key and no trigger would hold. Only superusers may set it, so only where needed.
        "CASE WHEN current_setting('session_replication_role') <> 'origin'"
        " THEN set_config('session_replication_role', 'origin', true) END",
        # What a call cost must not be forgotten in a crash of the server.
        "CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END",
    )
)
# A policy that hides rows is an error: what is hidden would look deleted. Those of the service hide none, and no policy
# concerns the owner of the tables.
_ROW_SECURITY = (
    f"CASE WHEN NOT {_IS_OWNER} AND {_OUR_POLICIES}"
    " THEN set_config('row_security', 'on', true) ELSE set_config('row_security', 'off', true) END"
)

_FRAMING = re.compile(
    r"^(?:connection (?:failed|is bad): )?(?:connection to server (?:at|on) .* failed: )?(?:(?:ERROR|FATAL):\s+)?"
)

_UNREACHABLE = "is the server running, and reachable from here? Check the host and port in TRAJECTORY_DATABASE_URL"
_LOST = "the connection was lost: what was not committed is not there; materialize again"
_FULL = "the server's disk is full: make room, then materialize again"

_ADVICE: tuple[tuple[str, str], ...] = (
    (r"password authentication failed", "the password is wrong: check TRAJECTORY_DATABASE_URL"),
    (r"no password supplied", "it asks for a password: add one to TRAJECTORY_DATABASE_URL"),
    (
        r"no encryption|SSL required",
        "this user may not log in from here, or only over TLS: check TRAJECTORY_DATABASE_URL (sslmode=require) and the"
        " server's pg_hba.conf",
    ),
    (
        r"pg_hba\.conf|not permitted to log in",
        "this user may not log in from here: check TRAJECTORY_DATABASE_URL and the server's pg_hba.conf",
    ),
    (r'role ".*" does not exist', "there is no such user: check TRAJECTORY_DATABASE_URL"),
    (
        r'database ".*" does not exist',
        "create it (CREATE DATABASE), or check the name at the end of TRAJECTORY_DATABASE_URL",
    ),
    (
        r"permission denied for database",
        "run `trajectory-pipeline migrate` as a user who has CREATE on the database, or grant it",
    ),
    (
        r"create temporary tables",
        "rows are staged in a temporary table: its owner could run GRANT TEMPORARY ON DATABASE … TO this user",
    ),
    (r"permission denied for function", "its owner could run GRANT EXECUTE ON FUNCTION … TO this user"),
    (
        r"permission denied to set parameter",
        "remove this setting from the role and the database: ALTER ROLE … RESET, ALTER DATABASE … RESET",
    ),
    (
        r"row-level security",
        "a policy would hide rows from this user: connect as the tables' owner, or as a superuser run ALTER ROLE …"
        " BYPASSRLS",
    ),
    (
        r"permission denied|must be owner",
        "this user may not do that: it must own the schema trajectory, or have USAGE on it, and SELECT, INSERT,"
        " UPDATE, DELETE on its tables",
    ),
    (
        r"read-only transaction|read-write mode during recovery",
        "the server only reads (a standby, or default_transaction_read_only): TRAJECTORY_DATABASE_URL must name the"
        " primary",
    ),
    (r"No space left|could not extend", _FULL),
    (r"could not serialize access", "another transaction changed the same rows meanwhile: materialize again"),
    (r"deadlock detected", "another materialization moved the same runs: materialize again"),
    (r"too many clients|remaining connection slots", "the server has no connection left: raise its max_connections"),
    (r"statement timeout|lock timeout", "another session holds a lock, or the server is slow: materialize again"),
    (r"is (starting up|shutting down|not (yet )?accepting)", "the server is starting or stopping: try again"),
    (
        r"(relation|column|schema) .*does not exist",
        "the schema is not what this version made: run `trajectory-pipeline migrate`",
    ),
    (r"terminating connection|server closed|connection is (lost|closed)|SSL SYSCALL|consuming input failed", _LOST),
    (r"\bSSL\b|certificate", "check sslmode and sslrootcert in TRAJECTORY_DATABASE_URL"),
    (r"refused|timeout|timed out|resolve host|translate host|No such file|unreachable|no route", _UNREACHABLE),
)


def database_error(url: str, doing: str, error: BaseException, advice: str | None = None) -> SinkError:
    """Return the sentence for a driver's error: what was being done, where, and what to do, if that is not given."""
    reason = hide_credentials(_reason(str(getattr(error, "orig", None) or error)), url)
    advice = advice or next(
        (words for pattern, words in _ADVICE if re.search(pattern, reason, re.IGNORECASE)),
        "see the server's log; what was not committed is not there",
    )
    return SinkError(f"{doing} failed in the database {describe_postgres(url)}: {reason} — {advice}.")


def _reason(message: str) -> str:
    """Return the message of the server or libpq on one line, without framing, hints and the values of rows."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason was given"]
    # A host name with several addresses gives a line for each: the last one is the most useful (the first is ::1).
    attempts = [line for line in lines if "connection to server " in line and " failed: " in line]
    return _FRAMING.sub("", attempts[-1] if attempts else lines[0]).rstrip(" .")


@contextmanager
def translating_database_errors(url: str, doing: str) -> Iterator[None]:
    """Turn every error of a driver inside into a ``SinkError`` that names what was being done."""
    try:
        yield
    except psycopg.Error as error:
        raise database_error(url, doing, error) from error


_SEARCH_PATH = "set_config('search_path', 'pg_catalog', true)"
_BEGIN = f"SELECT {_IS_OWNER}, {_FIXED}, {_ROW_SECURITY}, {_SEARCH_PATH}".encode()
_BEGIN_AS_OWNER = f"SELECT {_FIXED}, set_config('row_security', 'off', true), {_SEARCH_PATH}".encode()
BEGIN_PREPARED = (Prepared(f"SELECT {_FIXED}, {_ROW_SECURITY}"), Prepared(f"SELECT {_SEARCH_PATH}"))
"""What ``begin`` states. Apart, because a plan is made anew whenever the statement itself changes the search path."""
_owners: set[tuple[str, ...]] = set()
"""Users who own the tables, as they were seen by this process: where, which database, who."""


def begin(connection: psycopg.Connection) -> None:
    """State what the connection's transaction needs, as its first statement; it holds until the transaction's end."""
    info = connection.info
    user = (info.host, str(info.port), info.dbname, info.user, info.options)
    if user in _owners:
        # Reading the catalogs for policies would take 4 ms of each new session. Who is no owner any more gets an error.
        connection.execute(_BEGIN_AS_OWNER)
        return
    (is_owner, *_) = next(iter(connection.execute(_BEGIN)))
    if is_owner:
        _owners.add(user)


def open_connection(url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """Open a connection whose transactions are READ COMMITTED and READ WRITE; the caller closes it.

    Raises:
        SinkError: libpq cannot read the URL, or the database's encoding is not UTF8.
        psycopg.Error: the database cannot be reached or refuses.
    """
    try:
        url = normalize_postgres_url(url)
    except ValueError as error:
        raise SinkError(f"TRAJECTORY_DATABASE_URL {error}.") from None
    given = conninfo_to_dict(url)
    defaults: dict[str, Any] = {"connect_timeout": 10, "application_name": "trajectory-pipeline"}
    missing = {name: value for name, value in defaults.items() if name not in given}
    # No statement is prepared on the server: behind a pooler, the next transaction may have another session.
    connection = psycopg.connect(url, autocommit=autocommit, prepare_threshold=None, client_encoding="UTF8", **missing)
    set_json_loads(exact_numbers, connection)
    try:
        _require_utf8(url, connection)
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        connection.read_only = connection.deferrable = False
    except BaseException:
        connection.close()
        raise
    return connection


def _require_utf8(url: str, connection: psycopg.Connection) -> None:
    """Refuse a database in which some texts of runs could not be stored."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding is None:  # pragma: no cover - a pooler that does not pass it on
        encoding = next(iter(connection.execute("SHOW server_encoding")))[0]
        connection.rollback()
    if encoding != "UTF8":
        raise SinkError(
            f"The database {describe_postgres(url)} has the encoding {encoding}, which cannot hold every text: create"
            " another one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, name it in"
            " TRAJECTORY_DATABASE_URL, and run `trajectory-pipeline migrate`."
        )
