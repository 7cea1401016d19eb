"""Documents that ``jsonb`` cannot hold, from Parquet.

Belongs here: finding one. Does not belong here: those that Postgres holds (``sinks.verdicts``).
"""

from typing import Any

import pyarrow.compute as pc

from trajectory_pipeline.hours import hour_of
from trajectory_pipeline.schema.trajectory import TRAJECTORIES
from trajectory_pipeline.sinks.parquet import ParquetStore
from trajectory_pipeline.trajectories.document import document_of


def whole_document(store: ParquetStore, run_id: str, partition_key: str) -> dict[str, Any] | None:
    """Return a run's document from the file of its partition; None where it is not there.

    Raises:
        SinkError: the file cannot be read.
    """
    mine: Any = run_id
    for batch in store.read(TRAJECTORIES, hour_of(partition_key)):
        found = batch.filter(pc.equal(batch.column("run_id"), mine)).to_pylist()
        if found:
            return document_of(found[0])
    return None
