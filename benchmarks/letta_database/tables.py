"""Tables that the sample lacks and the pipeline reads: tools, their agents, and traces of LLM calls.

Columns are those of Letta 0.16.8's ORM models (`letta/orm/*.py` of the wheel), as far as the pipeline or an index of
Letta uses them.
"""

import json
import random

from benchmarks.letta_database.prose import Prose, copy_escaped
from benchmarks.letta_database.rows import uuid_text

STATEMENTS = (
    "CREATE TABLE public.tools (id varchar NOT NULL, name varchar NOT NULL, tool_type varchar, description varchar,"
    " source_type varchar, source_code varchar, json_schema json, return_char_limit integer, organization_id varchar,"
    " project_id varchar, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),"
    " is_deleted boolean DEFAULT false NOT NULL, _created_by_id varchar, _last_updated_by_id varchar)",
    "CREATE TABLE public.tools_agents (agent_id varchar NOT NULL, tool_id varchar NOT NULL)",
    "CREATE TABLE public.provider_traces (id varchar NOT NULL, request_json json, response_json json, step_id varchar,"
    " agent_id varchar, run_id varchar, call_type varchar, source varchar, organization_id varchar,"
    " created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),"
    " is_deleted boolean DEFAULT false NOT NULL, _created_by_id varchar, _last_updated_by_id varchar)",
)
INDEXES = (
    "ALTER TABLE public.tools ADD PRIMARY KEY (id)",
    "ALTER TABLE public.tools_agents ADD PRIMARY KEY (agent_id, tool_id)",
    "ALTER TABLE public.provider_traces ADD PRIMARY KEY (id)",
    "CREATE INDEX ix_tools_created_at_name ON public.tools (created_at, name)",
    "CREATE INDEX ix_tools_agents_tool_id ON public.tools_agents (tool_id)",
    "CREATE INDEX ix_step_id ON public.provider_traces (step_id)",
)
COLUMNS = {
    "tools": ("id", "name", "tool_type", "description", "json_schema"),
    "tools_agents": ("agent_id", "tool_id"),
    "provider_traces": ("id", "step_id", "call_type", "request_json", "response_json"),
}

TOOLS = 60
TOOLS_OF_AN_AGENT = 8
_DESCRIPTION_CHARACTERS = 400
_REQUEST_CHARACTERS = 40_000
"""Of one recorded LLM call, as measured on a real server: 42 kB on the average."""


def tool_rows(rng: random.Random, prose: Prose) -> tuple[list[str], str]:
    """Return the ids of the tools, and their rows for COPY."""
    ids = [f"tool-{uuid_text(rng.randbytes(16).hex())}" for _ in range(TOOLS)]
    lines = []
    for number, tool_id in enumerate(ids):
        name = f"tool_{number}"
        description = prose.text(prose.draw(rng, _DESCRIPTION_CHARACTERS), 1)
        schema = copy_escaped(
            json.dumps(
                {
                    "name": name,
                    "description": "@",
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "query": {"type": "string", "description": "What to look for."},
                            "limit": {"type": "integer", "description": "How many at most."},
                        },
                        "required": ["query"],
                    },
                }
            )
        ).replace('"@"', f'"{description}"')
        lines.append("\t".join((tool_id, name, "custom", "\\N", schema)) + "\n")
    return ids, "".join(lines)


def trace_row(rng: random.Random, prose: Prose, step_id: str) -> str:
    """Return a recorded LLM call of a step, in the form of OpenAI's chat requests."""
    prompt, history = (prose.text(prose.draw(rng, share * _REQUEST_CHARACTERS), 1) for share in (0.3, 0.7))
    request = (
        '{"model": "gpt-4o-mini", "messages": [{"role": "system", "content": "'
        f'{prompt}"}}, {{"role": "user", "content": "{history}"}}], "tools": []}}'
    )
    trace_id = f"provider_trace-{uuid_text(rng.randbytes(16).hex())}"
    return "\t".join((trace_id, step_id, "agent_step", request, "{}")) + "\n"
