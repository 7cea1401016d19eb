"""Runs made by hand for golden documents: shapes that a source may hold and the sample does not."""

from datetime import timedelta
from typing import Any

from trajectory_pipeline_tests.conversion.raw_runs import (
    NOON,
    Raw,
    agent,
    call,
    message,
    raw_run,
    returned,
    step,
    step_metrics,
)


def made_runs() -> tuple[Raw, ...]:
    """The runs, ordered by run id."""
    runs = {
        "run-made-beyond-jsonb": _beyond_jsonb(),
        "run-made-coded-error": _coded_error(),
        "run-made-escapes": _escapes(),
        "run-made-odd-entries": _odd_entries(),
        "run-made-odd-error": _odd_error(),
        "run-made-older-letta": _older_letta(),
        "run-made-order": _order(),
        "run-made-repetition": _repetition(),
        "run-made-unknown-ending": _unknown_ending(),
        "run-made-usage": _usage(),
    }
    return tuple(renamed(raw, run_id) for run_id, raw in sorted(runs.items()))


def renamed(raw: Raw, run_id: str) -> Raw:
    """Return a run under another id."""
    rows = {name: [{**row, "run_id": run_id} for row in raw[name]] for name in ("steps", "messages")}
    return {**raw, **rows, "run_id": run_id, "run": {**raw["run"], "id": run_id}}


def _beyond_jsonb() -> Raw:
    return raw_run(message(1, content='[{"type": "odd", "n": 1e200000}]'), message(2, reply="Hi"))


def _coded_error() -> Raw:
    return raw_run(status="failed", stop_reason=None, metadata_={"error": "RATE_LIMIT_EXCEEDED: slow down"})


def _escapes() -> Raw:
    """NUL and lone surrogates wherever a source can hold them."""
    return raw_run(
        message(1, "user", content='[{"type": "text", "text": "half \\ud83d", "signature": null}]'),
        message(
            2,
            content='[{"type": "odd", "ke\\u0000y": ["\\u0000", 1]}]',
            tool_calls=[call("send_message", '{"message": "\\u0000 and \\ud83d"}'), call("a\0b", "\0")],
        ),
        message(3, "tool", tool_returns=[returned(text="\0", stdout=["\ud83d"])]),
        message(4, "approval", approvals=[{"type": "approval", "tool_call_id": "\0", "approve": True, "reason": "\0"}]),
        steps=[step(error_type="LLMError", error_data='{"message": "\\u0000"}', tags='["\\u0000"]', status="FAILED")],
        metadata_='{"run_type": "\\u0000", "error": {"message": "\\ud83d", "\\u0000": 1}, "other": "\\u0000"}',
        status="failed",
    )


def _odd_entries() -> Raw:
    """Parts, calls, returns and decisions of other forms than Letta 0.16.8 writes."""
    image = {"type": "image", "source": {"type": "letta", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    broken = {"type": "image", "source": {"media_type": 5, "data": "not base64!"}}
    numbers = '[{"type": "text", "text": "a", "text": "b"}, {"n": [1.10, 1e400, 123456789012345678901234567890, -0.0]}]'
    return raw_run(
        message(1, "user", content=[{"signature": None, "text": "Hi", "type": "text"}, image, broken, {"type": 5}]),
        message(2, content=numbers),
        message(
            3,
            content=[{"type": "reasoning", "reasoning": 5}, {"type": "summarized_reasoning", "summary": [{"text": 1}]}],
            tool_calls=[call("f", {"a": 1}), {"id": 7, "function": None}, {"function": {"name": None}}, {}],
        ),
        message(4, content=[{"type": "refusal", "refusal": "No."}, {"type": "hologram", "beam": [[[]]]}]),
        message(
            5,
            "tool",
            tool_returns=[
                returned(text=[image]),
                returned(text=None, stdout=["a", None]),
                {**returned("error"), "text": "odd", "denied": True},
                {"status": 5},
            ],
        ),
        message(6, "approval", approvals=[{"approve": "yes"}, returned(stdout=["ran at the client"]), {}]),
        message(7, content="null", tool_calls=None, tool_returns="null", approvals=" [ ] ", is_deleted=None),
        message(8, "oracle", "An unknown role", name="Ada", sender_id="agent-2"),
    )


def _odd_error() -> Raw:
    return raw_run(
        steps=[step(error_data='{"message": "500", "traceback": 1.10}', status="FAILED")],
        metadata_='{"error": {"error_type": "llm_error", "message": 5, "code": 1.10}}',
        stop_reason="error",
        deleted_at=NOON + timedelta(days=1),
    )


def _older_letta() -> Raw:
    """Letta before 0.14: text and decisions in columns of their own, the reply an argument of a call."""
    return raw_run(
        message(1, "user", content=None, text="May I?", tool_calls=None, tool_returns=None, approvals=None),
        message(2, reply="She may.", tool_calls=[call("send_message", '{"message": "You may."}')]),
        message(3, "approval", approvals=None, approve=False, approval_request_id="message-2", denial_reason="No."),
        message(4, "tool", tool_returns=[returned("error", "call-9", "denied")]),
        message(5, "user", '{"type": "login", "last_login": "never"}'),
        agent=agent("memgpt_agent"),
        agent_tags=["a", "b"],
        request_config='{"assistant_message_tool_name": "", "assistant_message_tool_kwarg": 5}',
        completed_at=None,
        stop_reason="tool_rule",
    )


def _order() -> Raw:
    """Steps of one time or of none, steps that are gone, of another run or of no run, and messages without a step."""
    steps = {1: None, 2: "step-b", 3: "step-a", 4: "step-gone", 5: None, 6: None, 7: "step-undated", 8: "step-0"}
    messages: list[Raw] = [
        message(n, reply=str(n), step_id=step_id, conversation_id="c") for n, step_id in steps.items()
    ]
    return raw_run(
        *messages,
        message(9, reply="9", step_id="step-b", conversation_id="c"),
        message(10, reply="10", step_id="step-orphan", conversation_id="c"),
        steps=[
            step("step-a", created_at=NOON),
            step("step-b", created_at=NOON),
            step("step-empty", created_at=NOON),
            step("step-undated", created_at=None),
            step("step-undated-empty", created_at=None),
        ],
        foreign_steps=[step("step-0", run_id="run-0", error_type="Unknown"), step("step-orphan", run_id=None)],
        step_metrics=[step_metrics("step-a", step_ns=5, llm_request_ns=3)],
        run_metrics=None,
        total_duration_ns=9,
        agent=None,
    )


def _repetition() -> Raw:
    """Equal calls written differently, a cycle, tool errors with and without recovery, feedback."""
    arguments: list[Any] = ['{"a": 1, "b": 2}', '{"b": 2, "a": 1.0}', {"a": 1e0, "b": 2}, "no json", "no  json", None]
    calls = [call("f", each, f"call-{n}") for n, each in enumerate(arguments)]
    cycle = [call(name, "{}", f"call-{name}-{n}") for n in range(3) for name in "xy"]
    return raw_run(
        message(1, tool_calls=[*calls, *cycle]),
        message(2, "tool", tool_returns=[returned("error"), returned("success"), returned("error", "call-x-0")]),
        message(3, "approval", approvals=[{"type": "approval", "tool_call_id": "call-x-0", "approve": False}]),
        message(4, reply=""),
        steps=[step(feedback="positive"), step("step-2", feedback="negative", prompt_tokens=900)],
    )


def _unknown_ending() -> Raw:
    return raw_run(message(1, reply="Hi"), stop_reason="a reason of tomorrow", background=True, metadata_="null")


def _usage() -> Raw:
    """Counts in columns, in details, in neither; a step whose usage the provider did not report."""
    return raw_run(
        message(1, reply="Hi"),
        steps=[
            step("step-1", cached_input_tokens=1, prompt_tokens_details='{"cached_tokens": 2}'),
            step("step-2", prompt_tokens_details='{"cached_tokens": 1.5, "cache_read_tokens": 3}'),
            step("step-3", prompt_tokens_details='{"cache_creation_tokens": true}', completion_tokens_details='"many"'),
            step("step-4", completion_tokens_details='{"reasoning_tokens": 0}', context_window_limit=0),
            step("step-5", prompt_tokens=0, completion_tokens=None, total_tokens=0, model=None),
        ],
    )
