"""Counting both sides of a partition anew: what the raw rows hold against what each sink holds.

Belongs here: independent counts, taken from the sinks themselves and not from what a materialisation said of itself.
Does not belong here: what follows from a difference (``orchestration.checks``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.hours import key_of
from trajectory_pipeline.schema.letta import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.sinks.database import TrajectoryDatabase
from trajectory_pipeline.sinks.parquet import ParquetStore

COUNTED = ("runs", "steps", "messages")


@dataclass(frozen=True)
class Verification:
    """What each side of a partition holds.

    Attributes:
        raw: runs, steps and messages in ``terminal_runs``.
        parquet: in ``trajectories``, and in the quarantine.
        postgres: in the table, and in the quarantine.
        differences: a sentence for each count that is not equal.
    """

    raw: Mapping[str, int]
    parquet: Mapping[str, int]
    postgres: Mapping[str, int]
    differences: tuple[str, ...] = field(default=())


def verify_partition(hour: datetime, store: ParquetStore, database: TrajectoryDatabase) -> Verification:
    """Count a partition's runs, own steps and messages in the raw rows and in both sinks.

    Raises:
        SinkError: a sink cannot be read.
    """
    key = key_of(hour)
    raw = dict.fromkeys(COUNTED, 0)
    for batch in store.read(TERMINAL_RUNS, hour, ["run_id", "steps", "messages"]):
        raw["runs"] += batch.num_rows
        for name in ("steps", "messages"):
            raw[name] += _items(batch.column(name))
    quarantined = database.rows(
        "SELECT count(*) AS runs, coalesce(sum(steps), 0)::bigint AS steps, coalesce(sum(messages), 0)::bigint AS messages"
        " FROM trajectory.quarantine WHERE partition_key = %s",
        [key],
    )[0]
    parquet = {name: int(quarantined[name]) for name in COUNTED}
    for batch in store.read(TRAJECTORIES, hour, ["run_id", "turns"]):
        turns = pc.list_flatten(batch.column("turns"))
        parquet["runs"] += batch.num_rows
        own = pc.and_(pc.is_valid(turns.field("step_id")), pc.is_valid(turns.field("input_tokens")))
        parquet["steps"] += pc.sum(own).as_py() or 0
        parquet["messages"] += _items(turns.field("messages"))
    row = database.rows(
        "SELECT count(*) AS runs, coalesce(sum(step_count), 0)::bigint AS steps,"
        " coalesce(sum(message_count), 0)::bigint AS messages FROM trajectory.trajectories WHERE partition_key = %s",
        [key],
    )[0]
    postgres = {name: int(row[name]) + int(quarantined[name]) for name in COUNTED}
    differences = tuple(
        f"{key}: {raw[name]} {name} in the raw rows, {there[name]} in {sink}"
        for sink, there in (("Parquet", parquet), ("Postgres", postgres))
        for name in COUNTED
        if there[name] != raw[name]
    )
    return Verification(raw, parquet, postgres, differences)


def _items(lists: pa.Array) -> int:
    return pc.sum(pc.list_value_length(lists)).as_py() or 0
