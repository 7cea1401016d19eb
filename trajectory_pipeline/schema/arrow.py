"""Arrow types of declared columns, and rows as Python values whatever they hold."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from functools import cache
from typing import Any, cast

import numpy as np
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


Change = Callable[[str, list[str]], Sequence[str | None]]
"""Makes other texts of those of a field; it is given the field's name, and each text once a batch."""


def rows_of(batch: pa.RecordBatch, change: Change | None = None) -> list[dict[str, Any]]:
    """Return rows as dicts, column by column: several times as fast as ``to_pylist``.

    A time that Python cannot hold (before the year 1, after 9999) is text; text that is no UTF-8 begins with a NUL,
    and has its wrong bytes as escapes.

    Args:
        batch: the rows.
        change: what is made of every text, a list's items too.
    """
    try:
        return _structs(batch.schema.names, batch.columns, len(batch), change)
    except (ValueError, OverflowError):
        return [_to_python(row, "", change) for row in batch.to_struct_array()]


def without_fields(schema: pa.Schema, names: frozenset[str]) -> pa.Schema:
    """Return a schema without the fields of these names, at any depth."""
    return pa.schema([pa.field(field.name, _without(field.type, names)) for field in schema if field.name not in names])


def leaf_paths(schema: pa.Schema) -> list[str]:
    """Return the paths that Parquet gives to the fields of a schema that have no fields themselves."""
    return [path for field in schema for path in _leaves(field.name, field.type)]


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    else:
        yield path


def _without(kind: pa.DataType, names: frozenset[str]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_without(kind.value_type, names))
    if pa.types.is_struct(kind):
        return pa.struct(
            [pa.field(field.name, _without(field.type, names)) for field in kind if field.name not in names]
        )
    return kind


def _structs(names: Sequence[str], columns: "Sequence[pa.Array[Any]]", rows: int, change: Change | None) -> list[Any]:
    if not columns:
        return [{} for _ in range(rows)]
    values = [_values(column, name, change) for name, column in zip(names, columns, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _values(array: "pa.Array[Any]", name: str, change: Change | None) -> list[Any]:
    """Return an array as Python's values; ``name`` is that of the field that they are of."""
    kind = array.type
    if array.null_count == len(array):
        return [None] * len(array)
    if pa.types.is_string(kind):
        return _texts(array, name, change)
    if pa.types.is_list(kind):
        return _lists(cast("pa.ListArray[Any]", array), name, change)
    if pa.types.is_struct(kind):
        # Flattened, the fields of what is null are null, and a slice has its own rows alone.
        values = _structs([field.name for field in kind], cast(pa.StructArray, array).flatten(), len(array), change)
    elif pa.types.is_timestamp(kind):
        values = _times(array)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = array.fill_null(0).to_numpy().tolist()
    else:
        return cast(list[Any], array.to_pylist())
    if array.null_count:
        for place in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            values[place] = None
    return values


def _texts(array: "pa.Array[Any]", name: str, change: Change | None) -> list[str | None]:
    encoded = array.dictionary_encode()
    # An object for each text once, however often it stands there.
    texts: list[str | None] = encoded.dictionary.to_pylist()
    if change is not None:
        texts = list(change(name, cast(list[str], texts)))
    texts.append(None)
    return [texts[place] for place in encoded.indices.fill_null(-1).to_numpy().tolist()]


def _lists(array: "pa.ListArray[Any]", name: str, change: Change | None) -> list[list[Any] | None]:
    items = _values(array.flatten(), name, change)
    lists: list[list[Any] | None] = []
    at = 0
    for length in array.value_lengths().fill_null(-1).to_numpy().tolist():
        if length < 0:
            lists.append(None)
        else:
            lists.append(items[at : at + length])
            at += length
    return lists


def _times(array: "pa.Array[Any]") -> list[Any]:
    moments: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    zone = None if array.type.tz is None else UTC
    for place, moment in enumerate(moments):
        # NumPy has whole numbers in place of times that Python cannot hold.
        if isinstance(moment, int):
            raise OverflowError("a time that Python cannot hold")
        if moment is not None and zone is not None:
            moments[place] = moment.replace(tzinfo=zone)
    return moments


def _to_python(value: Any, name: str, change: Change | None) -> Any:
    """Return one value, whatever it holds: slowly."""
    if isinstance(value, pa.StructScalar) and value.is_valid:
        return {field: _to_python(item, field, change) for field, item in value.items()}
    if isinstance(value, pa.ListScalar) and value.is_valid:
        return [_to_python(item, name, change) for item in value]
    try:
        python = value.as_py()
    except (ValueError, OverflowError):
        if isinstance(value, pa.StringScalar):
            python = "\0" + value.cast(pa.binary()).as_py().decode(errors="backslashreplace")
        else:
            return str(value.cast(pa.string()))
    if isinstance(value, pa.StringScalar) and python is not None and change is not None:
        (python,) = change(name, [python])
    return python
