"""Finds runs that a dataset holds more than once: in one file, in the files of two partitions, or in Postgres."""

from collections.abc import Iterable
from datetime import datetime

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.storage.postgres.summaries import partitions_of_runs
from trajectory_pipeline.storage.storage import Storage


def find_repeated_runs(table: Table, hours: Iterable[datetime], storage: Storage) -> dict[str, str]:
    """Return runs that are not there exactly once, with where each is; only these partitions' files are read.

    A run in a file must be in the same partition in Postgres. There it is once, so no other file may hold it. Raw rows
    are not compared with Postgres: a run that moves is in two partitions until both are read again.

    Raises:
        SinkError: a sink cannot be read.
    """
    repeated: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for hour in hours:
        key = partition_key(hour)
        seen: set[str] = set()
        for batch in storage.parquet.read_fields(table, hour, ["run_id"]):
            run_ids = [str(run_id) for run_id in batch.column("run_id").to_pylist()]
            for run_id in run_ids:
                if run_id in seen:
                    repeated[run_id] = f"more than once in the file of {key}"
                seen.add(run_id)
        if table is TERMINAL_RUNS or not seen:
            continue
        located = partitions_of_runs(storage.postgres, sorted(seen))
        for run_id in seen:
            places = located.get(run_id, [])
            if len(places) > 1:
                repeated[run_id] = f"{len(places)} times in Postgres, in {', '.join(places)}"
            elif places and places != [key]:
                repeated[run_id] = f"in the file of {key}, and in {places[0]} in Postgres"
            elif not places and run_id in elsewhere:
                repeated[run_id] = f"in the files of {elsewhere[run_id]} and {key}"
            elif not places:
                elsewhere[run_id] = key
    return dict(sorted(repeated.items()))
