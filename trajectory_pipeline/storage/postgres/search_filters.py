"""Which runs may be found, listed or counted, and the conditions in SQL that say so."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from trajectory_pipeline.storage.postgres.service_access import Tenants


@dataclass(frozen=True)
class SearchFilters:
    """Which runs may be found. A filter that is empty or None allows all; a list allows any of its values.

    Attributes:
        completed_from: earliest ``end_time``; with a zone.
        completed_to: ``end_time`` must be before it; with a zone.
        outcomes: of the verdict under the current policy, so that only judged runs are found.
        heuristic_outcomes: by rule.
        tools: that ran in the run.
        models: of the agent.
        failure_modes: of the verdict.
        tags: of the agent, or of the verdict.
        task_family: id of a task family.
        sources: names of sources: `letta`, or one in `TRAJECTORY_SOURCES`.
        tenants: whose runs may be found; None: all. Policies hold a client to its tenants anyway; as a filter, they are
            what its runs are found by.
    """

    agent_ids: tuple[str, ...] = ()
    organization_ids: tuple[str, ...] = ()
    project_ids: tuple[str, ...] = ()
    completed_from: datetime | None = None
    completed_to: datetime | None = None
    outcomes: tuple[str, ...] = ()
    heuristic_outcomes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    failure_modes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    task_family: str | None = None
    sources: tuple[str, ...] = ()
    tenants: Tenants | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))


_OF_TENANTS = {"agent_ids": "agent_id", "organization_ids": "organization_id"}
"""Columns of trajectories that search texts and embeddings have too."""
_CONDITIONS = {
    "project_ids": "t.project_id = ANY(%(project_ids)s)",
    "sources": "t.source = ANY(%(sources)s)",
    "completed_from": "t.end_time >= %(completed_from)s",
    "completed_to": "t.end_time < %(completed_to)s",
    "outcomes": "o.outcome = ANY(%(outcomes)s)",
    "heuristic_outcomes": "t.heuristic_outcome = ANY(%(heuristic_outcomes)s)",
    "tools": "t.tools_used && %(tools)s::text[]",
    "models": "t.models && %(models)s::text[]",
    "failure_modes": "o.failure_mode = ANY(%(failure_modes)s)",
    "tags": "(t.tags && %(tags)s::text[] OR o.tags && %(tags)s::text[])",
    "task_family": "EXISTS (SELECT FROM trajectory.task_family_runs f"
    " WHERE f.run_id = t.run_id AND f.family_id = %(task_family)s)",
}


def filter_conditions(filters: SearchFilters) -> tuple[list[str], dict[str, Any]]:
    """Return conditions on trajectories ``t`` that are not deleted and their verdicts ``o``, and their parameters."""
    of_tenants, parameters = tenant_conditions(filters, "t")
    conditions = ["t.deleted_at IS NULL", *of_tenants]
    for name, condition in _CONDITIONS.items():
        if value := getattr(filters, name):
            conditions.append(_bind(condition, name, value, parameters))
    return conditions, parameters


def tenant_conditions(filters: SearchFilters, table: str) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions on agents and organizations, of whichever table has both, and their parameters."""
    parameters: dict[str, Any] = {}

    def one_of(column: str, name: str, values: Iterable[str]) -> str:
        return _bind(f"{table}.{column} = ANY(%({name})s)", name, tuple(values), parameters)

    conditions = [
        one_of(column, name, values) for name, column in _OF_TENANTS.items() if (values := getattr(filters, name))
    ]
    if filters.tenants is not None:
        allowed = {"organization_id": filters.tenants.organizations, "agent_id": filters.tenants.agents}
        either = " OR ".join(
            one_of(column, f"tenants_{column}", sorted(values)) for column, values in allowed.items() if values
        )
        conditions.append(f"({either or 'false'})")
    return conditions, parameters


def _bind(condition: str, name: str, value: Any, parameters: dict[str, Any]) -> str:
    """Return a condition, and set its parameter; for one value by ``=``: an index gives its runs in order of time."""
    if isinstance(value, tuple) and len(value) == 1 and condition.endswith(f"= ANY(%({name})s)"):
        parameters[name] = value[0]
        return condition.replace(f"ANY(%({name})s)", f"%({name})s")
    parameters[name] = list(value) if isinstance(value, tuple) else value
    return condition
