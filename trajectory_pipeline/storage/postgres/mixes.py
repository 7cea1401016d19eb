"""How many runs are of each category, of a last period and of the time before it: what the history checks compare."""

from dataclasses import dataclass

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

_MIXES = """
    SELECT m.measure, m.category, o.partition_key >= %(recent)s AS recent, count(*) AS runs,
        (array_agg(o.run_id ORDER BY o.run_id))[1:%(listed)s] AS first_run_ids
    FROM trajectory.outcomes o
    JOIN trajectory.trajectories t USING (run_id)
    CROSS JOIN LATERAL (VALUES
        ('outcome', o.outcome),
        ('verdict', coalesce(o.verdict_status, 'none')),
        ('agreement', CASE WHEN o.disagrees THEN 'disagrees' WHEN NOT o.disagrees THEN 'agrees' END),
        ('tools', CASE WHEN (t.signals ->> 'tool_errors')::bigint > 0 THEN 'with tool error'
            WHEN cardinality(t.tools_used) > 0 THEN 'without tool error' END)
    ) AS m (measure, category)
    WHERE o.partition_key >= %(first)s AND o.partition_key < %(end)s AND m.category IS NOT NULL
    GROUP BY 1, 2, 3"""


@dataclass(frozen=True)
class Category:
    """Runs of one category in one of the two periods, with the first ids."""

    measure: str
    category: str
    recent: bool
    runs: int
    first_run_ids: list[str]


def count_mixes(database: TrajectoryDatabase, first: str, recent: str, end: str, listed: int) -> list[Category]:
    """Count by the measures ``outcome``, ``verdict``, ``agreement`` and ``tools`` between partition keys, without end.

    Raises:
        SinkError: the database cannot be read.
    """
    parameters = {"first": first, "recent": recent, "end": end, "listed": listed}
    return [Category(**row) for row in database.rows(_MIXES, parameters)]
