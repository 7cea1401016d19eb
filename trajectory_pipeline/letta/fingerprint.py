"""Fingerprints: a cheap summary of a partition's rows in the source; equal ones mean that nothing changed.

Belongs here: the query. Does not belong here: who compares (``orchestration.sensors``), or keeps (the ledger).

A row's ``xmin`` moves with any change to it, whether or not Letta moves a timestamp: status flips, late messages and
metrics, step finalisation and feedback, soft deletes. A row that appears or goes changes the count and the sum. A source
that was restored moves every ``xmin``: everything is then read again, and found to be the same.
"""

import hashlib
from datetime import UTC, datetime

from trajectory_pipeline.letta.connection import identifier, literal
from trajectory_pipeline.letta.source import Snapshot, naive_utc
from trajectory_pipeline.schema.letta import (
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_STATUSES,
    SourceTable,
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
    parts = [_part("runs", "t.id", "", snapshot, RUNS, "r.id")]
    for table, join in (
        (STEPS, "t.run_id = r.id"),
        (MESSAGES, "t.run_id = r.id"),
        (RUN_METRICS, "t.id = r.id"),
    ):
        if snapshot.catalogue.has(table):
            parts.append(_part(table.name, "t.id", join, snapshot, table, "r.id"))
    if snapshot.catalogue.has(STEP_METRICS):
        parts.append(
            f"SELECT r.hour, 'step_metrics' AS kind, {_sum('t')} FROM r"
            f" JOIN {snapshot.catalogue.table(STEPS)} s ON s.run_id = r.id"
            f" JOIN {snapshot.catalogue.table(STEP_METRICS)} t ON t.id = s.id GROUP BY 1"
        )
    rows = snapshot.read(
        "Comparing fingerprints",
        f"WITH r AS MATERIALIZED (SELECT r.id, date_trunc('hour', {ended}) AS hour"
        f" FROM {snapshot.catalogue.table(RUNS)} r WHERE r.status IN ({', '.join(map(literal, TERMINAL_STATUSES))})"
        f" AND {ended} >= {naive_utc(start)} AND {ended} < {naive_utc(end)})"
        f" SELECT hour, string_agg(kind || ':' || rows || ':' || sum, ',' ORDER BY kind) AS summary"
        f" FROM ({' UNION ALL '.join(parts)}) p GROUP BY 1",
    )
    return {
        hour.replace(tzinfo=UTC): hashlib.sha256(summary.encode()).hexdigest()[:32]
        for hour, summary in zip(rows["hour"].to_pylist(), rows["summary"].to_pylist(), strict=True)
    }


def _part(kind: str, key: str, join: str, snapshot: Snapshot, table: SourceTable, run: str) -> str:
    condition = join or f"{key} = {run}"
    return (
        f"SELECT r.hour, {literal(kind)} AS kind, {_sum('t')} FROM r"
        f" JOIN {snapshot.catalogue.table(table)} t ON {condition} GROUP BY 1"
    )


def _sum(alias: str) -> str:
    row = f"{alias}.{identifier('id')}::text || ':' || {alias}.xmin::text"
    return f"count(*)::text AS rows, sum(hashtextextended({row}, 0)::numeric)::text AS sum"
