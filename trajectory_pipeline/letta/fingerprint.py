"""Fingerprints: a cheap summary of a partition's rows in the source; equal ones mean that nothing changed.

A row's ``xmin`` moves with any change to it, whether or not Letta moves a timestamp: status changes, late messages and
metrics, step finalization and feedback, soft deletes. A row that appears or disappears changes the count and the sum.
Restoring a source moves every ``xmin``: everything is then read again, and found to be unchanged.
"""

import hashlib
from datetime import UTC, datetime
from typing import cast

from trajectory_pipeline.letta.connection import literal
from trajectory_pipeline.letta.snapshot import Snapshot, naive_utc
from trajectory_pipeline.schema.raw import (
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_STATUSES,
)

EMPTY = hashlib.sha256(b"").hexdigest()[:32]
"""Fingerprint of a partition without terminal runs."""


def fingerprints(snapshot: Snapshot, start: datetime, end: datetime) -> dict[datetime, str]:
    """Return the fingerprint of each hour in ``[start, end)`` that has terminal runs.

    One query: terminal runs of the window, and by index their steps, messages and metrics: 32 hex digits an hour.

    Raises:
        SourceError: the source cannot be read.
    """
    ended = snapshot.ended_at("r")
    catalog = snapshot.catalog
    messages, steps = catalog.table(MESSAGES), catalog.table(STEPS)
    run_metrics, step_metrics = catalog.table(RUN_METRICS), catalog.table(STEP_METRICS)
    rows_of_runs = [
        (RUNS, f"JOIN {catalog.table(RUNS)} t ON t.id = r.id", catalog.row_version(RUNS, "t")),
        (STEPS, f"JOIN {steps} t ON t.run_id = r.id", catalog.row_version(STEPS, "t")),
        # Steps of other runs that a run's messages name: an approval's answer belongs to the asking run's step. LIMIT
        # keeps the planner from reading all of the source's steps instead of looking these up by their key.
        (
            STEPS,
            f"JOIN {messages} m ON m.run_id = r.id CROSS JOIN LATERAL"
            f" (SELECT n.id, n.run_id, {catalog.row_version(STEPS, 'n')} AS version"
            f" FROM {steps} n WHERE n.id = m.step_id LIMIT 1) t WHERE t.run_id IS DISTINCT FROM r.id",
            "t.version",
        ),
        (MESSAGES, f"JOIN {messages} t ON t.run_id = r.id", catalog.row_version(MESSAGES, "t")),
        (RUN_METRICS, f"JOIN {run_metrics} t ON t.id = r.id", catalog.row_version(RUN_METRICS, "t")),
        (
            STEP_METRICS,
            f"JOIN {steps} s ON s.run_id = r.id JOIN {step_metrics} t ON t.id = s.id",
            catalog.row_version(STEP_METRICS, "t"),
        ),
    ]
    parts = [
        f"SELECT r.hour, {number} AS kind, count(*) AS rows,"
        f" sum(hashtextextended(t.id::text || ':' || {version}, 0)::numeric) AS sum FROM r {join} GROUP BY 1"
        for number, (table, join, version) in enumerate(rows_of_runs)
        if catalog.has(table)
    ]
    hourly = f"r.id, date_trunc('hour', {ended}) AS hour"
    rows = snapshot.read(
        "Comparing fingerprints",
        f"WITH {terminal_runs_of(snapshot, start, end, hourly)}"
        f" SELECT hour, string_agg(concat_ws(':', kind, rows, sum), ',' ORDER BY kind) AS summary"
        f" FROM ({' UNION ALL '.join(parts)}) p GROUP BY 1",
    )
    return {
        hour.replace(tzinfo=UTC): hashlib.sha256(summary.encode()).hexdigest()[:32]
        for hour, summary in zip(
            cast(list[datetime], rows["hour"].to_pylist()), cast(list[str], rows["summary"].to_pylist()), strict=True
        )
    }


def terminal_runs_of(snapshot: Snapshot, start: datetime, end: datetime, columns: str) -> str:
    """Return the SQL of ``r``, the terminal runs that ended in ``[start, end)``, for a WITH clause."""
    ended = snapshot.ended_at("r")
    return (
        f"r AS MATERIALIZED (SELECT {columns} FROM {snapshot.catalog.table(RUNS)} r"
        f" WHERE r.status::text IN ({', '.join(map(literal, TERMINAL_STATUSES))})"
        f" AND {ended} >= {naive_utc(start)} AND {ended} < {naive_utc(end)})"
    )
