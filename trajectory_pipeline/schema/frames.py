"""The flat frames that notebooks read: which columns each has, the same from Parquet and from Postgres."""

from dataclasses import replace

from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import BOTH, Column, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.schema.views import MESSAGES, TOOL_CALLS


def _stored_in_both(table: Table) -> tuple[Column, ...]:
    return tuple(column for column in table.columns if column.sinks == BOTH)


def _stored_in_parquet(view: Table) -> tuple[Column, ...]:
    return tuple(replace(column, sinks=BOTH) for column in view.columns)


TRAJECTORY_FRAME = replace(TRAJECTORIES, columns=_stored_in_both(TRAJECTORIES))
VERDICT_FRAME = replace(REFINED_OUTCOMES, name="verdicts", columns=_stored_in_both(REFINED_OUTCOMES))
MESSAGE_FRAME = replace(MESSAGES, columns=_stored_in_parquet(MESSAGES))
TOOL_CALL_FRAME = replace(TOOL_CALLS, columns=_stored_in_parquet(TOOL_CALLS))
