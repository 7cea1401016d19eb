"""Keeps the registry of task families: puts runs that have an embedding, and no family yet, into one."""

from trajectory_pipeline.search.families import FEWEST_RUNS, assign_families, measure_bar
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.task_families import locked_registry

_RUNS_AT_ONCE = 1_000


def update_task_families(database: TrajectoryDatabase) -> int:
    """Put every embedded run that is in no task family into one; returns how many.

    A run stays in its family, whatever comes later. Runs are taken the earliest first, so that one call for all of
    them gives the same families wherever it is made; several calls, such as those of a backfill that goes back in time,
    may found other ones. An organization's families begin when 50 of its runs are embedded.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    assigned = 0
    while portion := _assign_portion(database):
        assigned += portion
    return assigned


def _assign_portion(database: TrajectoryDatabase) -> int:
    """Put the next runs into families, in a transaction of their own; returns how many."""
    with locked_registry(database) as registry:
        if registry is None:
            return 0
        for organization, waiting in registry.waiting().items():
            bar = registry.bar(organization)
            if bar is None and waiting < FEWEST_RUNS:
                continue
            run_ids, vectors = registry.next_runs(organization, _RUNS_AT_ONCE)
            if bar is None:
                measured = measure_bar(vectors)
                registry.save_bar(organization, measured)
                bar = measured.similarity
            assigned = assign_families(run_ids, vectors, registry.representatives(organization), bar)
            registry.assign(organization, run_ids, assigned)
            return len(run_ids)
    return 0
