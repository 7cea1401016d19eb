"""Letta's own tables: external assets, which are read and never written."""

import dagster as dg

from trajectory_pipeline.defs.table_schema import source_column_schema
from trajectory_pipeline.schema.raw import MESSAGES, RUNS, STEPS

SOURCE_TABLES = [
    dg.AssetSpec(
        ["letta", table.name],
        description=f"Letta's own table `{table.name}`: read, never written.",
        group_name="letta",
        kinds={"postgres"},
        metadata={"dagster/column_schema": source_column_schema(table), "dagster/table_name": table.name},
    )
    for table in (RUNS, STEPS, MESSAGES)
]
