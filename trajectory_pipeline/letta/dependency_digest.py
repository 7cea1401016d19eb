"""What raw rows hold beside the rows of their runs, summed up: agents, tags, tools, prompts, recorded calls.

Belongs here: the query. Does not belong here: the rows of the runs themselves (``fingerprint``), and who compares.

The fingerprint leaves these out, because an agent's row changes with every run of it, and no old partition is to be
captured again for that. Who asks for a partition gets them as they are now, and therefore needs to know whether they
changed. Of an agent only what reaches a trajectory counts: not the list of all messages that it has in mind.
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
    """Return a digest (64 hex digits) of what surrounds the terminal runs of ``[start, end)``, by one query.

    The catalogue is part of it: a new column with a default changes every row, and no row's version.

    Raises:
        SourceError: the source cannot be read.
    """
    catalogue = snapshot.catalog
    agents = f"{catalogue.table(AGENTS)} a"
    of_runs = "a.id IN (SELECT agent_id FROM r)"
    message_ids = next(column for column in AGENTS.columns if column.name == "message_ids")
    # Not ``->>``, which refuses a NUL escaped in JSON.
    first_message = f"trim(both '\"' from ({catalogue.expression(AGENTS, message_ids, 'a')}::json -> 0)::text)"
    of_agent = ", ".join(
        catalogue.expression(AGENTS, column, "a") for column in AGENTS.columns if column is not message_ids
    )
    parts = [
        (
            (AGENTS,),
            f"ROW({of_agent}, {first_message})::text",
            f"{agents} WHERE {of_runs}",
        ),
        (
            (AGENTS,),
            f"m.id::text || ':' || {catalogue.row_version(MESSAGES, 'm')}",
            f"{agents} JOIN {catalogue.table(MESSAGES)} m ON m.id = {first_message} WHERE {of_runs}",
        ),
        (
            (AGENTS_TAGS,),
            "ROW(t.agent_id::text, t.tag::text)::text",
            f"{catalogue.table(AGENTS_TAGS)} t WHERE t.agent_id IN (SELECT agent_id FROM r)",
        ),
        (
            (TOOLS, TOOLS_AGENTS),
            "ROW(ta.agent_id::text, t.id::text, t.json_schema::text)::text",
            f"{catalogue.table(TOOLS_AGENTS)} ta JOIN {catalogue.table(TOOLS)} t ON t.id = ta.tool_id"
            " WHERE ta.agent_id IN (SELECT agent_id FROM r)",
        ),
        (
            (PROVIDER_TRACES,),
            f"t.id::text || ':' || {catalogue.row_version(PROVIDER_TRACES, 't')}",
            f"r JOIN {catalogue.table(STEPS)} s ON s.run_id = r.id"
            f" JOIN {catalogue.table(PROVIDER_TRACES)} t ON t.step_id = s.id",
        ),
    ]
    sums = [
        f"SELECT {number} AS kind, count(*) AS rows, sum(hashtextextended({row}, 0)::numeric) AS sum FROM {source}"
        for number, (tables, row, source) in enumerate(parts)
        if all(map(catalogue.has, tables))
    ]
    summary: list[dict[str, Any]] = []
    if sums:
        found = snapshot.read(
            "Comparing what surrounds the runs",
            f"WITH {terminal_runs_of(snapshot, start, end, 'r.id, r.agent_id')}"
            f" SELECT kind, concat_ws(':', rows, sum) AS summary FROM ({' UNION ALL '.join(sums)}) p ORDER BY kind",
        )
        summary = found.to_pylist()
    return _digest(snapshot, summary)


def empty_dependency_digest(snapshot: Snapshot) -> str:
    """Return a digest (64 hex digits) of what surrounds no run, without any query: the catalogue alone."""
    return _digest(snapshot, [])


def _digest(snapshot: Snapshot, summary: list[dict[str, Any]]) -> str:
    catalogue = snapshot.catalog
    return hashlib.sha256(json.dumps([catalogue.schema, catalogue.columns, summary]).encode()).hexdigest()
