"""Fingerprints: a cheap summary of a partition's rows in the source; equal ones mean that nothing changed.

A row's ``xmin`` moves with any change to it, whether or not Letta moves a timestamp: status changes, late messages and
metrics, step finalization and feedback, soft deletes. A row that appears or disappears changes the count and the sum.
Restoring a source moves every ``xmin``, and another cluster or timeline gives another fingerprint: everything is then
read again. Where the cluster is unknown, or a table has no versions (a view, a foreign table), the rows' text counts.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trajectory_pipeline.schema.raw import (
    AGENTS,
    AGENTS_TAGS,
    MESSAGES,
    PROVIDER_TRACES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TOOLS,
    TOOLS_AGENTS,
)

if TYPE_CHECKING:
    from trajectory_pipeline.letta.snapshot import Snapshot


def fingerprints(snapshot: "Snapshot", start: datetime, end: datetime) -> dict[datetime, str]:
    """Return the fingerprint of each hour in ``[start, end)`` that has terminal runs.

    One query: terminal runs of the window, and by index their steps, messages and metrics: 32 hex digits an hour.
    """
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
    hour = f"date_trunc('hour', {snapshot.ended_at('r')})"
    rows = snapshot.read(
        "Comparing fingerprints",
        f"WITH r AS MATERIALIZED (SELECT r.id, {hour} AS hour {snapshot.terminal_runs_between(start, end)})"
        f" SELECT hour, string_agg(concat_ws(':', kind, rows, sum), ',' ORDER BY kind) AS summary"
        f" FROM ({' UNION ALL '.join(parts)}) p GROUP BY 1",
    )
    # Another cluster, or the same one restored to an earlier moment, gives the same versions to other rows.
    scope = snapshot.identity.cluster or ""
    return {
        row["hour"].replace(tzinfo=UTC): hashlib.sha256(f"{scope}\n{row['summary']}".encode()).hexdigest()[:32]
        for row in rows.to_pylist()
    }


def dependency_digests(snapshot: "Snapshot", start: datetime, end: datetime) -> str:
    """Return a digest (64 hex digits) of what the terminal runs of ``[start, end)`` depend on besides their own rows.

    These are agents, tags, tools, prompts and recorded calls. The fingerprint leaves them out: an agent's row changes
    with each of its runs, and old partitions are not captured again for that. A partition that is requested gets them
    as they are now, so it must know whether they changed. Of an agent only what reaches a trajectory counts, not its
    list of messages in context.

    The catalog is part of it: a new column with a default changes every row, and no row's version.
    """
    catalog = snapshot.catalog
    agents = f"{catalog.table(AGENTS)} a"
    of_runs = "a.id IN (SELECT agent_id FROM r)"
    # By pattern: JSON functions refuse an escaped NUL, and a view may show what is no JSON.
    ids = catalog.expression(AGENTS, "message_ids", "a")
    first_message = f'substring({ids} FROM \'^[[:space:]]*[[][[:space:]]*"([^"]*)"\')'
    of_agent = ", ".join(
        catalog.expression(AGENTS, column.name, "a") for column in AGENTS.columns if column.name != "message_ids"
    )
    parts = [
        ((AGENTS,), f"ROW({of_agent}, {first_message})::text", f"{agents} WHERE {of_runs}"),
        (
            (AGENTS,),
            f"m.id::text || ':' || {catalog.row_version(MESSAGES, 'm')}",
            f"{agents} JOIN {catalog.table(MESSAGES)} m ON m.id = {first_message} WHERE {of_runs}",
        ),
        (
            (AGENTS_TAGS,),
            "ROW(t.agent_id::text, t.tag::text)::text",
            f"{catalog.table(AGENTS_TAGS)} t WHERE t.agent_id IN (SELECT agent_id FROM r)",
        ),
        (
            (TOOLS, TOOLS_AGENTS),
            "ROW(ta.agent_id::text, t.id::text, t.json_schema::text)::text",
            f"{catalog.table(TOOLS_AGENTS)} ta JOIN {catalog.table(TOOLS)} t ON t.id = ta.tool_id"
            " WHERE ta.agent_id IN (SELECT agent_id FROM r)",
        ),
        (
            (PROVIDER_TRACES,),
            f"t.id::text || ':' || {catalog.row_version(PROVIDER_TRACES, 't')}",
            f"r JOIN {catalog.table(STEPS)} s ON s.run_id = r.id"
            f" JOIN {catalog.table(PROVIDER_TRACES)} t ON t.step_id = s.id",
        ),
    ]
    sums = [
        f"SELECT {number} AS kind, count(*) AS rows, sum(hashtextextended({row}, 0)::numeric) AS sum FROM {source}"
        for number, (tables, row, source) in enumerate(parts)
        if all(map(catalog.has, tables))
    ]
    summary: list[dict[str, Any]] = []
    if sums:
        runs = f"SELECT r.id, r.agent_id {snapshot.terminal_runs_between(start, end)}"
        summary = snapshot.read(
            "Comparing agents, tools and prompts",
            f"WITH r AS MATERIALIZED ({runs})"
            f" SELECT kind, concat_ws(':', rows, sum) AS summary FROM ({' UNION ALL '.join(sums)}) p ORDER BY kind",
        ).to_pylist()
    return _digest(snapshot, summary)


def empty_dependency_digest(snapshot: "Snapshot") -> str:
    """Return the digest of an hour without runs (64 hex digits): of the catalog alone, without any query."""
    return _digest(snapshot, [])


def _digest(snapshot: "Snapshot", summary: list[dict[str, Any]]) -> str:
    catalog = snapshot.catalog
    depends_on = [catalog.schema, catalog.columns, summary]
    # As for fingerprints; an hour without runs has no versions to compare.
    if summary and snapshot.identity.cluster:
        depends_on.append(snapshot.identity.cluster)
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
