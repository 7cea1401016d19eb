"""Declared columns as Dagster shows them."""

import dagster as dg

from trajectory_pipeline.schema.raw import SourceTable
from trajectory_pipeline.schema.types import Column, ListOf, Struct, Table, Type


def column_schema(table: Table) -> dg.TableSchema:
    """Return a table's columns."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type_name(column.type),
                _description(column),
                constraints=dg.TableColumnConstraints(nullable=column.nullable, unique=table.keys == (column.name,)),
            )
            for column in table.columns
        ]
    )


def source_column_schema(table: SourceTable) -> dg.TableSchema:
    """Return the columns of one of Letta's tables, as far as they are read."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                type_name(column.type),
                "Required: nothing can be captured without it."
                if column.required
                else f"Read where the server has it (Letta {column.since} or later).",
            )
            for column in table.columns
        ]
    )


def type_name(kind: Type) -> str:
    """Return a type's name, with the first level of a nested type's fields: ``list<struct<…>>``."""
    if isinstance(kind, ListOf):
        return f"list<{type_name(kind.item)}>"
    if isinstance(kind, Struct):
        return f"struct<{', '.join(column.name for column in kind.fields)}>"
    return kind.value


def _description(column: Column) -> str:
    unit = f" Unit: {column.unit}." if column.unit else ""
    null = f" Null: {column.null}." if column.null else ""
    return f"{column.description}{unit}{null}"
