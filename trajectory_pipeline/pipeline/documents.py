"""Documents that ``jsonb`` cannot hold, from Parquet.

Belongs here: finding one. Does not belong here: those that Postgres holds (``storage.postgres.verdicts``).
"""

from typing import Any

import pyarrow.compute as pc

from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.trajectories.document import trajectory_document


def whole_document(store: ParquetStore, run_id: str, partition_key: str) -> dict[str, Any] | None:
    """Return a run's document from the file of its partition; None where it is not there.

    Raises:
        SinkError: the file cannot be read.
    """
    mine: Any = run_id
    for batch in store.read(TRAJECTORIES, parse_partition_key(partition_key)):
        found = batch.filter(pc.equal(batch.column("run_id"), mine)).to_pylist()
        if found:
            return trajectory_document(found[0])
    return None
