"""What search needs besides texts and embeddings: task families, and an index where there are many embeddings."""

from trajectory_pipeline.pipeline.task_families import update_task_families
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.meaning_index import ensure_meaning_indexes


def keep_search(database: TrajectoryDatabase) -> int:
    """Bring families and index up to date, after embeddings were written; returns how many runs joined a family.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    ensure_meaning_indexes(database)
    return update_task_families(database)
