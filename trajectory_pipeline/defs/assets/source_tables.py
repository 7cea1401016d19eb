"""Letta's own tables, and other sources: external assets, which are read and never written."""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import source_key
from trajectory_pipeline.defs.assets.stage import SOURCES, type_name
from trajectory_pipeline.schema.raw import SourceColumn, SourceTable
from trajectory_pipeline.settings import SourceSpec
from trajectory_pipeline.urls import without_credentials


def _description(column: SourceColumn) -> str:
    if column.required:
        return "Required: nothing can be captured without it."
    return f"Read where the server has it (Letta {column.since} or later)."


def _columns(table: SourceTable) -> dg.TableSchema:
    return dg.TableSchema(
        [dg.TableColumn(each.name, type_name(each.type), _description(each)) for each in table.columns]
    )


def source_asset(spec: SourceSpec) -> dg.AssetSpec:
    """Return what a source beside the Letta database holds, as an external asset."""
    return dg.AssetSpec(
        source_key(spec.name),
        description=f"Runs of `{spec.name}`, a source of the kind `{spec.kind}`: read, never written."
        " docs/sources.md says what such a source cannot know.",
        group_name=spec.name,
        kinds={"api" if spec.kind.endswith("_api") else "file"},
        metadata={"kind": spec.kind, "place": without_credentials(spec.place)},
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
