"""A digest of what raw rows hold besides the rows of their runs: agents, tags, tools, prompts, recorded calls.

The fingerprint leaves these out: an agent's row changes with each of its runs, and old partitions are not captured
again for that. A partition that is requested gets them as they are now, so it must know whether they changed. Of an
agent only what reaches a trajectory counts, not its list of messages in context.
"""

import hashlib
import json
from datetime import datetime
from typing import Any

from trajectory_pipeline.letta.fingerprint import terminal_runs_of
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.schema.raw import (
    AGENTS,
    AGENTS_TAGS,
    MESSAGES,
    PROVIDER_TRACES,
    STEPS,
    TOOLS,
    TOOLS_AGENTS,
)


def dependency_digests(snapshot: Snapshot, start: datetime, end: datetime) -> str:
    """Return a digest (64 hex digits) of what the terminal runs of ``[start, end)`` depend on, by one query.

    The catalog is part of it: a new column with a default changes every row, and no row's version.

    Raises:
        SourceError: the source cannot be read.
    """
    catalog = snapshot.catalog
    agents = f"{catalog.table(AGENTS)} a"
    of_runs = "a.id IN (SELECT agent_id FROM r)"
    message_ids = next(column for column in AGENTS.columns if column.name == "message_ids")
    # Not ``->>``, which refuses a NUL escaped in JSON.
    first_message = f"trim(both '\"' from ({catalog.expression(AGENTS, message_ids, 'a')}::json -> 0)::text)"
    of_agent = ", ".join(
        catalog.expression(AGENTS, column, "a") for column in AGENTS.columns if column is not message_ids
    )
    parts = [
        (
            (AGENTS,),
            f"ROW({of_agent}, {first_message})::text",
            f"{agents} WHERE {of_runs}",
        ),
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
        found = snapshot.read(
            "Comparing agents, tools and prompts",
            f"WITH {terminal_runs_of(snapshot, start, end, 'r.id, r.agent_id')}"
            f" SELECT kind, concat_ws(':', rows, sum) AS summary FROM ({' UNION ALL '.join(sums)}) p ORDER BY kind",
        )
        summary = found.to_pylist()
    return _digest(snapshot, summary)


def empty_dependency_digest(snapshot: Snapshot) -> str:
    """Return the digest of an hour without runs (64 hex digits): of the catalog alone, without any query."""
    return _digest(snapshot, [])


def _digest(snapshot: Snapshot, summary: list[dict[str, Any]]) -> str:
    catalog = snapshot.catalog
    return hashlib.sha256(json.dumps([catalog.schema, catalog.columns, summary]).encode()).hexdigest()
