"""The registry of failure modes: texts that are not in a group yet, the groups, and their runs by week.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from trajectory_pipeline.quality.failure_modes import Leader
from trajectory_pipeline.schema.enums import FailureModeKind
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

# Oldest first: they found the groups. A label of the closed list is a text of its own.
_VERDICT_TEXTS = """
SELECT o.run_id, o.verdict_key AS source, x.kind, x.text
FROM trajectory.outcomes o CROSS JOIN LATERAL (VALUES
    ('listed', o.failure_mode),
    ('lesson', CASE WHEN o.failure_mode = 'other' THEN coalesce(o.failure_mode_description, o.lesson) ELSE o.lesson END)
) AS x (kind, text)
WHERE o.failure_mode <> 'none' AND x.text IS NOT NULL AND {condition}
ORDER BY o.end_time, o.run_id, x.kind"""
_ERROR_TEXTS = """
SELECT c.run_id, t.content_digest AS source, 'tool_error' AS kind, c.tool, c.return_text AS text
FROM trajectory.trajectories t JOIN trajectory.tool_calls c USING (run_id)
WHERE (t.signals ->> 'tool_errors')::bigint > 0 AND t.deleted_at IS NULL
    AND c.return_status = 'error' AND c.denied IS NOT TRUE AND c.return_text IS NOT NULL AND {condition}
ORDER BY t.end_time, c.run_id, c.turn_index, c.call_index"""
_NEW_VERDICT = (
    "NOT EXISTS (SELECT FROM trajectory.failure_mode_runs r WHERE r.run_id = o.run_id AND r.kind = x.kind"
    " AND r.source = o.verdict_key)"
)
_NEW_ERRORS = (
    "NOT EXISTS (SELECT FROM trajectory.failure_mode_runs r WHERE r.run_id = t.run_id AND r.kind = 'tool_error'"
    " AND r.source = t.content_digest)"
)
_FORGET_TITLES: LiteralString = """
UPDATE trajectory.failure_modes m SET title = NULL, first_run_id = NULL
WHERE m.first_run_id IS NOT NULL AND (
    NOT EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = m.first_run_id AND NOT t.erased)
    OR (m.kind = 'lesson'
        AND EXISTS (SELECT FROM trajectory.verdicts v WHERE v.run_id = m.first_run_id AND v.erased)))"""
# A verdict under another policy, or on other content, takes the place of the one before.
_REMOVE_OLD = """
DELETE FROM trajectory.failure_mode_runs r WHERE NOT EXISTS (
    SELECT FROM trajectory.trajectories t LEFT JOIN trajectory.outcomes o USING (run_id)
    WHERE t.run_id = r.run_id AND t.deleted_at IS NULL
        AND r.source = CASE WHEN r.kind = 'tool_error' THEN t.content_digest ELSE o.verdict_key END)"""
_LOCK = "LOCK TABLE trajectory.failure_modes IN SHARE ROW EXCLUSIVE MODE"


@dataclass(frozen=True, slots=True)
class FoundText:
    """A text about a failure, as stored; ``tool`` is the tool whose error it is."""

    run_id: str
    source: str
    kind: FailureModeKind
    text: str
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class ModeRun:
    """One row of ``failure_mode_runs``."""

    run_id: str
    mode_id: str
    text_sha256: str
    kind: FailureModeKind
    source: str


def texts_without_group(database: TrajectoryDatabase) -> list[FoundText]:
    """Return the texts that are in no group yet, of the oldest runs first."""
    return _texts(database, _NEW_VERDICT, _NEW_ERRORS, [])


def texts_of_untitled(database: TrajectoryDatabase) -> list[FoundText]:
    """Return the texts of runs in groups whose first text is gone."""
    untitled = (
        "{}.run_id IN (SELECT r.run_id FROM trajectory.failure_mode_runs r"
        " JOIN trajectory.failure_modes m USING (mode_id) WHERE m.title IS NULL)"
    )
    return _texts(database, untitled.format("o"), untitled.format("t"), [])


def remove_old_failures(database: TrajectoryDatabase) -> None:
    """Remove rows of runs that are gone and of superseded verdicts, and titles that came from what was erased."""
    with database.connect() as connection, translating_database_errors(database.url, "Writing failure modes"):
        connection.execute(_LOCK)
        connection.execute(_REMOVE_OLD)
        connection.execute(_FORGET_TITLES)


def forget_failure_titles(connection: psycopg.Connection) -> None:
    """Erase the titles of groups whose first text was erased or pruned. Ids and counts stay."""
    connection.execute(_FORGET_TITLES)


def read_leaders(database: TrajectoryDatabase) -> list[Leader]:
    """Return the groups with a title, oldest first."""
    rows = database.rows(
        "SELECT mode_id, kind, title FROM trajectory.failure_modes WHERE title IS NOT NULL ORDER BY position"
    )
    return [Leader(row["mode_id"], FailureModeKind(row["kind"]), row["title"]) for row in rows]


def groups_of_texts(database: TrajectoryDatabase, digests: Iterable[str]) -> dict[str, str]:
    """Return the group of each of these texts that is in one."""
    rows = database.rows(
        "SELECT DISTINCT text_sha256, mode_id FROM trajectory.failure_mode_runs WHERE text_sha256 = ANY(%s)",
        [list(digests)],
    )
    return {row["text_sha256"]: row["mode_id"] for row in rows}


def add_failures(
    database: TrajectoryDatabase, founded: Sequence[tuple[Leader, str | None]], runs: Sequence[ModeRun]
) -> None:
    """Add groups, each with the run of its first text, in this order; and rows of runs. What is there stays."""
    with (
        database.connect() as connection,
        translating_database_errors(database.url, "Writing failure modes"),
        connection.cursor() as cursor,
    ):
        connection.execute(_LOCK)
        cursor.executemany(
            "INSERT INTO trajectory.failure_modes (mode_id, kind, title, first_run_id, position, founded_at)"
            " SELECT %s, %s, %s, %s, coalesce(max(position), 0) + 1, clock_timestamp() FROM trajectory.failure_modes"
            # A group whose first text was erased takes the same one again, from another run.
            " ON CONFLICT (mode_id) DO UPDATE SET title = excluded.title, first_run_id = excluded.first_run_id"
            " WHERE failure_modes.title IS NULL",
            [(leader.mode_id, leader.kind, leader.text, run_id) for leader, run_id in founded],
        )
        cursor.executemany(
            "INSERT INTO trajectory.failure_mode_runs (run_id, mode_id, text_sha256, kind, source)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (run_id, mode_id, text_sha256)"
            " DO UPDATE SET source = excluded.source",
            [(one.run_id, one.mode_id, one.text_sha256, one.kind, one.source) for one in runs],
        )


def failures_by_week(
    database: TrajectoryDatabase, first: str | None, after_last: str | None, at_least: int
) -> list[dict[str, Any]]:
    """Return groups with at least so many runs between two partition keys, most runs first, with counts by week."""
    return database.rows(
        """WITH counted AS (
            SELECT r.mode_id, count(DISTINCT r.run_id) AS runs,
                to_char(date_trunc('week', t.end_time AT TIME ZONE 'UTC'), 'YYYY-MM-DD') AS week
            FROM trajectory.failure_mode_runs r JOIN trajectory.trajectories t USING (run_id)
            WHERE t.deleted_at IS NULL AND (%(first)s::text IS NULL OR t.partition_key >= %(first)s)
                AND (%(after_last)s::text IS NULL OR t.partition_key < %(after_last)s)
            GROUP BY r.mode_id, week)
        SELECT mode_id, kind, title, sum(runs)::bigint AS runs,
            json_agg(json_build_object('week', week, 'runs', runs) ORDER BY week) AS weeks
        FROM counted JOIN trajectory.failure_modes USING (mode_id)
        GROUP BY mode_id, kind, title HAVING sum(runs) >= %(least)s ORDER BY runs DESC, mode_id""",
        {"first": first, "after_last": after_last, "least": at_least},
    )


def failures_before_and_after(
    database: TrajectoryDatabase, start: datetime, middle: datetime, end: datetime
) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Return the runs of each group after and before a moment, and all runs after and before it."""
    periods = (
        "count(DISTINCT t.run_id) FILTER (WHERE t.end_time >= %(middle)s) AS recent,"
        " count(DISTINCT t.run_id) FILTER (WHERE t.end_time < %(middle)s) AS earlier"
    )
    where = "t.deleted_at IS NULL AND t.end_time >= %(start)s AND t.end_time < %(end)s"
    parameters = {"start": start, "middle": middle, "end": end}
    groups = database.rows(
        f"SELECT r.mode_id, {periods} FROM trajectory.failure_mode_runs r"
        f" JOIN trajectory.trajectories t USING (run_id) WHERE {where} GROUP BY 1",
        parameters,
    )
    (runs,) = database.rows(f"SELECT {periods} FROM trajectory.trajectories t WHERE {where}", parameters)
    return {row["mode_id"]: (row["recent"], row["earlier"]) for row in groups}, (runs["recent"], runs["earlier"])


def titles_of(database: TrajectoryDatabase, mode_ids: Sequence[str]) -> dict[str, str | None]:
    """Return the titles of groups."""
    rows = database.rows(
        "SELECT mode_id, title FROM trajectory.failure_modes WHERE mode_id = ANY(%s)", [list(mode_ids)]
    )
    return {row["mode_id"]: row["title"] for row in rows}


def _texts(
    database: TrajectoryDatabase, of_verdicts: str, of_errors: str, parameters: Sequence[Any]
) -> list[FoundText]:
    rows = database.rows(_VERDICT_TEXTS.format(condition=of_verdicts), parameters)
    rows += database.rows(_ERROR_TEXTS.format(condition=of_errors), parameters)
    return [FoundText(**{**row, "kind": FailureModeKind(row["kind"])}) for row in rows]
