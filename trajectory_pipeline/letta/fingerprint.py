"""Fingerprints: a cheap summary of a partition's rows in the source; equal ones mean that nothing changed.

A row's ``xmin`` moves with any change to it, whether or not Letta moves a timestamp: status changes, late messages and
metrics, step finalization and feedback, soft deletes. A row that appears or disappears changes the count and the sum.
Restoring a source moves every ``xmin``, and another cluster or timeline gives another fingerprint: everything is then
read again. Where the cluster is unknown, or a table has no versions (a view, a foreign table), the rows' text counts.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trajectory_pipeline.letta.catalog import Catalog
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
    parts = [
        f"SELECT r.hour, {number} AS kind, count(*) AS rows, sum({_hash(row)}) AS sum FROM r {join} GROUP BY 1"
        for number, (join, row) in _rows_of_runs(snapshot.catalog)
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


def run_versions(snapshot: "Snapshot", start: datetime, end: datetime) -> pa.Table:
    """Return ``run_id`` and ``version`` (a 64-bit number) of each terminal run of ``[start, end)``, sorted by id.

    A version sums up every row that the run's raw rows are made of: those of its fingerprint, the calls in steps of
    other runs, recorded calls, and its agent as far as ``dependency_digest`` looks at it.
    """
    catalog = snapshot.catalog
    call = _hash(f"c.id::text || ':' || {catalog.row_version(MESSAGES, 'c')}", _CALLS)
    calls = f"SELECT {call} FROM {catalog.table(MESSAGES)} c WHERE c.step_id = t.id"
    parts = [
        f"SELECT r.id, {_hash(row, kind)} AS h FROM r {join}"
        for kind, (join, row) in [*_rows_of_runs(catalog), *_traces_of_runs(catalog)]
        if kind != _FOREIGN
    ]
    step = _hash("t.id::text || ':' || t.version", _FOREIGN)
    # Unpivoted here, so that the steps are looked up once.
    parts.append(
        f"SELECT r.id, u.h FROM r {_foreign_steps(catalog)} CROSS JOIN LATERAL (SELECT {step} AS h UNION ALL {calls}) u"
        f" WHERE {_IS_FOREIGN}"
    )
    of_agents = [
        f"SELECT {agent} AS agent_id, {_hash(row, kind)} AS h FROM {source}"
        for kind, (agent, row, source) in _rows_of_agents(catalog)
    ]
    if of_agents:
        agents = f"SELECT agent_id, {_as_bigint('sum(h)')} AS h FROM ({' UNION ALL '.join(of_agents)}) p GROUP BY 1"
        parts.append(f"SELECT r.id, a.h FROM r JOIN ({agents}) a ON a.agent_id = r.agent_id")
    runs = f"SELECT r.id, r.agent_id {snapshot.terminal_runs_between(start, end)}"
    rows = snapshot.read(
        "Comparing runs",
        f"WITH r AS MATERIALIZED ({runs}) SELECT id::text AS run_id, {_as_bigint('sum(h)')} AS version"
        f" FROM ({' UNION ALL '.join(parts)}) p WHERE id IS NOT NULL GROUP BY 1",
    )
    return rows.sort_by("run_id")


def dependency_digests(snapshot: "Snapshot", start: datetime, end: datetime) -> str:
    """Return a digest (64 hex digits) of what the terminal runs of ``[start, end)`` depend on besides their own rows.

    These are agents, tags, tools, prompts and recorded calls. The fingerprint leaves them out: an agent's row changes
    with each of its runs, and old partitions are not captured again for that. A partition that is requested gets them
    as they are now, so it must know whether they changed. Of an agent only what reaches a trajectory counts, not its
    list of messages in context.

    The catalog is part of it: a new column with a default changes every row, and no row's version.
    """
    catalog = snapshot.catalog
    parts = [
        *((number, row, source) for number, (_, row, source) in _rows_of_agents(catalog)),
        *((number, row, f"r {join}") for number, (join, row) in _traces_of_runs(catalog)),
    ]
    sums = [
        f"SELECT {number} AS kind, count(*) AS rows, sum({_hash(row)}) AS sum FROM {source}"
        for number, row, source in parts
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


_FOREIGN = 2
_TRACES = 4
_CALLS = 6
"""Kinds of rows that are named; others are counted from 0."""
_IS_FOREIGN = "t.run_id IS DISTINCT FROM r.id"


def _hash(row: str, seed: int = 0) -> str:
    # Sums of bigint are numeric: they do not overflow, and are twice as fast as sums of numeric.
    return f"hashtextextended({row}, {seed})"


def _as_bigint(number: str) -> str:
    return f"mod({number}, {2**63 - 1})::bigint"


def _foreign_steps(catalog: Catalog) -> str:
    """Return the SQL that joins steps ``t`` that a run's messages name: also its own, until ``_IS_FOREIGN`` is asked.

    An approval's answer belongs to the asking run's step. LIMIT keeps the planner from reading all steps of the source
    instead of looking these up by their key.
    """
    return (
        f"JOIN {catalog.table(MESSAGES)} m ON m.run_id = r.id CROSS JOIN LATERAL"
        f" (SELECT n.id, n.run_id, {catalog.row_version(STEPS, 'n')} AS version"
        f" FROM {catalog.table(STEPS)} n WHERE n.id = m.step_id LIMIT 1) t"
    )


def _rows_of_runs(catalog: Catalog) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield, numbered, how the rows of a fingerprint ``t`` are joined to runs ``r``, and each as one text."""
    steps, step_metrics = catalog.table(STEPS), catalog.table(STEP_METRICS)
    kinds = [
        (RUNS, f"JOIN {catalog.table(RUNS)} t ON t.id = r.id", catalog.row_version(RUNS, "t")),
        (STEPS, f"JOIN {steps} t ON t.run_id = r.id", catalog.row_version(STEPS, "t")),
        (STEPS, f"{_foreign_steps(catalog)} WHERE {_IS_FOREIGN}", "t.version"),
        (MESSAGES, f"JOIN {catalog.table(MESSAGES)} t ON t.run_id = r.id", catalog.row_version(MESSAGES, "t")),
        (RUN_METRICS, f"JOIN {catalog.table(RUN_METRICS)} t ON t.id = r.id", catalog.row_version(RUN_METRICS, "t")),
        (
            STEP_METRICS,
            f"JOIN {steps} s ON s.run_id = r.id JOIN {step_metrics} t ON t.id = s.id",
            catalog.row_version(STEP_METRICS, "t"),
        ),
    ]
    for number, (table, join, version) in enumerate(kinds):
        if catalog.has(table):
            yield number, (join, f"t.id::text || ':' || {version}")


def _rows_of_agents(catalog: Catalog) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield, numbered, the agent's id, a row of it as one text, and where it is read, for the agents of runs ``r``."""
    agents = f"{catalog.table(AGENTS)} a"
    of_runs = "a.id IN (SELECT agent_id FROM r)"
    # By pattern: JSON functions refuse an escaped NUL, and a view may show what is no JSON.
    ids = catalog.expression(AGENTS, "message_ids", "a")
    first_message = f'substring({ids} FROM \'^[[:space:]]*[[][[:space:]]*"([^"]*)"\')'
    of_agent = ", ".join(
        catalog.expression(AGENTS, column.name, "a") for column in AGENTS.columns if column.name != "message_ids"
    )
    parts = [
        ((AGENTS,), "a.id", f"ROW({of_agent}, {first_message})::text", f"{agents} WHERE {of_runs}"),
        (
            (AGENTS,),
            "a.id",
            f"m.id::text || ':' || {catalog.row_version(MESSAGES, 'm')}",
            f"{agents} JOIN {catalog.table(MESSAGES)} m ON m.id = {first_message} WHERE {of_runs}",
        ),
        (
            (AGENTS_TAGS,),
            "t.agent_id",
            "ROW(t.agent_id::text, t.tag::text)::text",
            f"{catalog.table(AGENTS_TAGS)} t WHERE t.agent_id IN (SELECT agent_id FROM r)",
        ),
        (
            (TOOLS, TOOLS_AGENTS),
            "ta.agent_id",
            "ROW(ta.agent_id::text, t.id::text, t.json_schema::text)::text",
            f"{catalog.table(TOOLS_AGENTS)} ta JOIN {catalog.table(TOOLS)} t ON t.id = ta.tool_id"
            " WHERE ta.agent_id IN (SELECT agent_id FROM r)",
        ),
    ]
    for number, (tables, *part) in enumerate(parts):
        if all(map(catalog.has, tables)):
            agent, row, source = part
            yield number, (agent, row, source)


def _traces_of_runs(catalog: Catalog) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield how recorded calls ``t`` are joined to runs ``r``, and each as one text, as ``_rows_of_runs`` does."""
    if catalog.has(PROVIDER_TRACES):
        join = (
            f"JOIN {catalog.table(STEPS)} s ON s.run_id = r.id"
            f" JOIN {catalog.table(PROVIDER_TRACES)} t ON t.step_id = s.id"
        )
        yield _TRACES, (join, f"t.id::text || ':' || {catalog.row_version(PROVIDER_TRACES, 't')}")


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
