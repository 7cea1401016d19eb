"""Short ways to ask and change a database, and to read it as the pipeline does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pyarrow as pa

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline_tests.letta_sample import sample_window

Row = dict[str, Any]

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
FAR_AHEAD = datetime(2100, 1, 1, tzinfo=UTC)


def ask(url: str, question: str, values: list[Any] | None = None) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(question.encode(), values).fetchall()


def do(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def all_batches(url: str) -> list[pa.RecordBatch]:
    with LettaSource(url).snapshot() as snapshot:
        return list(snapshot.terminal_runs(LONG_AGO, FAR_AHEAD))


def all_runs(url: str) -> dict[str, Row]:
    """Every terminal run, whenever it ended, by id."""
    return by_id(all_batches(url))


def by_id(batches: list[pa.RecordBatch]) -> dict[str, Row]:
    return {row["run_id"]: row for batch in batches for row in batch.to_pylist()}


def hours() -> Iterator[tuple[datetime, datetime]]:
    """Every hour of the sample's window, and one more on each side."""
    first, last = sample_window()
    hour = first - timedelta(hours=1)
    while hour <= last + timedelta(hours=1):
        yield hour, hour + timedelta(hours=1)
        hour += timedelta(hours=1)


def changed(url: str, *, user: str = "", password: str | None = None, host: str = "", query: str = "") -> str:
    """The URL with another user, password (not yet encoded), ``host:port`` or query."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    if user or password is not None:
        login = f"{user or parts.username}:{quote(password or '', safe='')}"
    return f"postgresql://{login}@{host or parts.netloc.rpartition('@')[2]}{parts.path}" + (
        f"?{query}" if query else ""
    )


def columns_of(url: str) -> dict[str, set[str]]:
    """The columns of each table in the schema ``public``."""
    found: dict[str, set[str]] = {}
    question = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    for table, column in ask(url, question):
        found.setdefault(table, set()).add(column)
    return found
