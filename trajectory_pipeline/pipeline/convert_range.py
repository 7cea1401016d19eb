"""Small partitions of a range, converted together; each of them is still written and recorded by itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.convert import Conversion, convert_batch
from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.capture_counts import strings_of
from trajectory_pipeline.schema.enums import PartitionResult
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry

_SMALL_RUNS = 50
_MOST_RUNS = 250
_MOST_BYTES = 8 * 2**20


@dataclass
class RangeConversion:
    """Reads and converts raw rows of one partition, and with them those that the next ones of a range have.

    What was read ahead is used only where the partition's file is still the same under its lock. A few partitions are
    converted together, then ever more, as long as all of them are asked for: most of a range may be up to date.

    Attributes:
        hours: partitions, in the order in which they will be converted.
    """

    hours: Sequence[datetime]
    store: ParquetStore
    _together: int = field(default=1, init=False)
    _raw: dict[str, tuple[str, pa.RecordBatch]] = field(default_factory=dict, init=False)
    _made: dict[str, tuple[pa.RecordBatch, Conversion]] = field(default_factory=dict, init=False)

    def raw_rows(self, hour: datetime, entry: StoredEntry | None) -> pa.RecordBatch | None:
        """Return a partition's raw rows, if they are few and those of its ledger entry; its lock must be held."""
        key = partition_key(hour)
        if key not in self._raw:
            # What nobody asked for: partitions that are up to date.
            self._together = 1 if self._raw else self._together * 4
            self._raw = self._read_together(hour)
            self._made = {}
        digest, rows = self._raw.get(key, (None, None))
        known = entry is not None and entry.result != PartitionResult.PRUNED and entry.content_digest == digest
        if not known:
            self._raw.pop(key, None)
        return rows if known else None

    def convert(self, raw: pa.RecordBatch, key: str) -> Conversion:
        """Convert a batch of a partition's raw rows as ``convert_batch`` does, with documents."""
        if key in self._raw and key not in self._made:
            self._made = self._convert_together(key)
        self._raw.pop(key, None)
        made, conversion = self._made.pop(key, (None, None))
        if conversion is not None and made is not None and made.equals(raw):
            return conversion
        return convert_batch(raw, key, documents=True)

    def _read_together(self, hour: datetime) -> dict[str, tuple[str, pa.RecordBatch]]:
        first = self.hours.index(hour) if hour in self.hours else len(self.hours)
        found: dict[str, tuple[str, pa.RecordBatch]] = {}
        runs = size = 0
        for each in self.hours[first : first + self._together]:
            try:
                small = self.store.read_small(TERMINAL_RUNS, each, _SMALL_RUNS)
            except SinkError:
                # It shows where that partition is converted.
                small = None
            if small is None:
                break
            runs += len(small[1])
            size += small[1].nbytes
            if found and (runs > _MOST_RUNS or size > _MOST_BYTES):
                break
            found[partition_key(each)] = small
        return found

    def _convert_together(self, key: str) -> dict[str, tuple[pa.RecordBatch, Conversion]]:
        batches = {each: rows for each, (_, rows) in self._raw.items() if len(rows)}
        if len(batches) < 2:
            return {}
        (rows,) = pa.Table.from_batches(list(batches.values())).combine_chunks().to_batches()
        run_ids = strings_of(rows.column("run_id"))
        if len(set(run_ids)) < len(run_ids):
            # A run on its way from one partition to another.
            return {}
        whole = convert_batch(rows, key, documents=True)
        return {each: (batch, _part(whole, batch, each)) for each, batch in batches.items()}


def _part(whole: Conversion, raw: pa.RecordBatch, key: str) -> Conversion:
    """Return what became of the runs of one partition."""
    run_ids: Any = raw.column("run_id")
    index: Any = pc.index_in(run_ids, value_set=whole.trajectories.column("run_id")).drop_null()
    trajectories = whole.trajectories.take(index)
    at = trajectories.schema.get_field_index("partition_key")
    keys = pa.repeat(pa.scalar(key), len(trajectories)).cast(trajectories.schema.field(at).type)
    among = set(strings_of(run_ids))
    return Conversion(
        trajectories.set_column(at, trajectories.schema.field(at), keys),
        [whole.documents[each] for each in index.to_pylist()],
        [run for run in whole.quarantined if run.run_id in among],
        [run_id for run_id in whole.reference_run_ids if run_id in among],
    )
