"""Counts both sides of a partition again, from the files and tables themselves: raw rows against each sink."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import count_items, strings_of
from trajectory_pipeline.pipeline.convert import without_moved
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.run_locations import find_moved_runs
from trajectory_pipeline.storage.postgres.summaries import quarantine_totals, stored_runs
from trajectory_pipeline.storage.storage import Storage

COUNTED = ("runs", "steps", "messages")
_LISTED_RUNS = 5
_FIELDS = ("run_id", "content_digest", "turns.step_id", "turns.input_tokens", "turns.messages.message_id")
"""Columns that are counted in Parquet: ids, and what marks an own step. Texts are not decoded."""


@dataclass(frozen=True)
class Reconciliation:
    """How many runs, steps and messages each side of a partition holds; those of the sinks with the quarantine.

    ``differences`` has a sentence for each count that is not equal, and for runs in which the sinks disagree.
    """

    raw: Mapping[str, int]
    parquet: Mapping[str, int]
    postgres: Mapping[str, int]
    differences: tuple[str, ...]


def reconcile_partition(hour: datetime, storage: Storage) -> Reconciliation:
    """Count a partition's runs, own steps and messages in the raw rows and in both sinks, and compare these by run.

    Raises:
        SinkError: a sink cannot be read.
    """
    key = partition_key(hour)
    # One transaction: in a range, its beginning and its end cost as much as what is asked.
    with storage.postgres.connect() as connection, translating_database_errors(storage.postgres.url, "Reading"):
        raw = dict.fromkeys(COUNTED, 0)
        for rows in storage.parquet.read_fields(TERMINAL_RUNS, hour, ["run_id", "steps.id", "messages.id"]):
            batch = without_moved(rows, find_moved_runs(connection, key, strings_of(rows.column("run_id"))))
            raw["runs"] += batch.num_rows
            for name in ("steps", "messages"):
                raw[name] += count_items(batch.column(name))
        parquet: dict[str, int] = asdict(quarantine_totals(connection, key))
        postgres = dict(parquet)
        in_parquet: dict[str, str] = {}
        for batch in storage.parquet.read_fields(TRAJECTORIES, hour, _FIELDS):
            turns: Any = pc.list_flatten(batch.column("turns"))
            parquet["runs"] += batch.num_rows
            own: Any = pc.and_(pc.is_valid(turns.field("step_id")), pc.is_valid(turns.field("input_tokens")))
            parquet["steps"] += own.true_count
            parquet["messages"] += count_items(turns.field("messages"))
            run_ids, content_digests = (batch.column(name).to_pylist() for name in ("run_id", "content_digest"))
            in_parquet.update(zip(map(str, run_ids), map(str, content_digests), strict=True))
        in_postgres: dict[str, str] = {}
        for run in stored_runs(connection, key):
            in_postgres[run.run_id] = run.content_digest
            postgres["runs"] += 1
            postgres["steps"] += run.step_count
            postgres["messages"] += run.message_count
    count_differences = (
        f"{key}: {raw[name]} {name} in the raw rows, {counts[name]} in {sink}"
        for sink, counts in (("Parquet", parquet), ("Postgres", postgres))
        for name in COUNTED
        if counts[name] != raw[name]
    )
    return Reconciliation(raw, parquet, postgres, (*count_differences, *_compare(key, in_parquet, in_postgres)))


def _compare(key: str, parquet: Mapping[str, str], postgres: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each kind of difference between the sinks, with the first runs that show it."""
    for difference, run_ids in (
        ("in Parquet and not in Postgres", parquet.keys() - postgres.keys()),
        ("in Postgres and not in Parquet", postgres.keys() - parquet.keys()),
        (
            "with other content in Parquet than in Postgres",
            {run_id for run_id in parquet.keys() & postgres.keys() if parquet[run_id] != postgres[run_id]},
        ),
    ):
        if run_ids:
            yield f"{key}: {len(run_ids)} run(s) {difference}, first {', '.join(sorted(run_ids)[:_LISTED_RUNS])}"
