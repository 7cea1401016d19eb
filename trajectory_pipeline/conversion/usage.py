"""What a run used: tokens by kind, and their price."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Context, Decimal
from typing import Any, NamedTuple

from trajectory_pipeline.conversion.call_price import price_of_call
from trajectory_pipeline.lossless_json import ConversionError, parse_json

_COST_QUANTUM = Decimal("0.000000001")
MAX_COUNT = 2**63 - 1
"""The largest number that the sinks hold."""


class StepUsage(NamedTuple):
    """Tokens of one step, as Letta stores them; None where a part was not reported.

    The input includes what was read from or written to a cache (for Anthropic Letta adds these), the output includes
    reasoning. ``reported`` is whether the provider reported anything: Letta stores 0 where it did not.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    reported: bool


TOKEN_COLUMNS = StepUsage._fields[:-1]
"""Columns of a trajectory and of its turns that count tokens."""
COUNTS = ("prompt_tokens", "completion_tokens", *TOKEN_COLUMNS[2:])
"""Columns of ``steps`` that count tokens, in the same order."""


def step_usage(step: Mapping[str, Any]) -> StepUsage:
    """Return the tokens of a raw row of ``steps``.

    Raises:
        ConversionError: the details are no JSON, or hold an absurd count.
    """
    # Of the details only counts get into the trajectory, so what else was escaped in them does not matter.
    prompt, completion = (
        parse_json(step[name], f"steps[{step['id']}].{name}", [])
        for name in ("prompt_tokens_details", "completion_tokens_details")
    )
    return usage_of(f"steps[{step['id']}]", [step[name] for name in COUNTS], prompt, completion)


def usage_of(path: str, counts: Sequence[int | None], prompt: Any, completion: Any) -> StepUsage:
    """Return the tokens of a step.

    A count that is in its column, of ``COUNTS``, is taken from there. A reported 0 is null in the column and is only in
    the details of the prompt or the completion (Letta 0.16.8), so those are looked at next.

    Raises:
        ConversionError: the details hold an absurd count.
    """
    prompt_tokens, completion_tokens, total_tokens, cached, cache_write, reasoning = counts
    of_prompt, of_completion = f"{path}.prompt_tokens_details", f"{path}.completion_tokens_details"
    if cached is None and prompt:
        cached = _first_count(prompt, of_prompt, "cached_tokens", "cache_read_tokens")
    if cache_write is None and prompt:
        cache_write = _first_count(prompt, of_prompt, "cache_creation_tokens")
    if reasoning is None and completion:
        reasoning = _first_count(completion, of_completion, "reasoning_tokens")
    return StepUsage(
        prompt_tokens or 0,
        completion_tokens or 0,
        total_tokens or 0,
        cached,
        cache_write,
        reasoning,
        bool(prompt_tokens or completion_tokens or total_tokens or prompt or completion),
    )


def _first_count(details: Any, path: str, *names: str) -> int | None:
    if isinstance(details, dict):
        for name in names:
            value = details.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                if abs(value) > MAX_COUNT:
                    raise ConversionError(f"{path}.{name}", f"is {value}, which is no count of tokens")
                return value
    return None


def price_of_step(model: str | None, provider: str | None, at: datetime | None, usage: StepUsage) -> Decimal | None:
    """Return the price in dollars of a step, by genai-prices at its time.

    None where its usage was not reported, or where its model's price at that time is not known.
    """
    if not usage.reported:
        return None
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    return price_of_call(model, provider, at, usage.input_tokens, cached, written, usage.output_tokens)


def sum_of_prices(prices: Sequence[Decimal | None]) -> Decimal | None:
    """Return the price of all steps; None where there is none, or where one's is not known."""
    known = [price for price in prices if price is not None]
    if not known or len(known) < len(prices):
        return None
    # Enough digits for any counts: whether the sinks can hold it is found out later.
    return sum(known, Decimal(0)).quantize(_COST_QUANTUM, context=Context(prec=100))


def sum_of_usage(steps: Sequence[StepUsage]) -> dict[str, Any]:
    """Return the columns of a trajectory that count tokens, of its own steps; a count that none has is None."""
    counts = {name: [getattr(step, name) for step in steps] for name in TOKEN_COLUMNS}
    return {
        **{name: sum(counts[name]) for name in TOKEN_COLUMNS[:3]},
        **{name: _sum_of_known(counts[name]) for name in TOKEN_COLUMNS[3:]},
        "usage_reported": any(step.reported for step in steps),
    }


def _sum_of_known(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
