"""Arrow types of declared columns."""

from functools import cache

import pyarrow as pa

from trajectory_pipeline.schema.types import ListOf, Scalar, Sink, Struct, Table, Type

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
        return pa.struct([pa.field(column.name, arrow_type(column.type)) for column in kind.fields])
    return _SCALARS[kind]


@cache
def arrow_schema(table: Table) -> pa.Schema:
    """Return the schema of a table's Parquet files; each field's metadata has the column's ``description``."""
    return pa.schema(
        [
            pa.field(column.name, arrow_type(column.type), metadata={"description": column.description})
            for column in table.in_sink(Sink.PARQUET)
        ]
    )
