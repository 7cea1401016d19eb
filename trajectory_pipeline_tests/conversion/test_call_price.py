"""A price that is multiplied is the price that the list gives, on both sides of every tier."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.types import TieredPrices
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.conversion import call_price
from trajectory_pipeline.conversion.call_price import price_of_call

AT = datetime(2026, 11, 20, tzinfo=UTC)
FLAT, TIERED = "gpt-4o-mini", "gemini-2.5-pro"
TIER_START = 200_000


def by_the_list(model: str, prompt: int, cached: int, written: int, output: int) -> Decimal:
    usage = Usage(input_tokens=prompt, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output)
    return calc_price(usage, model, genai_request_timestamp=AT).total_price


def test_models_of_this_test_are_flat_and_tiered() -> None:
    for model, tiered in ((FLAT, False), (TIERED, True)):
        prices = calc_price(Usage(), model, genai_request_timestamp=AT).model_price
        tiers = [
            tier.start for value in vars(prices).values() if isinstance(value, TieredPrices) for tier in value.tiers
        ]
        assert tiers == [TIER_START] * len(tiers)
        assert bool(tiers) == tiered


@pytest.mark.parametrize("model", [FLAT, TIERED])
@given(
    fresh=st.integers(0, 2 * TIER_START) | st.sampled_from([TIER_START - 1, TIER_START, TIER_START + 1]),
    cached=st.integers(0, TIER_START),
    written=st.integers(0, TIER_START),
    output=st.integers(0, 10**7),
)
def test_price_of_call_equals_the_price_list(model: str, fresh: int, cached: int, written: int, output: int) -> None:
    prompt = fresh + cached + written
    assert price_of_call(model, None, AT, prompt, cached, written, output) == by_the_list(
        model, prompt, cached, written, output
    )


def test_price_of_call_does_not_look_up_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (FLAT, TIERED):
        price_of_call(model, None, AT, 1, 0, 0, 1)
    asked: list[object] = []
    monkeypatch.setattr(call_price, "_look_up", lambda *call: asked.append(call))
    for model in (FLAT, TIERED):
        for tokens in range(0, TIER_START + 1, 1000):
            price_of_call(model, None, AT, tokens, 0, 0, tokens)
    assert not asked
