"""What the three stages have in common as Dagster assets."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg

from trajectory_pipeline.defs.table_schema import column_schema
from trajectory_pipeline.schema.types import SCHEMA_NAME, Table

StageDecorator = Callable[[Callable[..., Iterator[dg.MaterializeResult[None]]]], dg.AssetsDefinition]


def stage_asset(
    table: Table,
    partitions: dg.PartitionsDefinition[str],
    *,
    partitions_per_run: int,
    postgres_table: str | None = None,
    description: str | None = None,
    **options: Any,
) -> StageDecorator:
    """Return the decorator of an asset that materializes a table, partition by partition.

    Args:
        table: its name, description and columns are the asset's.
        partitions: shared by all stages.
        partitions_per_run: most partitions in one run of a backfill.
        postgres_table: table in the schema ``trajectory``; None where there is none.
        description: instead of the table's.
        options: further arguments of ``dagster.asset``.
    """
    metadata: dict[str, Any] = {"dagster/column_schema": column_schema(table)}
    if postgres_table:
        metadata["dagster/table_name"] = f"{SCHEMA_NAME}.{postgres_table}"
    with warnings.catch_warnings():
        # Beta, and pinned by the range in pyproject.toml; Dagster would print it three times per process.
        warnings.filterwarnings("ignore", r".*`backfill_policy`", dg.BetaWarning)
        decorator: StageDecorator = dg.asset(
            name=table.name,
            description=description or table.description,
            metadata=metadata,
            partitions_def=partitions,
            backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=partitions_per_run),
            group_name="trajectories",
            **options,
        )
    return decorator
