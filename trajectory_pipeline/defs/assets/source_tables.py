"""Letta's own tables: external assets, which are read and never written."""

import dagster as dg

from trajectory_pipeline.defs.assets.stage import SOURCES, type_name
from trajectory_pipeline.schema.raw import SourceColumn, SourceTable


def _description(column: SourceColumn) -> str:
    if column.required:
        return "Required: nothing can be captured without it."
    return f"Read where the server has it (Letta {column.since} or later)."


def _columns(table: SourceTable) -> dg.TableSchema:
    return dg.TableSchema(
        [dg.TableColumn(each.name, type_name(each.type), _description(each)) for each in table.columns]
    )


SOURCE_TABLES = [
    dg.AssetSpec(
        ["letta", table.name],
        description=f"Letta's own table `{table.name}`: read, never written.",
        group_name="letta",
        kinds={"postgres"},
        metadata={"dagster/column_schema": _columns(table), "dagster/table_name": table.name},
    )
    for table in SOURCES
]
