"""What the three stages have in common as Dagster assets."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.column_lineage import column_lineage
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.schema.raw import MESSAGES, RUNS, STEPS
from trajectory_pipeline.schema.types import SCHEMA_NAME, Column, ListOf, Struct, Table, Type
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import without_credentials

SOURCES = (RUNS, STEPS, MESSAGES)
"""Letta's tables that are assets."""
StageDecorator = Callable[[Callable[..., Iterator[dg.MaterializeResult[None]]]], dg.AssetsDefinition]


def stage_asset(
    settings: Settings,
    table: Table,
    partitions: dg.PartitionsDefinition[str],
    *,
    source: str,
    stage: str,
    fresh: bool,
    partitions_per_run: int,
    versions: Mapping[str, object],
    postgres_table: str | None = None,
    description: str | None = None,
    in_parquet: bool = True,
    **options: Any,
) -> StageDecorator:
    """Return the decorator of an asset that materializes a table, partition by partition.

    ``source`` is whose runs they are, ``stage`` the value of a tag, ``fresh`` whether each hour is expected to be
    materialized, ``versions`` make the code version, ``postgres_table`` is in the schema ``trajectory``,
    ``description`` replaces the table's, ``in_parquet`` is whether its rows are in files too, and ``options`` are
    further arguments of ``dagster.asset``.
    """
    metadata: dict[str, Any] = {
        "dagster/column_schema": _column_schema(table),
    }
    if source == LETTA:
        metadata["dagster/column_lineage"] = column_lineage(table, [each.name for each in SOURCES])
    if in_parquet:
        # The folder of all partitions; each materialization names its own file.
        metadata["dagster/uri"] = f"{without_credentials(settings.storage.parquet_location).rstrip('/')}/{table.name}"
    if postgres_table:
        metadata["dagster/table_name"] = f"{SCHEMA_NAME}.{postgres_table}"
    with warnings.catch_warnings():
        # Beta, and pinned by the range in pyproject.toml; Dagster would print it three times per process.
        warnings.filterwarnings("ignore", r".*`backfill_policy`", dg.BetaWarning)
        decorator: StageDecorator = dg.asset(
            key=asset_key(table.name, source),
            description=description or table.description,
            metadata=metadata,
            partitions_def=partitions,
            backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=partitions_per_run),
            group_name="trajectories" if source == LETTA else source,
            owners=settings.dagster.owners,
            tags={"stage": stage, "source": source},
            # Dagster looks at the newest materialization of any partition: a backfill hides that hours are missing,
            # which the completeness check finds.
            freshness_policy=hourly_freshness() if fresh and settings.capture.enabled else None,
            code_version=", ".join(f"{name} {version}" for name, version in versions.items()),
            **options,
        )
    return decorator


def hourly_freshness() -> dg.FreshnessPolicy:
    """Return the policy of what is materialized each hour, with an hour for a run that waits or is retried."""
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=6), warn_window=timedelta(hours=2))


def _column_schema(table: Table) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(
                column.name,
                type_name(column.type),
                _description(column),
                dg.TableColumnConstraints(nullable=column.nullable, unique=table.keys == (column.name,)),
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
    # Dagster's own UI shows no column lineage; its paid one does.
    source = f" From: {column.source}." if column.source else ""
    return f"{column.description}{unit}{null}{source}"
