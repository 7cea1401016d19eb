"""Prices: the user's own come first, an unknown price is None and never 0, and an invalid table names the place."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.budget.prices import CallUsage, ModelPrice, Prices, load_prices
from trajectory_pipeline.errors import SettingsError

LOCAL, OPENAI = "http://localhost:11434/v1", "https://api.openai.com/v1"
TOML = """
[[prices]]
model = "llama3"
input = 0.1
output = 0.4

[[prices]]
model = "llama3"
base_url = "http://localhost:11434/v1/"
input = 0.2
cached_input = 0.02
output = 0.8
"""
JSON = '{"prices": [{"model": "gpt-4o", "input": 1, "output": 2.5}]}'


def write_table(folder: Path, text: str, name: str = "prices.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_price_of_one_endpoint_precedes_price_of_all(tmp_path: Path) -> None:
    prices = load_prices(write_table(tmp_path, TOML))
    usage = CallUsage(1_000_000, 500_000, 1_000_000)
    assert prices.cost("llama3", "llama3", usage, LOCAL) == Decimal("0.91")
    assert prices.cost("llama3", "llama3", usage, "http://elsewhere/v1") == Decimal("0.5")
    assert prices.max_cost("llama3", LOCAL, 1_000_000, 1_000_000) == Decimal(1)
    assert prices.max_cost("unknown", LOCAL, 1, 1) is None


def test_own_price_precedes_listed_price_for_any_answering_model(tmp_path: Path) -> None:
    prices, usage = load_prices(write_table(tmp_path, JSON, "prices.json")), CallUsage(1_000_000, None, 1_000_000)
    assert prices.cost("gpt-4o", "gpt-4o-2024-08-06", usage, OPENAI) == Decimal("3.5")
    assert Prices().cost("gpt-4o", "gpt-4o-2024-08-06", usage, OPENAI) == Decimal("12.5")
    assert Prices().cost("alias", "gpt-4o", usage, OPENAI) == Decimal("12.5")
    assert Prices().cost("gpt-4o", None, usage, OPENAI) is None
    assert Prices().cost("gpt-4o", "gpt-4o", None, OPENAI) is None


def test_load_prices_without_a_path_gives_no_prices() -> None:
    assert load_prices(None) == Prices()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "prices.yaml", "must be a .json or a .toml file"),
        ("{", "prices.json", "cannot be read"),
        ("[[prices", "prices.toml", "cannot be read"),
        ('{"prices": [{"model": "m", "input": NaN, "output": 1}]}', "prices.json", "NaN is no price"),
        ('{"prices": [{"model": "m", "input": -1, "output": 1}]}', "prices.json", "wrong at prices.0.input"),
        ('{"prices": [{"model": "m", "input": 1}]}', "prices.json", "wrong at prices.0.output"),
        ('{"prices": [{"model": "m", "input": 1, "output": 1, "cached": 1}]}', "prices.json", "prices.0.cached"),
        ('{"llama3": 1}', "prices.json", "wrong at prices"),
        ("[[prices]]\nmodel = 'm'\ninput = inf\noutput = 1", "prices.toml", "wrong at prices.0.input"),
        (TOML + TOML, "prices.toml", "names the model llama3 twice"),
    ],
)
def test_load_prices_of_an_invalid_table_names_file_and_place(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    path = write_table(tmp_path, text, name)
    with pytest.raises(SettingsError) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "TRAJECTORY_PRICES" in str(caught.value)


def test_load_prices_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing.toml, which cannot be read: No such file"):
        load_prices(tmp_path / "missing.toml")


dollars = st.decimals(0, 1000, places=4)


@given(
    price=st.tuples(dollars, dollars, dollars, dollars),
    bound=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    taken=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_cost_of_a_call_within_its_bounds_is_at_most_max_cost(
    price: tuple[Decimal, Decimal, Decimal, Decimal], bound: tuple[int, int], taken: tuple[float, float, float]
) -> None:
    fresh, cached, write, output = price
    prices = Prices((ModelPrice(model="m", input=fresh, cached_input=cached, cache_write=write, output=output),))
    used = int(bound[0] * taken[0])
    usage = CallUsage(used, int(used * taken[1]), int(bound[1] * taken[2]))
    cost, most = prices.cost("m", "m", usage, LOCAL), prices.max_cost("m", LOCAL, *bound)
    assert cost is not None
    assert most is not None
    assert cost <= most


@pytest.mark.parametrize(
    ("model", "base_url", "kinds"),
    [
        ("claude-sonnet-4-5", "https://api.anthropic.com/v1", {"cache_write_tokens": 150_000}),
        ("claude-sonnet-4-5", "https://api.anthropic.com/v1", {}),
        ("gpt-4o", OPENAI, {"cache_read_tokens": 150_000}),
    ],
)
def test_max_cost_covers_each_listed_kind_of_token(model: str, base_url: str, kinds: dict[str, int]) -> None:
    usage = Usage(input_tokens=150_000, output_tokens=1000, **kinds)
    most = Prices().max_cost(model, base_url, 150_000, 1000)
    assert most is not None
    assert most >= calc_price(usage, model, provider_api_url=base_url).total_price


def test_own_price_of_cache_writes_counts_for_all_that_was_not_cached() -> None:
    prices = Prices((ModelPrice(model="m", input=1, cached_input=Decimal("0.1"), cache_write=2, output=10),))
    assert prices.cost("m", "m", CallUsage(1_000_000, 400_000, 100_000), LOCAL) == Decimal("2.24")
    assert prices.cost("m", "m", CallUsage(1_000_000, None, 0), LOCAL) == 2
    assert prices.max_cost("m", LOCAL, 1_000_000, 100_000) == 3


def test_cost_counts_cache_writes_and_the_tier_at_their_price() -> None:
    anthropic = "https://api.anthropic.com/v1"
    written = Usage(input_tokens=1010, cache_write_tokens=1000, output_tokens=5)
    usage = CallUsage(1010, None, 5, cache_write_tokens=1000)
    expected = calc_price(written, "claude-sonnet-4-5", provider_api_url=anthropic).total_price
    assert Prices().cost("claude-sonnet-4-5", "claude-sonnet-4-5", usage, anthropic) == expected
    assert expected > Prices().cost("claude-sonnet-4-5", "claude-sonnet-4-5", CallUsage(1010, None, 5), anthropic)
    usual, priority, flex, unknown = (
        Prices().cost("gpt-5.1", "gpt-5.1", CallUsage(1000, None, 100, service_tier=tier), OPENAI)
        for tier in (None, "priority", "flex", "standard")
    )
    assert flex < usual == unknown < priority
    assert priority <= Prices().max_cost("gpt-5.1", OPENAI, 1000, 100)


def test_max_cost_covers_variants_and_hours_of_listed_prices() -> None:
    """Priority processing and off-peak hours, of every model of some providers."""
    usage, now, compared = Usage(input_tokens=300_000, output_tokens=1000), datetime.now(UTC), 0
    for base_url in (OPENAI, "https://api.deepseek.com", "https://api.x.ai/v1"):
        for model in models_of(base_url):
            most = Prices().max_cost(model.id, base_url, 300_000, 1000)
            if most is None:
                continue
            contexts = [None, *(variant.when for variant in model.price_variants or ())]
            times = [now + timedelta(hours=hours) for hours in (0, 6, 12, 18)]
            prices = [model.get_prices(time, one) for time in times for one in contexts]
            assert most >= max(price.calc_price(usage)["total_price"] for price in prices), model.id
            compared += len(contexts) > 1
    assert compared > 10


def models_of(base_url: str) -> list[ModelInfo]:
    return next(one.models for one in get_snapshot().providers if re.match(one.api_pattern, base_url))


def test_price_without_one_kind_of_token_is_unknown() -> None:
    """An embedding model has a price for what goes in, and none for an answer."""
    assert Prices().max_cost("text-embedding-3-small", OPENAI, 1, 1) is None
    usage = CallUsage(1, None, 1)
    assert Prices().cost("text-embedding-3-small", "text-embedding-3-small", usage, OPENAI) is None


# ---- batches ------------------------------------------------------------------------------------------------------


def test_batch_price_is_the_stated_share() -> None:
    row = ModelPrice(model="llama3", input=Decimal(1), cached_input=Decimal("0.1"), output=Decimal(4), batch="0.5")
    prices, usage = Prices((row,)), CallUsage(1000, 400, 100)
    full = prices.cost("llama3", None, usage, LOCAL)
    assert full is not None
    assert prices.of_batches.cost("llama3", None, usage, LOCAL) == full / 2
    assert prices.of_batches.max_cost("llama3", LOCAL, 10, 10) == Decimal("0.000025")


def test_own_price_without_share_has_no_batch_price() -> None:
    prices = Prices((ModelPrice(model="gpt-4o", input=Decimal(1), output=Decimal(4)),)).of_batches
    assert prices.max_cost("gpt-4o", OPENAI, 10, 10) is None
    assert prices.cost("gpt-4o", "gpt-4o", CallUsage(1, None, 1), OPENAI) is None


def test_listed_batch_price_is_half_or_unknown() -> None:
    """The library gives the full price of a model that it has no batch price for: here that price is not known."""
    usage, known, unknown = CallUsage(1000, None, 1000), 0, 0
    (openai,) = [provider for provider in get_snapshot().providers if provider.id == "openai"]
    for model in openai.models:
        full, batch = (prices.cost(model.id, model.id, usage, OPENAI) for prices in (Prices(), Prices().of_batches))
        known, unknown = known + (batch is not None), unknown + (batch is None and full is not None)
        assert batch is None or full is None or batch <= full
        most = Prices().of_batches.max_cost(model.id, OPENAI, 1000, 1000)
        assert (most is None) == (batch is None)
        assert most is None or batch is None or most >= batch
    assert known
    assert unknown
    assert Prices().of_batches.cost("gpt-4o-mini", "gpt-4o-mini", usage, OPENAI) == Decimal("0.000375")
