"""SQL types of declared columns.

Belongs here: the translation from the type language to Postgres types, and SQLAlchemy tables made of it. Does not
belong here: any column, and the migrations, which are frozen when they are released and therefore spell out their
own DDL (a test compares what they make with what is declared).
"""

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from trajectory_pipeline.schema.types import ListOf, Scalar, Sink, Table, Type

SCHEMA_NAME = "trajectory"
"""The one Postgres schema that is ours."""

_SCALARS: dict[Scalar, sa.types.TypeEngine[Any]] = {
    Scalar.STRING: pg.TEXT(),
    Scalar.INT: pg.BIGINT(),
    Scalar.FLOAT: pg.DOUBLE_PRECISION(),
    Scalar.BOOL: pg.BOOLEAN(),
    Scalar.TIMESTAMP: pg.TIMESTAMP(timezone=True),
    Scalar.NAIVE_TIMESTAMP: pg.TIMESTAMP(timezone=False),
    Scalar.MONEY: pg.NUMERIC(18, 9),
    Scalar.JSON: pg.JSONB(),
}


def sql_type(kind: Type) -> "sa.types.TypeEngine[Any]":
    """Return the Postgres type of a declared one: lists of scalars are arrays, all that is nested is ``jsonb``."""
    if isinstance(kind, ListOf) and isinstance(kind.item, Scalar) and kind.item is not Scalar.JSON:
        return pg.ARRAY(sql_type(kind.item))
    if isinstance(kind, Scalar):
        return _SCALARS[kind]
    return pg.JSONB()


@cache
def sql_table(table: Table) -> sa.Table:
    """Return a declared table as SQLAlchemy knows it, in the schema ``trajectory``."""
    return sa.Table(
        table.name,
        sa.MetaData(schema=SCHEMA_NAME),
        *(
            sa.Column(column.name, sql_type(column.type), primary_key=column.key, nullable=column.nullable)
            for column in table.in_sink(Sink.POSTGRES)
        ),
    )
