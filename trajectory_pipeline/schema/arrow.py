"""Arrow types of declared columns.

Belongs here: the translation from the type language to Arrow. Does not belong here: any column.
"""

from functools import cache
from typing import Any

import pyarrow as pa

from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Struct, Table, Type

_SCALARS: dict[Scalar, pa.DataType] = {
    Scalar.STRING: pa.string(),
    Scalar.INT: pa.int64(),
    Scalar.FLOAT: pa.float64(),
    Scalar.BOOL: pa.bool_(),
    Scalar.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    Scalar.NAIVE_TIMESTAMP: pa.timestamp("us"),
    Scalar.MONEY: pa.decimal128(18, 9),
    Scalar.JSON: pa.string(),
}


def arrow_type(kind: Type) -> pa.DataType:
    """Return the Arrow type of a declared one."""
    if isinstance(kind, ListOf):
        return pa.list_(arrow_type(kind.item))
    if isinstance(kind, Struct):
        return pa.struct([arrow_field(column) for column in kind.fields])
    return _SCALARS[kind]


def arrow_field(column: Column) -> "pa.Field[Any]":
    """Return the Arrow field of a column."""
    return pa.field(column.name, arrow_type(column.type), nullable=True)


@cache
def arrow_schema(table: Table) -> pa.Schema:
    """Return the schema of a table's Parquet files; the description of each column travels with it."""
    return pa.schema(
        [
            arrow_field(column).with_metadata({"description": column.description})
            for column in table.in_sink(Sink.PARQUET)
        ]
    )
