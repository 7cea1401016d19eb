"""What a run used: tokens by kind, and their price.

Belongs here: counting own steps' tokens. Does not belong here: what a judge costs (``refinement.pricing``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from trajectory_pipeline.trajectories.json_text import ConversionError, Escapes, parse

_CENTS = Decimal("0.000000001")
MAX_COUNT = 2**63 - 1
"""The largest number that the sinks hold."""


@dataclass(frozen=True)
class StepUsage:
    """Tokens of one step, as Letta stores them.

    Attributes:
        input_tokens: cached ones included (for Anthropic Letta adds cache reads and writes).
        output_tokens: reasoning included.
        total_tokens: as stored.
        cached: read from the provider's cache; None where not told.
        cache_write: written to it; None where not told.
        reasoning: spent on reasoning; None where not told.
        reported: whether the provider told anything: Letta stores 0 for "not told".
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached: int | None
    cache_write: int | None
    reasoning: int | None
    reported: bool


def step_usage(step: Mapping[str, Any]) -> StepUsage:
    """Return the tokens of a raw row of ``steps``.

    A count that is in its column is taken from there. A reported 0 is null in the column and stands only in the
    details (Letta 0.16.8), so those are looked at next.

    Raises:
        ConversionError: the details are no JSON, or hold an absurd count.
    """
    # Of the details only counts get into the trajectory, so it is no matter what else was escaped in them.
    places = [f"steps[{step['id']}].{name}" for name in ("prompt_tokens_details", "completion_tokens_details")]
    prompt = parse(step["prompt_tokens_details"], places[0], Escapes())
    completion = parse(step["completion_tokens_details"], places[1], Escapes())
    counts = [step[name] or 0 for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    return StepUsage(
        input_tokens=counts[0],
        output_tokens=counts[1],
        total_tokens=counts[2],
        cached=_first_count(step["cached_input_tokens"], prompt, places[0], "cached_tokens", "cache_read_tokens"),
        cache_write=_first_count(step["cache_write_tokens"], prompt, places[0], "cache_creation_tokens"),
        reasoning=_first_count(step["reasoning_tokens"], completion, places[1], "reasoning_tokens"),
        reported=any(counts) or bool(prompt) or bool(completion),
    )


def _first_count(column: int | None, details: Any, place: str, *names: str) -> int | None:
    if column is not None:
        return column
    if isinstance(details, dict):
        for name in names:
            value = details.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                if abs(value) > MAX_COUNT:
                    raise ConversionError(f"{place}.{name}", f"is {value}, which is no count of tokens")
                return value
    return None


def total_of(counts: Iterable[int | None]) -> int | None:
    """Return the sum of the counts that are told; None where none is."""
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def cost_usd(steps: Iterable[tuple[Mapping[str, Any], StepUsage]], run_created_at: datetime | None) -> Decimal | None:
    """Return the price of own steps in dollars, by genai-prices at each step's time, else the run's.

    None where there is no step, where the usage of one was not reported, or where a model's price (at that time) is
    not known.
    """
    total, any_step = Decimal(0), False
    for step, usage in steps:
        any_step = True
        price = _price(
            step["model"],
            step["provider_name"],
            step["created_at"] or run_created_at,
            usage.input_tokens,
            usage.cached or 0,
            usage.cache_write or 0,
            usage.output_tokens,
        )
        if not usage.reported or price is None:
            return None
        total += price
    return total.quantize(_CENTS) if any_step else None


@lru_cache(maxsize=4096)
def _price(
    model: str | None, provider: str | None, at: datetime | None, prompt: int, cached: int, written: int, output: int
) -> Decimal | None:
    # Not needed to read or convert anything, and slow to import.
    from genai_prices import Usage, calc_price

    if model is None or at is None:
        return None
    usage = Usage(input_tokens=prompt, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output)
    try:
        return calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
    except (LookupError, ValueError):
        return None
