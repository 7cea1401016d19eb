"""Databases, connections and a folder that all histories of a process share, emptied in between."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline_tests.memory_folder import memory_folder
from trajectory_pipeline_tests.server_databases import create_database, drop_database
from trajectory_pipeline_tests.simulation.connection_pools import ConnectionPools
from trajectory_pipeline_tests.simulation.skewed_clock import install_clock, set_clock_skew

UNTOUCHED_TABLES = ("alembic_version",)


@pytest.fixture(scope="module")
def databases(_templates: EmbeddedServer) -> Iterator[dict[str, str]]:
    """The URLs of three databases: ``letta`` (the source), ``sink``, and ``scratch`` (the sink of a fresh build)."""
    names = {"letta": "template_letta", "sink": "template_trajectory", "scratch": "template_trajectory"}
    made = {name: f"simulation_{name}" for name in names}
    for name, template in names.items():
        create_database(_templates, made[name], template)
        install_clock(_templates.url(made[name]))
    yield {name: _templates.url(made[name]) for name in names}
    for name in names:
        drop_database(_templates, made[name])


@pytest.fixture(scope="module")
def pools() -> Iterator[ConnectionPools]:
    pools = ConnectionPools()
    yield pools
    pools.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: files are synced, and a disk may be slow at that."""
    with memory_folder(otherwise=tmp_path) as folder:
        yield folder


def empty_tables(url: str, tables: str) -> str:
    """Empty tables of a database and reset its clock; returns its URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {tables} CASCADE".encode())
        set_clock_skew(connection, 0)
    return url


@pytest.fixture
def sink_tables(databases: dict[str, str]) -> str:
    """The names of the sink's tables, for ``empty_tables``."""
    with psycopg.connect(databases["sink"], autocommit=True) as connection:
        rows = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'trajectory'::regnamespace"
            " AND NOT relname = ANY(%s)",
            [list(UNTOUCHED_TABLES)],
        ).fetchall()
    return ", ".join(f"trajectory.{row[0]}" for row in rows)
