"""The context of a run: its system prompt and tools, as sent where a trace has them, else as they are now.

A trace is the request of the run's *first* step, and never one that asked for a summary. Whatever a trace holds, it
cannot make a run unreadable.
"""

import json
from typing import Any

import pytest

from trajectory_pipeline.letta.context import Context, context_at_capture, context_from_request
from trajectory_pipeline_tests.letta.snapshots import Row, all_runs, ask, do
from trajectory_pipeline_tests.letta.versions import create_statement

TOOL = {"type": "function", "function": {"name": "roll_dice", "parameters": {"type": "object", "properties": {}}}}
FLAT_TOOL = {"type": "function", "name": "roll_dice", "parameters": {"type": "object"}, "strict": False}
CLAUDE_TOOL = {"name": "roll_dice", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}

FORMS: dict[str, tuple[dict[str, Any], str | None, list[Any] | None]] = {
    "OpenAI chat": (
        {
            "model": "gpt-4o",
            "messages": [{"role": "system", "content": "You roll dice."}, {"role": "user", "content": "Roll!"}],
            "tools": [TOOL],
            "tool_choice": "auto",
            "user": "user-1",
            "temperature": 0.7,
        },
        "You roll dice.",
        [TOOL],
    ),
    "OpenAI chat, streamed, reasoning model": (
        {
            "model": "o3",
            "messages": [{"role": "developer", "content": [{"type": "text", "text": "You roll dice."}]}],
            "tools": [TOOL],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        "You roll dice.",
        [TOOL],
    ),
    "OpenAI Responses": (
        {
            "model": "gpt-5",
            "input": [
                {"role": "developer", "content": "You roll dice."},
                {"role": "user", "content": [{"type": "input_text", "text": "Roll!"}]},
            ],
            "tools": [FLAT_TOOL],
            "stream": True,
            "include": ["reasoning.encrypted_content"],
        },
        "You roll dice.",
        [FLAT_TOOL],
    ),
    "OpenAI Responses, instructions": (
        {"model": "gpt-5", "instructions": "You roll dice.", "input": "Roll!", "tools": []},
        "You roll dice.",
        None,
    ),
    "Anthropic": (
        {
            "model": "claude-sonnet-4-5",
            "system": [
                {"type": "text", "text": "You roll dice.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "Be fair."},
            ],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Roll!"}]}],
            "tools": [CLAUDE_TOOL],
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stream": True,
        },
        "You roll dice.\n\nBe fair.",
        [CLAUDE_TOOL],
    ),
    "Anthropic, plain system": ({"system": "You roll dice.", "messages": []}, "You roll dice.", None),
    "no system message": ({"messages": [{"role": "user", "content": "Roll!"}], "tools": [TOOL]}, None, [TOOL]),
}


@pytest.fixture
def traced_database(letta_database: str) -> str:
    """The sample with an empty ``provider_traces`` as Letta 0.16.8 has it."""
    do(letta_database, create_statement("0.16.8", "provider_traces"))
    return letta_database


def first_steps(url: str) -> list[tuple[str, str, str]]:
    """Of runs with two steps or more: run, first step, second step."""
    return ask(
        url,
        "SELECT run_id, ids[1], ids[2] FROM (SELECT s.run_id, array_agg(s.id ORDER BY s.created_at, s.id) AS ids"
        " FROM steps s JOIN runs r ON r.id = s.run_id WHERE r.completed_at IS NOT NULL GROUP BY 1) of_run"
        " WHERE array_length(ids, 1) > 1 ORDER BY 1",
    )


def trace(url: str, step_id: str, request: Any, call_type: str | None = "agent_step", at: str = "2026-11-20") -> None:
    quoted = json.dumps(request).replace("'", "''")
    kind = "NULL" if call_type is None else f"'{call_type}'"
    do(
        url,
        "INSERT INTO provider_traces (id, step_id, request_json, response_json, call_type, created_at)"
        f" VALUES (gen_random_uuid()::text, '{step_id}', '{quoted}', '{{}}', {kind}, '{at}')",
    )


def prompt(row: Row) -> tuple[str | None, str]:
    return row["context"]["system_prompt"], row["context"]["source"]


@pytest.mark.parametrize("form", FORMS)
def test_context_is_found_in_every_known_request_form(form: str) -> None:
    request, system_prompt, tools = FORMS[form]
    context = context_from_request(json.dumps(request))
    assert context is not None
    assert (context.system_prompt, context.source) == (system_prompt, "provider_trace")
    assert (json.loads(context.tools) if context.tools else None) == tools


@pytest.mark.parametrize(
    "request_json",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "1e999",
        "{}",
        '{"messages": null, "tools": {"a": 1}}',
        '{"messages": [], "input": {}}',
        '{"messages": ["text"], "system": 5}',
        '{"messages": [{"role": "system"}], "system": [{"type": "image"}, 3]}',
        '{"contents": [{"role": "user", "parts": [{"text": "Gemini"}]}], "config": {}}',
        '{"system": ' + "[" * 100_000,
        '{"tools": [' + "[" * 900 + "]" * 900 + '], "big": ' + "9" * 5000 + "}",
    ],
)
def test_context_of_an_unknown_request_is_null(request_json: str) -> None:
    assert context_from_request(request_json) is None


def test_context_text_is_escaped_visibly() -> None:
    context = context_from_request('{"system": "a\\u0000b\\ud83dc", "tools": [{"name": "\\ud83d"}]}')
    assert context == Context("a\\u0000b\\ud83dc", '[{"name": "\\ud83d"}]', "provider_trace")


def test_context_of_a_traced_run_is_the_first_steps_request(traced_database: str) -> None:
    steps = first_steps(traced_database)
    for (_, step_id, _), (request, _, _) in zip(steps, FORMS.values(), strict=False):
        trace(traced_database, step_id, request)
    runs = all_runs(traced_database)
    for (run_id, _, _), (_, system_prompt, tools) in zip(steps, FORMS.values(), strict=False):
        assert prompt(runs[run_id]) == (system_prompt, "provider_trace")
        tools_json = runs[run_id]["context"]["tools"]
        assert (json.loads(tools_json) if tools_json else None) == tools
    untraced = runs.keys() - {run_id for run_id, _, _ in steps[: len(FORMS)]}
    assert {runs[run_id]["context"]["source"] for run_id in untraced if runs[run_id]["context"]} == {"at_capture"}


def test_context_of_several_traces_is_the_agents_earliest(traced_database: str) -> None:
    run_id, step_id, second_step = first_steps(traced_database)[0]
    trace(traced_database, step_id, {"system": "Summarise!"}, "summarization", at="2026-11-18")
    trace(traced_database, step_id, {"system": "after compaction"}, at="2026-11-20")
    trace(traced_database, step_id, {"system": "as first sent"}, at="2026-11-19")
    trace(traced_database, second_step, {"system": "second step"}, at="2026-11-17")
    assert prompt(all_runs(traced_database)[run_id]) == ("as first sent", "provider_trace")


@pytest.mark.parametrize("call_type", ["summarization", None])
def test_context_ignores_a_summarization_call(traced_database: str, call_type: str | None) -> None:
    run_id, step_id, _ = first_steps(traced_database)[0]
    trace(traced_database, step_id, {"system": "from the trace"}, call_type)
    expected = "at_capture" if call_type else "provider_trace"
    assert all_runs(traced_database)[run_id]["context"]["source"] == expected


def test_traces_without_a_call_type_are_read(letta_database: str) -> None:
    do(letta_database, create_statement("0.16.1", "provider_traces"))
    run_id, step_id, _ = first_steps(letta_database)[0]
    do(
        letta_database,
        "INSERT INTO provider_traces (id, step_id, request_json)"
        f" VALUES ('t', '{step_id}', '{{\"system\": \"from an old server\"}}')",
    )
    assert prompt(all_runs(letta_database)[run_id]) == ("from an old server", "provider_trace")


@pytest.mark.parametrize("stored", ["json", "text"])
def test_context_of_a_broken_trace_is_the_one_at_capture(traced_database: str, stored: str) -> None:
    run_id, step_id, _ = first_steps(traced_database)[0]
    do(
        traced_database,
        f"ALTER TABLE provider_traces ALTER request_json TYPE {stored}",
        "INSERT INTO provider_traces (id, step_id, request_json, call_type)"
        f" VALUES ('t', '{step_id}', '{'{' if stored == 'text' else '[1]'}', 'agent_step')",
    )
    assert all_runs(traced_database)[run_id]["context"]["source"] == "at_capture"


@pytest.mark.parametrize("odd", ["\\ud83d", "\\u0000", "' OR true --", "\\\\"])
def test_message_id_that_no_query_can_hold_fails_no_run(letta_database: str, odd: str) -> None:
    do(letta_database, f"""UPDATE agents SET message_ids = $odd$["{odd}"]$odd$, system = 'as configured'""")
    assert {prompt(run) for run in all_runs(letta_database).values()} == {("as configured", "at_capture")}


def test_large_traces_are_read_in_portions(traced_database: str) -> None:
    do(
        traced_database,
        "INSERT INTO provider_traces (id, step_id, request_json, call_type) SELECT 'trace-' || id, id,"
        """ json_build_object('system', 'Prompt of ' || run_id, 'messages', repeat('x', 100000)), 'agent_step'"""
        " FROM steps",
    )
    for run_id, run in all_runs(traced_database).items():
        if run["steps"]:
            assert prompt(run) == (f"Prompt of {run_id}", "provider_trace")


def test_context_at_capture_prefers_the_system_message(letta_database: str) -> None:
    agents = [row[0] for row in ask(letta_database, "SELECT DISTINCT agent_id FROM runs ORDER BY 1 LIMIT 4")]
    with_message, without, broken, gone = agents
    do(
        letta_database,
        "UPDATE agents SET system = 'as configured', message_ids = '[]'",
        "INSERT INTO messages (id, agent_id, organization_id, role, content, tool_calls)"
        " SELECT 'message-system', id, organization_id, 'system',"
        """ '[{"type": "text", "text": "compiled, with memory"}]', '[]' FROM agents"""
        f" WHERE id = '{with_message}'",
        f"""UPDATE agents SET message_ids = '["message-system", "message-2"]' WHERE id = '{with_message}'""",
        f"""UPDATE agents SET message_ids = '{{"not": "a list"}}' WHERE id = '{broken}'""",
        f"""UPDATE agents SET message_ids = '["message-gone"]', system = NULL WHERE id = '{gone}'""",
    )
    found = {run["run"]["agent_id"]: run["context"] for run in all_runs(letta_database).values()}
    assert found[with_message]["system_prompt"] == "compiled, with memory"
    assert found[without]["system_prompt"] == found[broken]["system_prompt"] == "as configured"
    assert found[gone] is None
    assert {each["source"] for each in found.values() if each} == {"at_capture"}


def test_context_ignores_a_first_message_of_another_role(letta_database: str) -> None:
    message_id, agent_id = ask(
        letta_database, "SELECT id, agent_id FROM messages WHERE role = 'user' AND run_id IS NOT NULL"
    )[0]
    do(
        letta_database,
        f"""UPDATE agents SET system = 'as configured', message_ids = '["{message_id}"]' WHERE id = '{agent_id}'""",
    )
    (tools_json,) = {
        run["context"]["system_prompt"]
        for run in all_runs(letta_database).values()
        if run["run"]["agent_id"] == agent_id
    }
    assert tools_json == "as configured"


def test_tools_at_capture_are_the_agents_byte_for_byte(letta_database: str) -> None:
    one, other = (row[0] for row in ask(letta_database, "SELECT DISTINCT agent_id FROM runs ORDER BY 1 LIMIT 2"))
    do(
        letta_database,
        create_statement("0.16.8", "tools"),
        create_statement("0.16.8", "tools_agents"),
        """INSERT INTO tools (id, json_schema) VALUES ('tool-2', '{"name":  "b", "n": 1.0, "s": "\\ud83d"}'),"""
        """ ('tool-1', '{"name": "a"}'), ('tool-3', NULL), ('tool-4', 'null')""",
        f"INSERT INTO tools_agents (agent_id, tool_id) VALUES ('{one}', 'tool-2'), ('{one}', 'tool-1'),"
        f" ('{one}', 'tool-3'), ('{one}', 'tool-4'), ('{one}', 'tool-gone'), ('{other}', 'tool-3')",
    )
    found = {run["run"]["agent_id"]: run["context"]["tools"] for run in all_runs(letta_database).values()}
    assert found[one] == '[{"name": "a"},{"name":  "b", "n": 1.0, "s": "\\ud83d"}]'
    assert found[other] is None


def test_context_from_content_of_any_shape_is_readable() -> None:
    for content in ("", "{", "null", "5", '{"a": 1}', "[" * 100_000, '[{"type": "text"}]'):
        assert context_at_capture(content, None, []) is None
        assert context_at_capture(content, "system", []) == Context("system", None, "at_capture")
