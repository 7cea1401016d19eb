"""Connections to the trajectory database, and what is said when there is none.

Belongs here: opening a connection, and turning a driver's error into a sentence. Does not belong here: statements.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import sqlalchemy as sa

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.settings import without_password

APPLICATION_NAME = "trajectory-pipeline"
CONNECT_TIMEOUT_SECONDS = 10

_ADVICE: tuple[tuple[str, str], ...] = (
    ("password authentication failed", "the password is wrong: check TRAJECTORY_DATABASE_URL"),
    ("no password supplied", "it asks for a password: add one to TRAJECTORY_DATABASE_URL"),
    ("pg_hba.conf", "this user may not log in from here: check TRAJECTORY_DATABASE_URL and the server's pg_hba.conf"),
    (
        "does not exist",
        "create it, or check the name at the end of TRAJECTORY_DATABASE_URL; tables: `trajectory-pipeline migrate`",
    ),
    (
        "permission denied",
        "this user may not do that: it needs CREATE on the database, or must own the schema trajectory",
    ),
    ("read-only", "the server is a standby: TRAJECTORY_DATABASE_URL must name the primary"),
    ("No space left", "the server's disk is full: make room, then materialise again"),
    ("could not extend", "the server's disk is full: make room, then materialise again"),
    (
        "connection failed",
        "is the server running, and reachable from here? check the host and port in TRAJECTORY_DATABASE_URL",
    ),
    (
        "connection timeout",
        "is the server running, and reachable from here? check the host and port in TRAJECTORY_DATABASE_URL",
    ),
)


def sink_error(url: str, doing: str, error: BaseException) -> SinkError:
    """Return the sentence for a driver's error: what was being done, where, and what to do."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    advice = next((words for piece, words in _ADVICE if piece in text), "see the server's log; nothing was written")
    return SinkError(f"{doing} failed in the database {without_password(url)}: {text} — {advice}.")


@contextmanager
def writing(url: str, doing: str) -> Iterator[None]:
    """Turn what the drivers raise inside into a ``SinkError`` that names what was being done.

    Raises:
        SinkError: for every error of a driver.
    """
    try:
        yield
    except (psycopg.Error, sa.exc.DBAPIError) as error:
        raise sink_error(url, doing, error) from error


@contextmanager
def connect(url: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection]:
    """Open a connection in UTC; committed at the end, rolled back on any error.

    Raises:
        SinkError: the database cannot be reached or refuses.
    """
    with (
        writing(url, "Working"),
        psycopg.connect(
            url,
            autocommit=autocommit,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name=APPLICATION_NAME,
            options="-c timezone=UTC",
        ) as connection,
    ):
        yield connection
