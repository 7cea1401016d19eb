"""Arrow types of declared columns, and rows as Python values whatever they hold."""

from functools import cache
from typing import Any

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


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as dicts.

    A time that Python cannot hold (before the year 1, after 9999) is text; text that is no UTF-8 begins with a NUL,
    and has its wrong bytes as escapes.
    """
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return [_to_python(row) for row in batch.to_struct_array()]


def _to_python(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if isinstance(value, pa.StructScalar):
            return {name: _to_python(item) for name, item in value.items()}
        if isinstance(value, pa.ListScalar):
            return [_to_python(item) for item in value]
        if isinstance(value, pa.StringScalar):
            return "\0" + value.cast(pa.binary()).as_py().decode(errors="backslashreplace")
        return str(value.cast(pa.string()))
