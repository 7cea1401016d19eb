"""Runs of any shape that a Letta database can hold, and some that it should not: for Hypothesis.

`raw_runs()` gives rows of `terminal_runs` that can be converted; what cannot is made by hand, or by the fuzzer.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from trajectory_pipeline_tests.conversion.raw_runs import (
    AGENTS_ROW,
    MESSAGES_ROW,
    METRICS_ROW,
    NOON,
    RUNS_ROW,
    STEPS_ROW,
    STOP_REASONS,
    Raw,
)

ODD_TEXT = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud83d",
    "\udc00 low",
    "\\u0000",
    "\\ud83d",
    "שלום עולם",
    "e\u0301\u0323 a\u0308",
    "👩‍👩‍👧",
    "\u2028\u0085",
    '"quoted" \\ back\\slash',
    "x" * 3000,
    '{"type": "heartbeat", "reason": "Function call failed"}',
    '{"type": "system_alert", "message": "…"}',
    ' {"type":"login","last_login":"never"}',
    '{"type": "user_message"}',
    '{"type": "heartbeat"',
    "[Incoming message from agent with ID 'agent-2'] hello",
    "<system-reminder>\nYou are a sleeptime agent.",
]
texts = st.sampled_from(ODD_TEXT) | st.text(max_size=12)
clean_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ids = st.sampled_from(["", "call-1", "call-2", "call-3", "CALL-1", "'; --", "a.b[0]", "é", "call-1 "])
AS_WRITTEN = "as written: "
"""A string that begins so is replaced in JSON text by the number after it: Python would write it in another way."""
odd_numbers = st.sampled_from(
    ["1e-9999", "-0", "0e5", "1E5", "1.10", "1e400", "-1.5e-400", "0.1234567890123456789012345", "9" * 4300]
).map(AS_WRITTEN.__add__)
numbers = st.one_of(
    odd_numbers,
    st.integers(-3, 3),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53 + 1, 2**63, 2**64, 1e16, 1.0, -0.0, 5e-324]),
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
objects = st.dictionaries(texts, values, max_size=3)


def parts(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Raw]:
    """Objects of a known form; now and then a field is missing, odd or one too many."""
    usual = st.fixed_dictionaries(fields)
    partial = st.fixed_dictionaries({}, optional=fields)
    odd = st.fixed_dictionaries({}, optional=dict.fromkeys(fields, values))
    more = st.tuples(usual, objects).map(lambda pair: {**pair[0], **pair[1]})
    return st.one_of(usual, usual, usual, partial, odd, more)


signatures = st.none() | texts
images = st.sampled_from(["iVBORw0KGgo=", "AAAA", "", "not base64!", "AAA"])
image = parts(type=st.just("image"), source=parts(data=images))
nested_images = st.fixed_dictionaries({"page": st.lists(image, max_size=2) | image})
content_parts = st.one_of(
    parts(type=st.just("text"), text=texts, signature=signatures),
    parts(type=st.just("reasoning"), is_native=st.booleans(), reasoning=texts, signature=signatures),
    parts(
        type=st.just("summarized_reasoning"),
        id=ids,
        summary=st.lists(parts(index=st.integers(0, 9), text=texts), max_size=3),
        encrypted_content=signatures,
    ),
    parts(type=st.just("redacted_reasoning"), data=texts),
    parts(type=st.just("omitted_reasoning"), signature=signatures),
    parts(
        type=st.just("image"),
        source=parts(type=st.just("letta"), file_id=ids, media_type=st.just("image/png"), data=images)
        | parts(type=st.just("url"), url=texts),
    ),
    parts(type=st.just("tool_call"), id=ids, name=texts, input=objects | nested_images),
    parts(
        type=st.just("tool_return"),
        tool_call_id=ids,
        is_error=st.booleans(),
        content=texts | st.lists(image, max_size=2),
    ),
    parts(type=st.just("refusal"), refusal=texts),
    parts(type=st.just("hologram"), beam=values),
    objects,
)

tool_names = st.sampled_from(["roll_dice", "send_message", "answer", "search_memory", "שלום"])
arguments = st.one_of(
    st.sampled_from(
        [
            "{}",
            '{"a": 1, "b": 2}',
            '{"b":2,"a":1}',
            '{"a": 1.0, "b": 2}',
            '{"message": "Hello", "request_heartbeat": true}',
            '{"message": ""}',
            '{"message": 5}',
            '{"message": "\\u0000\\ud83d"}',
            '{"text": "the answer"}',
            '{"expression": "1 + ',
            "",
            "null",
            "[1]",
            '{"a": true}',
        ]
    ),
    objects.map(json.dumps),
    texts,
    nested_images,
    objects,
)
tool_calls = parts(id=ids, function=parts(arguments=arguments, name=tool_names), type=st.just("function"))
statuses = st.sampled_from(["success", "error"])
lines = st.none() | st.lists(texts, max_size=2)
tool_returns = parts(
    tool_call_id=ids,
    status=statuses,
    stdout=lines,
    stderr=lines,
    func_response=texts | st.none() | st.lists(content_parts, max_size=2),
)
approvals = st.one_of(
    parts(type=st.just("approval"), tool_call_id=ids, approve=st.booleans(), reason=st.none() | texts),
    parts(tool_call_id=ids, status=statuses, stdout=lines, stderr=lines, func_response=texts),
    parts(type=st.just("approval"), tool_call_id=ids, approve=st.just(True), reason=nested_images),
)


def without_loss(text: str) -> bool:
    """Whether Postgres can hold the text in a column that is no JSON."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


@st.composite
def json_text(draw: st.DrawFn, of: st.SearchStrategy[Any]) -> str:
    """JSON text as any writer may write it: blanks, escapes or not, keys twice."""
    value = draw(of)
    separators = draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", "\n: ")]))
    ascii_only = draw(st.booleans())
    written = json.dumps(value, ensure_ascii=ascii_only, separators=separators)
    if not without_loss(written):
        written = json.dumps(value, separators=separators)
    written = re.sub(rf'"{AS_WRITTEN}([^"\\]*)"(?!:)', r"\1", written)
    if draw(st.integers(0, 9)) == 0:
        written = re.sub(r'^(\[?\s*\{\s*)"', r'\1"type": "twice", "x": 0, "', written)
    if draw(st.integers(0, 9)) == 0:
        written = f" \r\n{written}\t"
    return written


def array_of(item: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[str | None]:
    """A JSON column that holds an array: also SQL NULL, JSON null, and the column of an older Letta that lacks it."""
    filled = json_text(st.lists(item, max_size=most))
    return st.one_of(filled, filled, filled, st.just("[]"), st.sampled_from([None, "null"]))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


times = st.integers(-5, 60).map(lambda seconds: NOON + timedelta(seconds=seconds))
odd_times = st.sampled_from([None, NOON, datetime(1970, 1, 1, tzinfo=UTC), NOON + timedelta(microseconds=1)])
columns = clean_texts | st.sampled_from(["é", "name with 'quotes'", "a" * 300])
counts = st.sampled_from([0, 0, 1, 7, 100, 5000, 2**31 - 1, -1, -5000])

stop_reasons = st.sampled_from(STOP_REASONS)
error_texts = st.sampled_from(
    [
        "CONFLICT: Cannot send a new message",
        "Invalid tool call IDs. Expected '[]'",
        "Message content is empty or invalid",
        "CONTEXT_WINDOW_EXCEEDED: Bad request",
        "PAYMENT_REQUIRED: Insufficient credits",
        "RATE_LIMIT_EXCEEDED: slow down",
        "something else",
        "",
    ]
)
errors = st.one_of(
    error_texts,
    parts(
        message_type=st.just("error_message"),
        seq_id=st.none(),
        error_type=st.sampled_from(["llm_error", "internal_error"]),
        message=error_texts,
        detail=maybe(error_texts),
        run_id=st.just("run-1"),
    ),
    values,
)
metadata = st.one_of(
    st.sampled_from([None, "null", "{}"]),
    json_text(st.fixed_dictionaries({}, optional={"run_type": texts | values, "error": errors, "errors": texts})),
)
error_types = st.sampled_from(
    [
        "LLMError",
        "LLMServerError",
        "LLMEmptyResponseError",
        "LLMInsufficientCreditsError",
        "ContextWindowExceededError",
        "InternalServerError",
        "Unknown",
        "",
    ]
)
details = st.one_of(
    st.sampled_from([None, "null", "{}"]),
    json_text(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ["cached_tokens", "cache_read_tokens", "cache_creation_tokens", "reasoning_tokens", "audio_tokens"],
                st.integers(-3, 4000) | st.none() | st.just(1.5) | st.just("many") | st.just(True) | odd_numbers,
            ),
        )
        | values
    ),
)


@st.composite
def steps(draw: st.DrawFn, step_id: str, run_id: str | None) -> Raw:
    return {
        **STEPS_ROW,
        "id": step_id,
        "run_id": run_id,
        "created_at": draw(times | odd_times),
        "model": draw(st.sampled_from([None, "gpt-4o-mini", "claude-haiku-4-5", "a-model-of-tomorrow"])),
        "model_handle": draw(maybe(columns)),
        "provider_name": draw(st.sampled_from([None, "openai", "anthropic", "my-own"])),
        "model_endpoint": draw(maybe(columns)),
        "context_window_limit": draw(st.sampled_from([None, 0, 1000, 128000])),
        "prompt_tokens": draw(counts),
        "completion_tokens": draw(counts),
        "total_tokens": draw(counts),
        "cached_input_tokens": draw(maybe(counts)),
        "cache_write_tokens": draw(maybe(counts)),
        "reasoning_tokens": draw(maybe(counts)),
        "prompt_tokens_details": draw(details),
        "completion_tokens_details": draw(details),
        "stop_reason": draw(stop_reasons),
        "status": draw(st.sampled_from([None, "PENDING", "SUCCESS", "FAILED", "CANCELLED"])),
        "error_type": draw(maybe(error_types)),
        "error_data": draw(
            st.sampled_from([None, "null"])
            | json_text(parts(message=error_texts | texts, traceback=texts, details=values) | values)
        ),
        "feedback": draw(st.sampled_from([None, None, "positive", "negative"])),
        "tags": draw(st.sampled_from([None, "null", "[]"]) | json_text(st.lists(texts, max_size=2))),
    }


@st.composite
def messages(draw: st.DrawFn, number: int, step_ids: list[str]) -> Raw:
    role = draw(st.sampled_from(["user", "assistant", "assistant", "tool", "approval", "system", "summary", "oracle"]))
    approve = draw(st.sampled_from([None, None, None, True, False])) if role == "approval" else None
    return {
        **MESSAGES_ROW,
        "id": f"message-{number}{draw(st.sampled_from(['', '', ' ü[0].é', chr(39)]))}",
        "run_id": "run-1",
        "step_id": draw(st.none() | st.sampled_from([*step_ids, "step-gone"])),
        "created_at": draw(times | odd_times),
        "conversation_id": draw(st.sampled_from([None, None, "conv-1", "conv-2"])),
        "role": role,
        "text": draw(maybe(clean_texts)),
        "content": draw(array_of(content_parts)),
        "tool_calls": draw(array_of(tool_calls)),
        "tool_call_id": draw(maybe(columns)),
        "tool_returns": draw(array_of(tool_returns)),
        "approvals": draw(array_of(approvals)),
        "approval_request_id": draw(maybe(columns)),
        "approve": approve,
        "denial_reason": draw(maybe(columns)),
        "name": draw(maybe(columns)),
        "model": draw(maybe(columns)),
        "sender_id": draw(maybe(columns)),
        "is_deleted": draw(st.sampled_from([None, False, False, True])),
    }


@st.composite
def raw_runs(draw: st.DrawFn, most_messages: int = 6) -> Raw:
    """One terminal run with its rows, as the reader returns it: rows ordered, sequence ids unique."""
    own_ids = [f"step-{number}" for number in range(draw(st.integers(0, 3)))]
    foreign_ids = draw(st.sampled_from([[], [], ["step-a"], ["step-a", "step-b"]]))
    sequence_ids = draw(
        st.lists(st.integers(0, 50) | st.just(2**53 + 1), unique=True, max_size=most_messages).map(sorted)
    )
    rows = [
        {**draw(messages(number, own_ids + foreign_ids)), "sequence_id": sequence_id}
        for number, sequence_id in enumerate(sequence_ids)
    ]
    named = {row["step_id"] for row in rows}
    measured = maybe(st.integers(0, 2**40))
    ended = draw(maybe(times))
    return {
        "run_id": "run-1",
        "run": {
            **RUNS_ROW,
            "id": "run-1",
            "status": draw(st.sampled_from(["completed", "completed", "failed", "cancelled"])),
            "stop_reason": draw(stop_reasons),
            "completed_at": ended and ended.replace(tzinfo=None),
            "created_at": draw(times | odd_times.filter(bool)),
            "background": draw(maybe(st.booleans())),
            "metadata_": draw(metadata),
            "request_config": draw(
                st.sampled_from(
                    [
                        None,
                        "null",
                        "{}",
                        '{"assistant_message_tool_name": "answer", "assistant_message_tool_kwarg": "text"}',
                        '{"assistant_message_tool_name": "\\u0000"}',
                    ]
                )
            ),
            "agent_id": "agent-1",
            "conversation_id": draw(st.sampled_from([None, None, "conv-1"])),
            "organization_id": draw(maybe(columns)),
            "project_id": draw(maybe(columns)),
            "ttft_ns": draw(measured),
            "total_duration_ns": draw(measured),
        },
        "run_metrics": draw(maybe(measured.map(lambda ns: {**METRICS_ROW["run"], "id": "run-1", "run_ns": ns}))),
        "steps": [draw(steps(step_id, "run-1")) for step_id in own_ids],
        "foreign_steps": [
            draw(steps(step_id, draw(st.sampled_from([None, "run-0", "run-2"]))))
            for step_id in foreign_ids
            if step_id in named
        ],
        "asked_calls": [
            {"step_id": step_id, "id": draw(maybe(ids)), "name": draw(maybe(columns))}
            for step_id in foreign_ids
            if step_id in named and draw(st.booleans())
        ],
        "step_metrics": [
            {
                **METRICS_ROW["step"],
                "id": step_id,
                "step_ns": draw(measured),
                "llm_request_ns": draw(measured),
                "tool_execution_ns": draw(measured),
            }
            for step_id in own_ids
            if draw(st.booleans())
        ],
        "messages": rows,
        "agent": draw(
            st.none()
            | st.sampled_from([None, "letta_v1_agent", "memgpt_agent", "memgpt_v2_agent", "sleeptime_agent"]).map(
                lambda kind: {**AGENTS_ROW, "id": "agent-1", "name": "Ada", "agent_type": kind}
            )
        ),
        "agent_tags": draw(st.lists(clean_texts, max_size=2, unique=True).map(sorted)),
        "context": draw(st.none() | st.just({"system_prompt": "Be kind.", "tools": None, "source": "at_capture"})),
        "deleted_at": draw(st.sampled_from([None, NOON])),
        "schema_version": "1",
    }
