"""Read-only connections to the source, and errors of the driver as sentences that say what to do."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import adbc_driver_manager
import adbc_driver_postgresql
import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from trajectory_pipeline.errors import SourceConflictError, SourceError, SourceTimeoutError
from trajectory_pipeline.source_protocol import SourceIdentity
from trajectory_pipeline.urls import describe_postgres, hide_credentials, normalize_postgres_url, postgres_parameters

APPLICATION_NAME = "trajectory-pipeline"
CONNECT_TIMEOUT_SECONDS = 10

_DEFAULT_PARAMETERS = {
    "application_name": APPLICATION_NAME,
    "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
    # A server that vanished is noticed after a minute instead of the system's two hours.
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
_LONGEST_TIMEOUT_SECONDS = 2_147_483
"""Postgres stores timeouts as milliseconds in 32 bits."""

_UNREACHABLE = "is the server running, and reachable from here? Check the host and port in LETTA_PG_URI"
_LOST = "the connection was lost: materialize the partition again"
_SQLSTATE_ADVICE = {
    "25P03": "the snapshot was held open too long without a query: raise TRAJECTORY_SOURCE_TIMEOUT",
    "28P01": "the password is wrong: check LETTA_PG_URI",
    "28000": "this user may not log in: check LETTA_PG_URI and the server's pg_hba.conf",
    "3D000": "there is no such database: check the name at the end of LETTA_PG_URI",
    "40001": "the source ended the snapshot (a hot standby does so when it replays a conflict): try again",
    "42501": "this user may not read it: GRANT SELECT on Letta's tables to the user in LETTA_PG_URI, and USAGE"
    " on their schema",
    "42703": "the source has changed since the snapshot began (a Letta upgrade?): materialize the partition again",
    "42P01": "the source has changed since the snapshot began (a Letta upgrade?): materialize the partition again",
    "53300": "the server has no connection left: raise its max_connections, or run less at once",
    "55P03": "another session holds a lock on it: try again",
    "57014": "the query took longer than TRAJECTORY_SOURCE_TIMEOUT allows: raise it, or try again under less load",
    "57P01": _LOST,
    "57P03": "the server is starting or stopping: try again",
}
_HIDDEN_ROWS = re.compile(r"row-level security|row_security", re.IGNORECASE)
_HIDDEN_ROWS_ADVICE = (
    "this user may not see all rows, and a hidden row looks deleted: as a superuser, ALTER ROLE … BYPASSRLS for the"
    " user in LETTA_PG_URI (another policy or GRANT does not help)"
)
# A failed login has no SQLSTATE, nor has an error in the middle of a stream, only a message; if the server's messages
# are not English, the advice is the general one.
_MESSAGE_ADVICE = (
    (re.compile(r"conflict with recovery", re.IGNORECASE), _SQLSTATE_ADVICE["40001"]),
    (re.compile(r"statement timeout|canceling statement", re.IGNORECASE), _SQLSTATE_ADVICE["57014"]),
    (re.compile(r"idle-in-transaction", re.IGNORECASE), _SQLSTATE_ADVICE["25P03"]),
    (re.compile(r"password authentication failed|no password supplied", re.IGNORECASE), _SQLSTATE_ADVICE["28P01"]),
    (
        re.compile(r"no encryption|SSL required"),
        "this user may not log in from here, or only over TLS: check LETTA_PG_URI (sslmode=require) and the server's"
        " pg_hba.conf",
    ),
    (re.compile(r"no pg_hba\.conf entry|authentication failed|not permitted to log in"), _SQLSTATE_ADVICE["28000"]),
    (re.compile(r'role ".*" does not exist', re.IGNORECASE), "there is no such user: check LETTA_PG_URI"),
    (re.compile(r'database ".*" does not exist', re.IGNORECASE), _SQLSTATE_ADVICE["3D000"]),
    (
        re.compile(r"permission denied for database", re.IGNORECASE),
        "this user may not enter it: GRANT CONNECT on the database to the user in LETTA_PG_URI",
    ),
    (re.compile(r"too many (clients|connections)|remaining connection slots"), _SQLSTATE_ADVICE["53300"]),
    (re.compile(r"database system is (starting up|shutting down|not (yet )?accepting)"), _SQLSTATE_ADVICE["57P03"]),
    (re.compile(r"server closed the connection|terminat|SSL SYSCALL|broken|reset|no connection", re.IGNORECASE), _LOST),
    (re.compile(r"\bSSL\b|certificate", re.IGNORECASE), "check sslmode and sslrootcert in LETTA_PG_URI"),
    (re.compile(r"refused|time(d )?out|translate host|no such file|no route|unreachable", re.IGNORECASE), _UNREACHABLE),
)
# Prefixes that the driver and libpq put before the server's message.
_PREFIX = re.compile(
    r"^(?:[A-Z_]+: (?=[A-Z[])|\[libpq\] |Failed to [a-z ]+: |could not begin COPY: |Execution error \[\w+\]: "
    r"|connection to server (?:at|on) .* failed: |(?:ERROR|FATAL|PANIC):\s+)"
)
_OWN_QUERY = re.compile(r"Failed to execute query '.*': ", re.DOTALL)
_NOISE = re.compile(r"\s*(?:Query (?:was|'|text)|SQLSTATE:).*$")


def source_error(url: str, doing: str, error: BaseException) -> SourceError:
    """Return an error that says what was being done, where, why it failed and what to do."""
    text = hide_credentials(_server_message(str(error)), url)
    sqlstate = getattr(error, "sqlstate", None) or ""
    advice = _SQLSTATE_ADVICE.get(sqlstate) or next(
        (words for pattern, words in _MESSAGE_ADVICE if pattern.search(text)), "check LETTA_PG_URI and the server's log"
    )
    if _HIDDEN_ROWS.search(text):
        # It has the SQLSTATE of a missing privilege.
        advice = _HIDDEN_ROWS_ADVICE
    kinds = {_SQLSTATE_ADVICE["57014"]: SourceTimeoutError, _SQLSTATE_ADVICE["40001"]: SourceConflictError}
    kind = kinds.get(advice, SourceError)
    return kind(f"{doing} failed at the source {describe_postgres(url)}: {text} — {advice}.")


def _server_message(message: str) -> str:
    """Return the message of the server, or of libpq: one line, without the driver's framing, hints and query texts."""
    # Of its own queries, the driver adds the text, over several lines.
    message = _OWN_QUERY.sub("", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason was given"]
    # A name with several addresses gives a line for each: the last one tried helps most (the first is often ::1).
    attempts = [line for line in lines if "connection to server " in line and " failed: " in line]
    text = attempts[-1] if attempts else lines[0]
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    return _NOISE.sub("", text).rstrip(" .")


def _libpq_url(url: str) -> str:
    """Return the URL with our defaults, unless it brings its own; what it brings is left as it is written."""
    try:
        url = normalize_postgres_url(url)
    except ValueError as error:
        raise SourceError(f"LETTA_PG_URI {error}.") from None
    given = postgres_parameters(url) or {}
    missing = "&".join(f"{name}={value}" for name, value in _DEFAULT_PARAMETERS.items() if name not in given)
    separator = "?" if "?" not in url else "" if url.endswith(("?", "&")) else "&"
    return url + separator + missing


@contextmanager
def reading(url: str, doing: str) -> Iterator[None]:
    """Turn what the driver raises inside into a ``SourceError`` that names what was being done."""
    try:
        yield
    except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
        # In the middle of a stream, the driver's errors come as Arrow's, or as an OSError.
        raise source_error(url, doing, error) from error


@dataclass(frozen=True)
class Begun:
    """A transaction on the source: when it began, just before its snapshot was taken, by the source's clock."""

    connection: adbc.Connection
    at: datetime
    identity: SourceIdentity
    search_path: list[str]


# Until the search path is set, names are qualified: one of the user's schemas may have functions and operators alike.
_CLUSTER = (
    "(SELECT pg_catalog.format('cluster %s, timeline %s', system_identifier, timeline_id)"
    " FROM pg_catalog.pg_control_system(), pg_catalog.pg_control_checkpoint())"
)
_POSITION = (
    "(CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
    " ELSE pg_catalog.pg_current_wal_lsn() END OPERATOR(pg_catalog.-) '0/0')::bigint"
)
_DATABASE = (
    "(SELECT pg_catalog.format('database %s (%s)', datname, oid) FROM pg_catalog.pg_database"
    " WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database())"
)
_SEARCH_PATH = "pg_catalog.array_to_json(pg_catalog.current_schemas(false))::pg_catalog.text"
_IDENTITIES = tuple(
    f"{cluster} AS cluster, {position} AS position"
    for cluster, position in (
        (_CLUSTER, _POSITION),
        (_CLUSTER, "NULL::bigint"),
        ("NULL::pg_catalog.text", _POSITION),
        ("NULL::pg_catalog.text", "NULL::bigint"),
    )
)
"""What to ask of the server, from most to least: a user may lack the right, or a server the function."""


def _begin(connection: adbc.Connection, url: str, timeout_seconds: int) -> Begun:
    """Begin one transaction, with its snapshot; close the connection where that fails.

    Settings hold for the transaction alone, so that a pooler passes none of them on to other clients.
    """
    milliseconds = min(timeout_seconds, _LONGEST_TIMEOUT_SECONDS) * 1000
    session = {
        "statement_timeout": str(milliseconds),
        # If we hang, the server's vacuum must not wait forever; and its own limit may be too short for us.
        "idle_in_transaction_session_timeout": str(milliseconds),
        "TimeZone": "UTC",
        "client_encoding": "UTF8",
        "standard_conforming_strings": "on",
        # A policy that would hide rows is then an error: a hidden row must not be taken for a deleted one.
        "row_security": "off",
        "lock_timeout": "0",
        "array_nulls": "on",
        # A view's row version is its row as text.
        "DateStyle": "ISO, MDY",
        "IntervalStyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        # The last, since the one before is read in the same query.
        "search_path": "pg_catalog",
    }
    # One query sets everything; it holds no backslash, which a setting could give another meaning.
    settings = ", ".join(f"pg_catalog.set_config('{name}', '{value}', true)" for name, value in session.items())
    settings += (
        ", CASE WHEN pg_catalog.current_setting('server_version_num')::int OPERATOR(pg_catalog.>=) 170000"
        " THEN pg_catalog.set_config('transaction_timeout', '0', true) END"
    )
    with ExitStack() as on_error:
        on_error.callback(connection.close)
        for fewer, asked in enumerate(_IDENTITIES, start=1):
            try:
                with reading(url, "Opening the snapshot"), connection.cursor() as cursor:
                    # The driver prepares what a cursor executes, but not its own BEGIN and COMMIT: behind a pooler, a
                    # statement that is prepared outside a transaction may be executed on another session.
                    connection.adbc_connection.set_autocommit(False)
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                    cursor.execute(
                        f"SELECT pg_catalog.now(), {_DATABASE} AS database, {asked}, {_SEARCH_PATH}, {settings}"
                    )
                    began, name, cluster, position, search_path = cursor.fetchone()[:5]
                break
            except SourceError as error:
                # Whoever may read it, and is too slow, must not look like another source.
                if fewer == len(_IDENTITIES) or isinstance(error, SourceTimeoutError):
                    raise
                with reading(url, "Opening the snapshot"):
                    connection.adbc_connection.set_autocommit(True)
        on_error.pop_all()
    return Begun(
        connection,
        began.astimezone(UTC),
        SourceIdentity(", ".join(filter(None, (cluster, name))), cluster, position),
        json.loads(search_path),
    )


class _TypesOfServer:
    """What the driver knows of the types of a server, kept for all connections to it.

    The driver reads all types and columns of the database when it is told of it, which takes longer than connecting.
    Whatever is read from the source is cast to types whose numbers Postgres never changes, so this does not go stale.
    """

    def __init__(self, target: str) -> None:
        self.database = adbc_driver_postgresql.connect(target)

    def close(self) -> None:
        """Keep it: each connection that is closed closes its database."""


_types_of = lru_cache(maxsize=16)(_TypesOfServer)


def open_connection(target: str) -> adbc.Connection:
    """Open a connection that commits by itself.

    Raises:
        adbc_driver_manager.Error: the server cannot be reached or refuses.
    """
    types = _types_of(target)
    return adbc.Connection(types, adbc_driver_manager.AdbcConnection(types.database), autocommit=True)


class SnapshotConnection:
    """One connection to the source for one transaction after the other, reopened where it was lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: adbc.Connection | None = None

    @contextmanager
    def transaction(self, *, timeout_seconds: int) -> Iterator[Begun]:
        """Begin one ``REPEATABLE READ, READ ONLY`` transaction, in UTC and UTF-8, until the end.

        The timeout is of one query, and of the time between two.

        Raises:
            SourceError: the source cannot be reached or refuses.
        """
        begun = self._begun(timeout_seconds)
        connection, ended = begun.connection, False
        try:
            yield begun
            # Everything is read: it does not matter if the connection is lost now.
            with suppress(SourceError), reading(self._url, "Ending the snapshot"):
                connection.adbc_connection.set_autocommit(True)
                ended = True
        finally:
            if ended and self._idle is None:
                self._idle = connection
            else:
                connection.close()

    def _begun(self, timeout_seconds: int) -> Begun:
        idle, self._idle = self._idle, None
        if idle is not None:
            # The first query also shows whether the connection was lost since.
            with suppress(SourceError):
                return _begin(idle, self._url, timeout_seconds)
        target = _libpq_url(self._url)
        try:
            with reading(self._url, "Connecting"):
                connection = open_connection(target)
        except SourceTimeoutError:
            if "options=" in target:
                raise
            # The role's limit is too short for the driver's first queries. Some poolers refuse options, so only now.
            with reading(self._url, "Connecting"):
                connection = open_connection(f"{target}&options=-c%20statement_timeout%3D0")
        return _begin(connection, self._url, timeout_seconds)

    def close(self) -> None:
        """Close what is idle."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.close()


def literal(value: str) -> str:
    """Return a value as an SQL literal (``standard_conforming_strings`` is on in our sessions)."""
    return "'" + value.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal_array(values: list[str], kind: str = "character varying") -> str:
    """Return values as an SQL array of a column's type, so that its index serves."""
    return f"ARRAY[{', '.join(map(literal, values))}]::{kind}[]"
