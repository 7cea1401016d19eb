"""Databases on the embedded server, for tests."""

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
