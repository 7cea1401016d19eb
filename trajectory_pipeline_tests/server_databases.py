"""Databases on the embedded server, for tests."""

import time

import psycopg
from psycopg import sql

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer


def create_database(server: EmbeddedServer, name: str, template: str | None = None) -> None:
    """Create a database, as a copy of a template that has no connections if one is given."""
    copied = sql.SQL(" TEMPLATE {}").format(sql.Identifier(template)) if template else sql.SQL("")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)) + copied)


def drop_database(server: EmbeddedServer, name: str) -> None:
    """Drop a database if it exists, and end its connections."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def wait_for_lock(url: str) -> None:
    """Return once a session of a database waits for a lock."""
    while count_lock_waits(url) == 0:
        time.sleep(0.01)


def count_lock_waits(url: str) -> int:
    """Return how many sessions of a database wait for a lock."""
    question = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(question).rowcount
