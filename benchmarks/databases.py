"""Dropping databases of the embedded server."""

import psycopg
from psycopg import sql

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer


def drop_database(server: EmbeddedServer, name: str) -> None:
    """Drop a database if it exists, and end its connections."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
