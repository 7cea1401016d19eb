"""Samples of runs to label: who may be drawn, what was drawn, and the queue of what is still to be labelled.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trajectory_pipeline.quality.sampling import Candidate, DrawnRun, draw
from trajectory_pipeline.schema.enums import Criterion, SamplingDesign
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

_CANDIDATES = """
SELECT o.run_id,
    CASE WHEN o.outcome IS NULL THEN NULL ELSE o.disagrees OR EXISTS (
        SELECT FROM trajectory.verdicts v WHERE v.run_id = o.run_id AND v.policy_id <> o.policy_id
            AND v.repetition = 0 AND v.outcome <> o.outcome
    ) END AS disagrees,
    (t.signals ->> 'tool_errors')::bigint > 0 OR (t.signals ->> 'negative_feedback')::bigint > 0
        OR (t.signals ->> 'repeated_calls')::bigint > 0 OR (t.signals ->> 'denied_approvals')::bigint > 0
        OR (t.signals ->> 'refusals')::bigint > 0 OR coalesce((t.signals ->> 'last_tool_call_failed')::boolean, false)
        AS signal,
    CASE WHEN o.outcome <> 'unknown' THEN o.outcome_confidence END AS confidence,
    coalesce(o.verdict_status IN ('judged', 'insufficient_evidence'), false) AS judged
FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)
WHERE NOT EXISTS (SELECT FROM trajectory.label_samples s WHERE s.run_id = o.run_id)
    AND NOT EXISTS (SELECT FROM trajectory.labels l WHERE l.run_id = o.run_id AND l.criterion = 'outcome'
        AND l.superseded_at IS NULL)
    AND (%(agent)s::text IS NULL OR %(agent)s IN (o.agent_id, o.agent_name))
"""
_INSERT = (
    "INSERT INTO trajectory.label_samples (run_id, sample, place, design, stratum, inclusion_probability, seed,"
    " drawn_at) VALUES (%s, %s, %s, %s, %s, %s, %s, now())"
)


@dataclass(frozen=True)
class QueuedRun:
    """A run that was drawn to be labelled."""

    run_id: str
    sample: str
    place: int
    design: SamplingDesign
    inclusion_probability: float


def draw_sample(
    database: TrajectoryDatabase, name: str, design: SamplingDesign, count: int, seed: int, agent: str | None = None
) -> dict[str, int]:
    """Draw runs that nobody labelled and no earlier sample holds; returns how many by stratum.

    Raises:
        ValueError: there is a sample of this name, or so many runs cannot be drawn.
    """
    with database.connect() as connection, translating_database_errors(database.url, "Drawing a sample"):
        # Of two draws at once, the second does not see the first one's runs as free.
        connection.execute("LOCK TABLE trajectory.label_samples IN SHARE ROW EXCLUSIVE MODE")
        if connection.execute("SELECT FROM trajectory.label_samples WHERE sample = %s", [name]).rowcount:
            raise ValueError(f"there is a sample {name!r} already: give this one another name")
        rows = connection.execute(_CANDIDATES.encode(), {"agent": agent}).fetchall()
        drawn = draw([Candidate(*row) for row in rows], design, count, seed)
        with connection.cursor() as cursor:
            cursor.executemany(
                _INSERT,
                [
                    (one.run_id, name, place, design, one.stratum, one.inclusion_probability, seed)
                    for place, one in enumerate(drawn, start=1)
                ],
            )
    counts: dict[str, int] = {}
    for one in drawn:
        counts[one.stratum] = counts.get(one.stratum, 0) + 1
    return dict(sorted(counts.items()))


def samples(database: TrajectoryDatabase) -> list[dict[str, object]]:
    """Return each sample with its design, its size, and how many of its runs are labelled, the first one first."""
    return database.rows(
        "SELECT s.sample, min(s.design) AS design, min(s.seed) AS seed, count(*) AS runs, count(*) FILTER (WHERE"
        " EXISTS (SELECT FROM trajectory.labels l WHERE l.run_id = s.run_id AND l.criterion = 'outcome'"
        " AND l.superseded_at IS NULL)) AS labelled FROM trajectory.label_samples s GROUP BY 1"
        " ORDER BY min(s.drawn_at), 1"
    )


def queue(database: TrajectoryDatabase, annotator: str, sample: str | None = None) -> list[QueuedRun]:
    """Return the drawn runs, still there, of which an annotator has not said the outcome, in their order."""
    rows = database.rows(
        "SELECT s.run_id, s.sample, s.place, s.design, s.inclusion_probability FROM trajectory.label_samples s"
        " JOIN trajectory.trajectories t ON t.run_id = s.run_id AND t.deleted_at IS NULL"
        " WHERE (%(sample)s::text IS NULL OR s.sample = %(sample)s) AND NOT EXISTS (SELECT FROM trajectory.labels l"
        " WHERE l.run_id = s.run_id AND l.annotator = %(annotator)s AND l.criterion = %(outcome)s"
        " AND l.superseded_at IS NULL) ORDER BY s.drawn_at, s.sample, s.place",
        {"annotator": annotator, "sample": sample, "outcome": Criterion.OUTCOME},
    )
    return [QueuedRun(**{**row, "design": SamplingDesign(row["design"])}) for row in rows]


def drawn_runs(database: TrajectoryDatabase, labelled: Sequence[str]) -> list[DrawnRun]:
    """Return every run that was ever drawn, and whether it is one of these labelled ones."""
    rows = database.rows(
        "SELECT run_id, dense_rank() OVER (ORDER BY drawn_at, sample) AS draw, stratum, inclusion_probability,"
        " run_id = ANY(%s) AS labelled FROM trajectory.label_samples",
        [list(labelled)],
    )
    return [DrawnRun(**row) for row in rows]
