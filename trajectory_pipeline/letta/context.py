"""The system prompt and tools that an agent had: of recorded LLM calls, else of its rows at capture."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.letta.catalog import Catalog
from trajectory_pipeline.lossless_json import json_or_none, storable_text
from trajectory_pipeline.schema.raw import MESSAGES, PROVIDER_TRACES, TOOLS, TOOLS_AGENTS

_NAMES = ("system_prompt", "tools", "source")
AT_CAPTURE = "at_capture"
"""Source of a context that was read from the agent's rows, and may be later than the run."""
_MAX_CACHED_CHARACTERS = 16 * 2**20


@dataclass(frozen=True)
class Context:
    """The instructions and tools that an agent had; see ``schema.raw.CONTEXT``."""

    system_prompt: str | None
    tools: str | None
    source: str


def context_from_request(request_json: str) -> Context | None:
    """Return the context of one LLM call as it was sent; None where the request is of no known form.

    Known are OpenAI's chat and Responses forms and Anthropic's (``provider_traces.request_json``, Letta 0.12 to
    0.16.8).
    """
    request = json_or_none(request_json)
    if not isinstance(request, dict):
        return None
    prompt = _text(request.get("system")) or _text(request.get("instructions"))
    for key in ("messages", "input"):
        first = next(iter(request.get(key) or []), None) if isinstance(request.get(key), list) else None
        if prompt is None and isinstance(first, dict) and first.get("role") in ("system", "developer"):
            prompt = _text(first.get("content"))
    tools = request.get("tools")
    try:
        tools_json = json.dumps(tools) if isinstance(tools, list) and tools else None
    except RecursionError:
        tools_json = None
    if prompt is None and tools_json is None:
        return None
    return Context(prompt and storable_text(prompt), tools_json, "provider_trace")


def context_at_capture(system_content: str | None, agent_system: str | None, tools: list[str]) -> Context | None:
    """Return the context at capture, which may have changed since the run ended.

    The prompt is the content (JSON text) of the agent's system message, the first of its ``message_ids``; else
    ``agents.system``, which lacks the memory blocks compiled into it. Tools are ``tools.json_schema``, in order.
    """
    prompt = _text(json_or_none(system_content or "null")) or agent_system or None
    if prompt is None and not tools:
        return None
    return Context(prompt and storable_text(prompt), f"[{','.join(tools)}]" if tools else None, AT_CAPTURE)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, list):
        texts = [part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "\n\n".join(texts) or None
    return None


class _Snapshot(Protocol):
    catalog: Catalog

    def read(self, doing: str, query: str) -> pa.Table: ...

    def stream(self, doing: str, query: str) -> Iterator[pa.RecordBatch]: ...


class ContextReader:
    """The contexts of one snapshot's runs; each agent's is read once, not once a batch."""

    def __init__(self, snapshot: _Snapshot) -> None:
        self._snapshot = snapshot
        self._by_agent_id: dict[str, Context | None] = {}
        self._cached_characters = 0
        self._any_traces: bool | None = None

    def of(self, runs: pa.Table, steps: pa.Table, agents: pa.Table) -> pa.Table:
        """Return ``run_id`` and the fields of ``schema.raw.CONTEXT``, for runs with a known context."""
        traced, current = self._traced(steps), self._current(agents)
        found: dict[Context, int] = {}
        run_ids, indexes = [], []
        for run_id, agent_id in zip(_values(runs["id"]), _values(runs["agent_id"]), strict=True):
            context = traced.get(run_id) or current.get(agent_id)
            if context is not None:
                run_ids.append(run_id)
                indexes.append(found.setdefault(context, len(found)))
        # Many runs share one, whose text becomes an Arrow string once.
        taken = pa.array(indexes, pa.int32())
        columns = {name: pa.array([getattr(context, name) for context in found], pa.string()) for name in _NAMES}
        return pa.table(
            {"run_id": pa.array(run_ids, pa.string()), **{name: column.take(taken) for name, column in columns.items()}}
        )

    def _traced(self, steps: pa.Table) -> dict[str, Context]:
        if not steps.num_rows or not self._has_traces():
            return {}
        catalog = self._snapshot.catalog
        in_order = steps.select(["run_id", "id", "created_at"]).sort_by(
            [("created_at", "ascending"), ("id", "ascending")]
        )
        first: dict[str, str] = {}
        for run_id, step_id in zip(_values(in_order["run_id"]), _values(in_order["id"]), strict=True):
            first.setdefault(run_id, step_id)
        present = catalog.columns[PROVIDER_TRACES.name]
        only_steps = " AND (t.call_type IS NULL OR t.call_type = 'agent_step')" if "call_type" in present else ""
        order = "t.created_at, t.id" if "created_at" in present else "t.id"
        query = (
            "SELECT DISTINCT ON (t.step_id) t.step_id::text AS step_id, t.request_json::text AS request"
            f" FROM {catalog.table(PROVIDER_TRACES)} t"
            f" WHERE {catalog.any_of(PROVIDER_TRACES, 'step_id', 't', list(first.values()))}{only_steps}"
            f" ORDER BY t.step_id, {order}"
        )
        run_of = {step_id: run_id for run_id, step_id in first.items()}
        found: dict[str, Context] = {}
        # Requests hold whole conversations: never more than one record batch of them at a time.
        for batch in self._snapshot.stream("Reading provider_traces", query):
            for step_id, request in zip(_values(batch["step_id"]), _values(batch["request"]), strict=True):
                context = context_from_request(request) if request else None
                if context is not None:
                    found[run_of[step_id]] = context
        return found

    def _has_traces(self) -> bool:
        """Whether the source records LLM calls; in many the table is empty."""
        if self._any_traces is None:
            catalog = self._snapshot.catalog
            self._any_traces = catalog.has(PROVIDER_TRACES) and bool(
                self._snapshot.read(
                    "Looking for provider_traces", f"SELECT 1 AS one FROM {catalog.table(PROVIDER_TRACES)} LIMIT 1"
                ).num_rows
            )
        return self._any_traces

    def _current(self, agents: pa.Table) -> dict[str, Context | None]:
        """Contexts as they are now, by agent."""
        ids = _values(agents["id"])
        known = {agent_id: self._by_agent_id[agent_id] for agent_id in ids if agent_id in self._by_agent_id}
        read = self._read(agents.filter(pc.invert(pc.is_in(agents["id"], value_set=pa.array(known, pa.string())))))
        self._cached_characters += sum(
            len(context.system_prompt or "") + len(context.tools or "") for context in read.values() if context
        )
        if self._cached_characters > _MAX_CACHED_CHARACTERS:
            self._by_agent_id, self._cached_characters = {}, 0
        else:
            self._by_agent_id.update(read)
        return {**known, **read}

    def _read(self, agents: pa.Table) -> dict[str, Context | None]:
        system_message = {}
        for agent_id, message_ids in zip(_values(agents["id"]), _values(agents["message_ids"]), strict=True):
            first = _first_string(message_ids)
            if first is not None:
                system_message[agent_id] = first
        contents: dict[str, str] = {}
        if system_message:
            catalog = self._snapshot.catalog
            rows = self._snapshot.read(
                "Reading system messages",
                f"SELECT m.id::text AS id, m.content::text AS content FROM {catalog.table(MESSAGES)} m"
                f" WHERE {catalog.any_of(MESSAGES, 'id', 'm', sorted(system_message.values()))}"
                " AND m.role::text = 'system'",
            )
            contents = dict(zip(_values(rows["id"]), _values(rows["content"]), strict=True))
        tools = self._tools(sorted(_values(agents["id"])))
        return {
            agent_id: context_at_capture(
                contents.get(system_message.get(agent_id, "")), system, tools.get(agent_id, [])
            )
            for agent_id, system in zip(_values(agents["id"]), _values(agents["system"]), strict=True)
        }

    def _tools(self, agent_ids: Sequence[str]) -> dict[str, list[str]]:
        catalog = self._snapshot.catalog
        if not (agent_ids and catalog.has(TOOLS) and catalog.has(TOOLS_AGENTS)):
            return {}
        rows = self._snapshot.read(
            "Reading tools",
            "SELECT a.agent_id::text AS agent_id, t.json_schema::text AS tool"
            f" FROM {catalog.table(TOOLS_AGENTS)} a JOIN {catalog.table(TOOLS)} t ON t.id = a.tool_id"
            f" WHERE {catalog.any_of(TOOLS_AGENTS, 'agent_id', 'a', list(agent_ids))}"
            " AND t.json_schema::text <> 'null' ORDER BY 1, t.id",
        )
        tools: dict[str, list[str]] = {}
        for agent_id, tool in zip(_values(rows["agent_id"]), _values(rows["tool"]), strict=True):
            tools.setdefault(agent_id, []).append(tool)
        return tools


def _values(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _first_string(json_array: str | None) -> str | None:
    values = json_or_none(json_array or "[]")
    first = values[0] if isinstance(values, list) and values else None
    # A text that no query can hold is no id.
    return first if isinstance(first, str) and storable_text(first) is first else None
