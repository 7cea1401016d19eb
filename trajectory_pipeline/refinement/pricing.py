"""What a call to a judge costs.

Belongs here: finding a price; an unknown one is None, never 0. Does not belong here: what agents' own calls cost
(``trajectories.usage``).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

_PLACES = Decimal("0.000000001")
_MAX_COST = 10**9
"""``cost_usd`` has nine digits before the point."""


@dataclass(frozen=True)
class CallUsage:
    """Tokens of one call, as the provider told them.

    Attributes:
        input_tokens: cached ones included.
        cached_input_tokens: of these, read from the provider's cache; None where not told.
        output_tokens: completion tokens.
    """

    input_tokens: int
    cached_input_tokens: int | None
    output_tokens: int


def is_simulated(model: str | None) -> bool:
    """Whether a model name is one of the simulated judge's."""
    return model is not None and model.startswith("simulated-judge")


def price_usd(model: str | None, usage: CallUsage | None, base_url: str) -> Decimal | None:
    """Return the price of a call in dollars; None where the price or the usage is not known.

    The simulated judge's prices are made up, so that cost shows; its verdicts are marked ``simulated``.

    Args:
        model: that answered.
        usage: as told.
        base_url: of the endpoint, which decides whose prices hold.
    """
    if model is None or usage is None:
        return None
    cached = usage.cached_input_tokens or 0
    # Both ways to a price are slow to import, and not needed where nothing is asked.
    if is_simulated(model):
        from trajectory_pipeline.simulated_judge.prices import simulated_price

        simulated = simulated_price(model)
        if simulated is None:
            return None
        return _storable(simulated.cost(usage.input_tokens, cached, usage.output_tokens))
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(
            Usage(input_tokens=usage.input_tokens, cache_read_tokens=cached, output_tokens=usage.output_tokens),
            model,
            provider_api_url=base_url,
            genai_request_timestamp=datetime.now(UTC),
        )
    except (LookupError, ValueError, ArithmeticError):
        return None
    return _storable(found.total_price)


def _storable(cost: Decimal) -> Decimal | None:
    # Usage that no call can have gives a price that no column can hold: then it is not known.
    return cost.quantize(_PLACES) if 0 <= cost < _MAX_COST else None
