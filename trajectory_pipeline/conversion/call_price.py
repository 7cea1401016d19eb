"""What one LLM call cost, by the price list of genai-prices at the time of the call.

Looking a call up takes a hundred times longer than multiplying, so the rates of a price are looked up once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_MILLION = 10**6


@dataclass(frozen=True)
class _Rates:
    """Dollars a token: of a prompt, of what it read from or wrote to a cache, of the output.

    They hold for prompts of at most ``limit`` tokens; without one, for all.
    """

    limit: int | None
    prompt: Decimal
    cached: Decimal
    written: Decimal
    output: Decimal


_rates: dict[int, tuple["ModelPrice", _Rates | None]] = {}
"""By the ``id`` of a price, which is stored with it so that the id stays taken; None where its shape is not known."""


def price_of_call(
    model: str | None, provider: str | None, at: datetime | None, prompt: int, cached: int, written: int, output: int
) -> Decimal | None:
    """Return the price of one call in dollars; None where the model or its price is not known.

    Counts are of tokens; ``prompt`` includes those read from a cache (``cached``) or written to it. The price list
    refuses some calls, such as negative counts: their price is not known either, whatever it raises.
    """
    if model is None or at is None:
        return None
    try:
        return _price(model, provider, at, prompt, cached, written, output)
    except Exception:
        return None


def _price(
    model: str, provider: str | None, at: datetime, prompt: int, cached: int, written: int, output: int
) -> Decimal | None:
    found = _model(model, provider)
    if found is None:
        return None
    rates = _rates_of(model, provider, at, found.get_prices(at))
    uncached = prompt - cached - written
    counts = (uncached, cached, written, output)
    if rates is None or (rates.limit is not None and prompt > rates.limit) or min(counts) < 0:
        return _look_up(model, provider, at, prompt, cached, written, output)
    return uncached * rates.prompt + cached * rates.cached + written * rates.written + output * rates.output


@lru_cache(maxsize=4096)
def _model(model: str, provider: str | None) -> "ModelInfo | None":
    from genai_prices import Usage, calc_price

    try:
        return calc_price(Usage(), model, provider_id=provider).model
    except (LookupError, ValueError):
        return None


def _rates_of(model: str, provider: str | None, at: datetime, price: "ModelPrice") -> _Rates | None:
    if id(price) not in _rates:
        _rates[id(price)] = price, _measure_rates(model, provider, at, vars(price))
    return _rates[id(price)][1]


def _measure_rates(model: str, provider: str | None, at: datetime, prices: Mapping[str, Any]) -> _Rates | None:
    from genai_prices.types import TieredPrices

    tiers = [tier.start for price in prices.values() if isinstance(price, TieredPrices) for tier in price.tiers]
    known = (price is None or isinstance(price, (Decimal, TieredPrices)) for price in prices.values())
    # A tier's price is that of all tokens of a prompt above its start.
    limit = min(tiers, default=None)
    if not all(known) or limit == 0:
        return None
    one = _MILLION if limit is None else min(limit, _MILLION)
    counts = ((one, 0, 0, 0), (one, one, 0, 0), (one, 0, one, 0), (0, 0, 0, _MILLION))
    prices_found = [_look_up(model, provider, at, *tokens) for tokens in counts]
    per_token = [price / max(tokens) for price, tokens in zip(prices_found, counts, strict=True) if price is not None]
    return _Rates(limit, *per_token) if len(per_token) == len(counts) else None


def _look_up(
    model: str, provider: str | None, at: datetime, prompt: int, cached: int, written: int, output: int
) -> Decimal | None:
    # Imported late: it is slow, and reading or converting needs it only where a price is asked for.
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=prompt, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output)
    try:
        return calc_price(usage, model, provider_id=provider, genai_request_timestamp=at).total_price
    except (LookupError, ValueError):
        return None
