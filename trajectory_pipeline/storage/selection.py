"""Which rows a reader wants, whichever sink they are read from."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Selection:
    """A filter of runs; a filter that is None or empty selects all.

    Attributes:
        start: first partition (UTC hour).
        end: the partition after the last one.
        agents: ids or names of agents.
        organizations: ids of organizations.
        run_ids: ids of runs.
        deleted: whether runs that are deleted at the source are included.
    """

    start: datetime | None = None
    end: datetime | None = None
    agents: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()
    run_ids: tuple[str, ...] = ()
    deleted: bool = False
