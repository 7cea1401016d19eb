"""What stands before the transcript: bounded, redacted, the same bytes for runs of one agent, and never evidence."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.judge_trajectory import build_judge_request
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.transcript.context import (
    AgentContext,
    ContextLimits,
    RenderedContext,
    TaskContext,
    render_context,
)
from trajectory_pipeline_tests.judge.documents import ORDER, call, document, message, text, tool_return, turn

LIMITS = ContextLimits(6_000, 2_000, 100_000)
REDACT = Redactor(key=b"a key")
METADATA = "<memory_metadata>\n- System prompt last recompiled: {}\n</memory_metadata>"
PROMPT = "You are Milo.\n\n<memory_blocks>\nNora: no shared bath.\n</memory_blocks>\n\n<rules>\nask first\n</rules>\n\n"
TOOLS = [
    {"type": "function", "function": {"name": "refund", "description": "Pay back. At most 50 EUR.\nSee the rules."}},
    {"name": "lookup", "description": None, "input_schema": {}},
]


def agent(prompt: str = PROMPT, tools: Any = TOOLS, source: str = "provider_trace") -> AgentContext:
    return AgentContext(prompt, json.dumps(tools), source)


def rendered(
    *earlier: dict[str, Any], told: AgentContext | None = None, limits: ContextLimits = LIMITS
) -> RenderedContext:
    return render_context(TaskContext(told, earlier), limits, REDACT)


def earlier_run(name: str, request: str, answer: str, **metadata: Any) -> dict[str, Any]:
    return document(
        f"run-{name}",
        turn(
            "step-1",
            message("message-1", "user", text(request)),
            message("message-2", "assistant", tool_calls=[call("call-1", "lookup", '{"secret": "argument"}')]),
            message("message-3", "tool", tool_returns=[tool_return("call-1", "what the tool returned")]),
            message("message-4", "assistant", text(answer), assistant_text=answer),
        ),
        **{"end_time": "2026-11-24T10:15:00+00:00", **metadata},
    )


# ---- what the agent was told ----------------------------------------------------------------------------------------


def test_told_has_instructions_tools_and_memory_in_this_order() -> None:
    told = rendered(told=agent(PROMPT + METADATA.format("now"))).told
    assert told == (
        "What the agent was told, as sent with the run's first call.\n"
        "Instructions:\n  You are Milo.\n  \n  \n  <rules>\n  ask first\n  </rules>\n\n"
        "Tools that it could call:\n  lookup\n  refund: Pay back.\n\n"
        "Memory:\n  <memory_blocks>\n  Nora: no shared bath.\n  </memory_blocks>\n"
        "  <memory_metadata>\n  - System prompt last recompiled: now\n  </memory_metadata>"
    )


def test_told_at_capture_says_that_it_may_be_later() -> None:
    assert "perhaps later than the run" in rendered(told=agent(source="at_capture")).told.splitlines()[0]


def test_prefix_of_an_agent_is_the_same_until_what_changed() -> None:
    one, other = (rendered(told=agent(PROMPT + METADATA.format(moment))).text for moment in ("8:00", "9:00"))
    assert one != other
    assert one.index("8:00") == other.index("9:00")
    assert one[: one.index("8:00")] == other[: other.index("9:00")]


def test_prompt_begins_with_the_same_bytes_for_runs_of_an_agent() -> None:
    policy = RefinementPolicy("m", redaction_key=b"k")
    chats = []
    for name in ("one", "other"):
        request = build_judge_request([document(name, *ORDER["turns"])], policy, context=TaskContext(agent()))
        chats.append(built_in_prompt().messages(request.rendered.text, context=request.context.text)[1]["content"])
    head = chats[0].index("<<<TRANSCRIPT")
    assert head > 0
    assert chats[0][:head] == chats[1][:head]


def test_marker_depends_on_the_key() -> None:
    texts = [render_context(TaskContext(agent()), LIMITS, Redactor(key=key)).text for key in (b"1", b"2")]
    assert texts[0].splitlines()[0] != texts[1].splitlines()[0]


def test_memory_that_quotes_its_own_end_stays_memory() -> None:
    told = rendered(
        told=agent("Rules.\n<memory_blocks>\na\n</memory_blocks>\nYou may pay.\n</memory_blocks>\nEnd.")
    ).told
    instructions, memory = told.split("Tools that it could call:")
    assert "You may pay." in memory
    assert instructions.endswith("Rules.\n  End.\n\n")


def test_secrets_in_instructions_and_memory_are_redacted() -> None:
    secret = "AKIA" + "Q3EGRLJ7N2XHVD5T"
    prompt = f"Key: {secret}\n<memory_blocks>\naws_key={secret}\n</memory_blocks>"
    shown = rendered(earlier_run("1", f"use {secret}", secret), told=agent(prompt)).text
    assert secret not in shown
    assert shown.count("[secret:api_key:") == 4


def test_nothing_known_has_no_heading() -> None:
    nothing = rendered(told=AgentContext("", "[]", "at_capture"))
    assert (nothing.text, nothing.bodies) == ("", [])
    assert rendered().text == ""
    assert rendered().coverage == {}


def test_limit_of_zero_shows_none_of_it() -> None:
    context = rendered(earlier_run("1", "a", "b"), told=agent(), limits=ContextLimits(0, 0, 100_000))
    assert context.text == ""
    assert context.coverage["earlier_runs"] == {"count": 1, "shown": 0}
    assert context.coverage["instructions"]["shown"] == 0


@given(st.text(max_size=3_000), st.integers(0, 2_000), st.integers(8_000, 20_000), st.integers(0, 5))
def test_context_keeps_within_its_limits(words: str, tokens: int, prompt_tokens: int, runs: int) -> None:
    limits = ContextLimits(tokens, tokens, prompt_tokens)
    prompt = f"{words}\n<memory_blocks>\n{words}\n</memory_blocks>"
    earlier = [earlier_run(str(number), words, words) for number in range(runs)]
    context = rendered(*earlier, told=agent(prompt), limits=limits)
    assert len(context.told.encode("utf-8", "surrogatepass")) <= limits.told_bytes + 300
    assert len(context.earlier.encode("utf-8", "surrogatepass")) <= limits.earlier_bytes
    for part in ("instructions", "memory", "tools"):
        assert 0 <= context.coverage[part]["shown"] <= context.coverage[part]["characters"]


# ---- earlier turns --------------------------------------------------------------------------------------------------


def test_earlier_run_is_shown_as_request_tools_and_answer() -> None:
    assert rendered(earlier_run("1", "The fee?", "4.90 EUR.\nFine?")).earlier == (
        "Earlier runs of the same conversation, shortened.\n\n"
        "Run that ended 2026-11-24 10:15 UTC:\n"
        "  person: The fee?\n  agent called: lookup\n  agent: 4.90 EUR.\n    Fine?"
    )


def test_latest_earlier_runs_are_kept_in_order() -> None:
    runs = [earlier_run(str(n), f"request {n}", "x" * 400) for n in range(8)]
    context = rendered(*runs, limits=ContextLimits(0, 600, 100_000))
    shown = [n for n in range(8) if f"request {n}" in context.earlier]
    assert 0 < len(shown) < 8
    assert shown == list(range(8 - len(shown), 8))
    assert context.coverage["earlier_runs"] == {"count": 8, "shown": len(shown)}
    assert f"[… {8 - len(shown)} earlier ones left out …]" in context.earlier
    assert context.earlier.index(f"request {shown[0]}") < context.earlier.index("request 7")


def test_deleted_message_of_an_earlier_run_is_not_shown() -> None:
    run = earlier_run("1", "gone", "stays")
    run["turns"][0]["messages"][0]["is_deleted"] = True
    assert "gone" not in rendered(run).earlier


# ---- the whole prompt -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [8_000, 12_000])
def test_each_window_has_the_context_and_fits(tokens: int) -> None:
    long = document(
        "run-1", *(turn(f"step-{n}", message(f"m-{n}", "assistant", text("word " * 900))) for n in range(60))
    )
    policy = RefinementPolicy("m", max_prompt_tokens=tokens)
    context = TaskContext(agent("Rule. " * 5_000), [earlier_run("0", "a", "b")])
    request = build_judge_request([long], policy, context=context)
    assert len(request.rendered.windows) > 1
    for window in request.rendered.windows:
        chat = built_in_prompt().messages(window.text, context=request.context.text)
        assert chat[1]["content"].startswith("<<<TOLD ")
        assert len(window.text.encode()) <= request.max_transcript_bytes
    assert request.max_transcript_bytes > 1_000


def test_context_changes_what_was_shown() -> None:
    policy = RefinementPolicy("m")
    contexts = [TaskContext(), TaskContext(agent()), TaskContext(agent(), [earlier_run("1", "a", "b")])]
    requests = [build_judge_request([ORDER], policy, context=context) for context in contexts]
    assert len({request.shown_sha256 for request in requests}) == 3
    assert requests[0].prompt_tokens < requests[1].prompt_tokens < requests[2].prompt_tokens
