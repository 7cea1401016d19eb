"""Usage in every shape that providers send: what is counted is never below what any reading of it bills.

A usage that is not told is none, so that the call counts at its reservation.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.client.usage import read_billed_usd, read_usage

RESERVED_PROMPT, RESERVED_OUTPUT = 5_000, 800
INPUT_USD, OUTPUT_USD = Decimal(1), Decimal(4)


def read(usage: Any, *, has_text: bool = True) -> CallUsage | None:
    return read_usage(usage, RESERVED_PROMPT, RESERVED_OUTPUT, has_text=has_text)


def openai_usage(prompt: int, output: int, total: int | None, reasoning: int | None = None) -> dict[str, Any]:
    told = {"prompt_tokens": prompt, "completion_tokens": output}
    if total is not None:
        told["total_tokens"] = total
    return {**told, "completion_tokens_details": {"reasoning_tokens": reasoning}}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # Reasoning inside the completion (OpenAI), and beside it (xAI, Gemini).
        (openai_usage(500, 500, 1000, 200), CallUsage(500, None, 500)),
        (openai_usage(12, 1, 399, 386), CallUsage(12, None, 387)),
        (openai_usage(21, 0, 81, 60), CallUsage(21, None, 60)),
        (openai_usage(21, 5, 86, None), CallUsage(21, None, 65)),
        # Without a total, or with one that adds up in no way: the most.
        (openai_usage(100, 50, None, 40), CallUsage(100, None, 90)),
        (openai_usage(100, 50, 120, 40), CallUsage(100, None, 90)),
        (openai_usage(100, 50, 150, 90), CallUsage(100, None, 140)),
        # A count that only the total tells.
        ({"prompt_tokens": 100, "total_tokens": 180}, CallUsage(100, None, 80)),
        ({"completion_tokens": 30, "total_tokens": 180}, CallUsage(150, None, 30)),
        # Anthropic: cached tokens beside the input. LiteLLM repeats them, and has them in the prompt.
        (
            {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 3},
            CallUsage(103, None, 5, 3),
        ),
        (
            {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cache_read_input_tokens": 90},
            CallUsage(100, None, 5),
        ),
        (
            {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
            | {"prompt_tokens_details": {"cached_tokens": 90, "cache_write_tokens": 60}},
            CallUsage(100, 90, 5, 10),
        ),
        # DeepSeek, Gemini's own names, Ollama's own names.
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 5,
                "total_tokens": 105,
                "prompt_cache_hit_tokens": 64,
                "prompt_cache_miss_tokens": 36,
            },
            CallUsage(100, 64, 5),
        ),
        (
            {"promptTokenCount": 21, "candidatesTokenCount": 4, "thoughtsTokenCount": 60, "totalTokenCount": 85},
            CallUsage(21, None, 64),
        ),
        ({"prompt_eval_count": 26, "eval_count": 290}, CallUsage(26, None, 290)),
        # watsonx, Bedrock's own names, gateways that speak of requests; results of tools beside the prompt.
        ({"input_token_count": 26, "generated_token_count": 900}, CallUsage(26, None, 900)),
        ({"inputTokenCount": 26, "outputTokenCount": 900}, CallUsage(26, None, 900)),
        ({"request_tokens": 26, "response_tokens": 900}, CallUsage(26, None, 900)),
        (
            {"prompt_tokens": 100, "completion_tokens": 5, "tool_use_prompt_tokens": 3_000},
            CallUsage(3_100, None, 5),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}},
            CallUsage(10, 0, 5),
        ),
    ],
)
def test_read_usage_of_a_known_family_gives_its_counts(usage: dict[str, Any], expected: CallUsage) -> None:
    assert read(usage) == expected


@pytest.mark.parametrize(
    "usage",
    [
        {},
        None,
        [],
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 0, "completion_tokens": 50},
        {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
        {"prompt_tokens": None, "completion_tokens": None},
        {"total_tokens": 90},
    ],
)
def test_read_usage_that_is_not_told_is_none(usage: Any) -> None:
    assert read(usage) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"completion_tokens": 50_000}, CallUsage(RESERVED_PROMPT, None, 50_000)),
        ({"prompt_tokens": "20000", "completion_tokens": "5"}, CallUsage(20_000, None, RESERVED_OUTPUT)),
        ({"total_tokens": 9_000.5}, CallUsage(RESERVED_PROMPT, None, 9_001)),
    ],
)
def test_read_usage_in_part_counts_where_it_exceeds_the_reservation(usage: dict[str, Any], expected: CallUsage) -> None:
    assert read(usage) == expected


@pytest.mark.parametrize(
    ("usage", "billed"),
    [
        ({"cost": 0.25, "is_byok": False}, Decimal("0.25")),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, Decimal("0.21")),
        ({"cost_in_usd_ticks": 232856000}, Decimal("0.0232856")),
        ({"cost": {"total_cost": "0.5", "input_tokens_cost": 0.1}}, Decimal("0.5")),
        ({"cost": 0}, None),
        ({"cost": -1}, None),
        ({"cost": "NaN"}, None),
        ({"cost": 10**12}, None),
        ({"prompt_tokens": 3}, None),
        ("0.3", None),
    ],
)
def test_read_billed_usd_gives_what_the_provider_bills(usage: Any, billed: Decimal | None) -> None:
    assert read_billed_usd(usage) == billed


COUNTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 20_000),
    st.integers(0, 200).map(str),
    st.floats(-10, 20_000, allow_nan=False),
    st.sampled_from(["", "many", [], {}]),
)
DETAILS = st.one_of(COUNTS, st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens"]), COUNTS))
USAGES = st.dictionaries(
    st.sampled_from(
        [
            *("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens", "prompt_tokens_details"),
            *("completion_tokens_details", "cache_read_input_tokens", "cache_creation_input_tokens"),
        ]
    ),
    DETAILS,
)


@given(USAGES, st.booleans())
def test_account_is_never_below_any_reading_of_the_bill(usage: dict[str, Any], has_text: bool) -> None:
    known = read(usage, has_text=has_text) or CallUsage(RESERVED_PROMPT, None, RESERVED_OUTPUT)
    cached = known.cached_input_tokens or 0
    assert 0 <= cached <= known.input_tokens
    account = known.input_tokens * INPUT_USD + known.output_tokens * OUTPUT_USD
    for prompt, output in readings(usage):
        assert account >= prompt * INPUT_USD + output * OUTPUT_USD


def readings(usage: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """What a provider may bill: each way to count its own numbers that its own total does not contradict."""

    def number(name: str, details: str = "") -> int:
        value = usage.get(details, {}) if details else usage
        value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

    prompt, output, total = number("prompt_tokens"), number("completion_tokens"), number("total_tokens")
    reasoning = max(number("reasoning_tokens"), number("reasoning_tokens", "completion_tokens_details"))
    apart = number("cache_read_input_tokens") + number("cache_creation_input_tokens")
    yield prompt, output
    if prompt:
        yield prompt, total - prompt
    if total != prompt + output:
        yield prompt, output + reasoning
        yield prompt + apart, output
