"""Both sinks of the pipeline, as one object."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from trajectory_pipeline.schema.enums import FileAccess
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


@dataclass(frozen=True)
class Storage:
    """The files under ``TRAJECTORY_STORAGE_URI``, and the schema in ``TRAJECTORY_DATABASE_URL``."""

    parquet: ParquetStore
    postgres: TrajectoryDatabase

    @classmethod
    def at(cls, parquet_location: str, database_url: str, access: FileAccess = FileAccess.PRIVATE) -> Self:
        """Return the sinks at these locations; nothing is opened."""
        return cls(ParquetStore(parquet_location, access), TrajectoryDatabase(database_url))

    @contextmanager
    def pooled(self) -> Iterator[Self]:
        """Reuse database connections inside the block; see ``TrajectoryDatabase.pooled``."""
        with self.postgres.pooled() as postgres:
            yield replace(self, postgres=postgres)

    def fetching_once(self) -> Self:
        """Return the same sinks, whose files are fetched once; see ``ParquetStore.fetching_once``."""
        return replace(self, parquet=self.parquet.fetching_once())
