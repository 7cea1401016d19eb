"""Which partitions have texts or embeddings to be made now, by state and budget."""

from dataclasses import dataclass
from datetime import datetime

from trajectory_pipeline.budget.caps import BudgetShortfall
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.pipeline.embed import Embedder, stored_identity
from trajectory_pipeline.pipeline.search_texts import rendering_version
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embedding_status import StaleQuery, partitions_due_again, stale_partitions
from trajectory_pipeline.storage.postgres.pgvector import find_pgvector


@dataclass(frozen=True)
class PendingEmbeddings:
    """What is missing or stale.

    Attributes:
        partition_keys: of the partitions, sorted.
        shortfall: the cap without headroom for any call; what waits for it is not among them.
        missing: why embeddings cannot be stored, as a sentence; empty where they can.
    """

    partition_keys: list[str]
    shortfall: BudgetShortfall | None = None
    missing: str = ""


def find_pending_embeddings(
    database: TrajectoryDatabase, embedder: Embedder | None, redactor: Redactor, now: datetime
) -> PendingEmbeddings:
    """Return the partitions whose texts or embeddings are missing or stale.

    Raises:
        SinkError: the database cannot be read.
    """
    with database.connect() as connection:
        pgvector = find_pgvector(connection)
    identity = stored_identity(embedder, pgvector)
    with database.retrying() as connection:
        shortfall = embedder.shortfall(connection) if embedder is not None and identity else None
        query = StaleQuery(rendering_version(redactor), identity, include_pending=bool(identity) and shortfall is None)
        found = set(stale_partitions(connection, query))
        if embedder is not None and identity and shortfall is None:
            found |= set(partitions_due_again(connection, embedder.model.model_id, now))
    return PendingEmbeddings(sorted(found), shortfall, "" if embedder is None else pgvector.missing)
