"""What a call to a judge costs."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trajectory_pipeline.errors import SettingsError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo
    from genai_prices.types import ModelPrice as ListedPrice

_QUANTUM = Decimal("0.000000001")
MAX_COST = 10**9
"""``cost_usd`` has nine digits before the point."""
_MILLION = 1_000_000
_BATCH = {"processing": "batch"}
"""How ``genai-prices`` names the prices of batches, where it has them."""
_NO_PRICE = (LookupError, ValueError, ArithmeticError)


@dataclass(frozen=True)
class CallUsage:
    """Tokens of one call, as the provider reports them.

    Attributes:
        input_tokens: cached ones included.
        cached_input_tokens: of these, read from the provider's cache; None where not reported.
        cache_write_tokens: of these, written into the provider's cache, which may cost more.
        service_tier: under which it was served, where the provider says so; some cost a multiple.
    """

    input_tokens: int
    cached_input_tokens: int | None
    output_tokens: int
    cache_write_tokens: int = 0
    service_tier: str | None = None


_Dollars = Annotated[Decimal, Field(ge=0, lt=MAX_COST, allow_inf_nan=False)]


class ModelPrice(BaseModel):
    """A row of the user's price table: US dollars per million tokens.

    Attributes:
        base_url: of the one endpoint where this price holds; None for all.
        cached_input: of prompt tokens that the provider's cache served; None where they cost the same.
        cache_write: of prompt tokens that go into the provider's cache, where that costs more: all that were not cached
            count at it, because providers do not tell them apart.
        batch: share of these prices that a line of a batch costs; None where that is not known.
        simulated: whether the price is made up, as that of a simulated judge is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1)]
    base_url: str | None = None
    input: _Dollars
    cached_input: _Dollars | None = None
    cache_write: _Dollars | None = None
    output: _Dollars
    batch: Annotated[Decimal, Field(gt=0, le=1)] | None = None
    simulated: bool = False

    def cost(self, usage: CallUsage) -> Decimal:
        """Return the exact price of a call in dollars."""
        cached = usage.cached_input_tokens or 0
        fresh = usage.input_tokens - cached
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh_price = max(self.input, self.cache_write or 0)
        return (fresh * fresh_price + cached * cached_price + usage.output_tokens * self.output) / _MILLION

    @property
    def at_batch_rate(self) -> "ModelPrice | None":
        """The prices of a line of a batch; None where the share is not known."""
        if self.batch is None:
            return None
        names = ("input", "cached_input", "cache_write", "output")
        prices = {name: value * self.batch for name in names if (value := getattr(self, name)) is not None}
        return self.model_copy(update=prices)


class _PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prices: list[ModelPrice]


@dataclass(frozen=True)
class Prices:
    """The user's own prices, which go first, and the listed ones of ``genai-prices``.

    With ``batch``, those of lines of batches: by the share that the user's own price names, else by a listed price for
    batches. A model without either has no known price, because ``genai-prices`` gives the full one then.
    """

    table: tuple[ModelPrice, ...] = ()
    batch: bool = False

    @property
    def of_batches(self) -> "Prices":
        """The prices of lines of batches."""
        return replace(self, batch=True)

    def max_cost(self, model: str, base_url: str, prompt_tokens: int, response_tokens: int) -> Decimal | None:
        """Return what a call may cost at most, in dollars; None for an unknown price.

        That is by the highest price that may apply: of a cache, of a time of day, of a priority tier.
        """
        own = self._find_own_price(model, base_url)
        if own is None:
            listed = _listed_max(model, base_url, prompt_tokens, response_tokens, batch=self.batch)
            return _storable(listed, ROUND_UP)
        if (own := self._at_rate(own)) is None:
            return None
        most = max(own.cost(CallUsage(prompt_tokens, cached, response_tokens)) for cached in (0, prompt_tokens))
        return _storable(most, ROUND_UP)

    def cost(self, requested: str, answered: str | None, usage: CallUsage | None, base_url: str) -> Decimal | None:
        """Return what a call cost, in dollars; None where price or usage is not known.

        The user's own price for the requested model goes before that for the model which answered.
        """
        if usage is None:
            return None
        own = self._find_own_price(requested, base_url)
        if own is None and answered is not None:
            own = self._find_own_price(answered, base_url)
        if own is None:
            return price_usd(answered, usage, base_url, batch=self.batch)
        rate = self._at_rate(own)
        return None if rate is None else _storable(rate.cost(usage))

    def _at_rate(self, price: ModelPrice) -> ModelPrice | None:
        return price.at_batch_rate if self.batch else price

    def is_simulated(self, model: str, base_url: str) -> bool:
        """Whether the price of a model at an endpoint is made up."""
        own = self._find_own_price(model, base_url)
        return own is not None and own.simulated

    def _find_own_price(self, model: str, base_url: str) -> ModelPrice | None:
        found = [
            row
            for row in self.table
            if row.model == model and (row.base_url is None or _path_of(row.base_url) == _path_of(base_url))
        ]
        # A price for this endpoint goes before one for all.
        return min(found, key=lambda row: row.base_url is None, default=None)


def load_prices(path: Path | None) -> Prices:
    r"""Read the user's own price table, JSON or TOML by the file's name; an empty one where there is no path.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "prices.toml")
        ...     _ = table.write_text('[[prices]]\nmodel = "llama3"\ninput = 0.10\noutput = 0.40\n')
        ...     load_prices(table).max_cost("llama3", "http://localhost:11434/v1", 1_000_000, 0)
        Decimal('0.100000000')

    Raises:
        SettingsError: it cannot be read, or holds something that is not a price; the text says where.
    """
    if path is None:
        return Prices()
    readers: dict[str, Callable[[str], Any]] = {
        ".json": lambda text: json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant),
        ".toml": lambda text: tomllib.loads(text, parse_float=Decimal),
    }
    read = readers.get(path.suffix.lower())
    if read is None:
        raise SettingsError(f"TRAJECTORY_PRICES names {path}: the price table must be a .json or a .toml file.")
    try:
        table = _PriceFile.model_validate(read(path.read_text(encoding="utf-8"))).prices
    except OSError as error:
        raise SettingsError(f"TRAJECTORY_PRICES names {path}, which cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise SettingsError(
            f"The price table {path} (TRAJECTORY_PRICES) is wrong at {place}: {first['msg']}. It holds a list `prices`"
            " of entries with model, input, output and perhaps cached_input and cache_write (US dollars per million"
            " tokens), batch (the share that a batch costs) and base_url."
        ) from None
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise SettingsError(f"The price table {path} (TRAJECTORY_PRICES) cannot be read: {error}.") from None
    places = [(row.model, row.base_url and row.base_url.rstrip("/")) for row in table]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice:
        where = f" at {twice[1]}" if twice[1] else ""
        raise SettingsError(f"The price table {path} (TRAJECTORY_PRICES) names the model {twice[0]}{where} twice.")
    return Prices(tuple(table))


def price_usd(model: str | None, usage: CallUsage | None, base_url: str, *, batch: bool = False) -> Decimal | None:
    """Return the listed price, at an endpoint, of a call in dollars; None where price or usage is not known."""
    return None if model is None or usage is None else _storable(_listed(model, usage, base_url, batch=batch))


def _listed(model: str, usage: CallUsage, base_url: str, *, batch: bool = False) -> Decimal | None:
    # Slow to import, and not needed where nothing is asked.
    from genai_prices import Usage, calc_price

    context = {"service_tier": usage.service_tier} if usage.service_tier else None
    try:
        found = calc_price(
            Usage(
                input_tokens=usage.input_tokens,
                cache_read_tokens=usage.cached_input_tokens or 0,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=usage.output_tokens,
            ),
            model,
            provider_api_url=base_url,
            genai_request_timestamp=datetime.now(UTC),
            price_context=_BATCH if batch else context,
        )
    except _NO_PRICE:
        return None
    if batch and not _has_batch_price(found.model):
        return None
    # A kind of token without a price would count as free.
    needed = [found.model_price.input_mtok, *([found.model_price.output_mtok] if usage.output_tokens else [])]
    return None if None in needed else found.total_price


def _has_batch_price(model: "ModelInfo") -> bool:
    return any(variant.when == _BATCH for variant in model.price_variants or ())


def _listed_max(
    model: str, base_url: str, prompt_tokens: int, response_tokens: int, *, batch: bool = False
) -> Decimal | None:
    from genai_prices import Usage

    usages = [
        Usage(input_tokens=prompt_tokens, output_tokens=response_tokens, **{kind: prompt_tokens})
        for kind in ("cache_read_tokens", "cache_write_tokens")
    ]
    try:
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        prices = _listed_prices(model, base_url, hour, batch=batch)
        costs = [price.calc_price(usage)["total_price"] for price in prices for usage in usages]
    except _NO_PRICE:
        return None
    usual = _listed(model, CallUsage(prompt_tokens, None, response_tokens), base_url, batch=batch)
    return None if usual is None else max([usual, *costs])


@lru_cache(maxsize=64)
def _listed_prices(model: str, base_url: str, hour: datetime, *, batch: bool = False) -> tuple["ListedPrice", ...]:
    """Return the prices of a model that may apply within a day from an hour, those of its tiers too."""
    from genai_prices import Usage, calc_price

    found = calc_price(Usage(input_tokens=0, output_tokens=0), model, provider_api_url=base_url).model
    contexts = [_BATCH] if batch else [None, *(variant.when for variant in found.price_variants or ())]
    prices = [found.get_prices(hour + timedelta(hours=hours), one) for hours in range(25) for one in contexts]
    return tuple({repr(price): price for price in prices}.values())


def _storable(cost: Decimal | None, rounding: str | None = None) -> Decimal | None:
    # Usage that no call can have gives a price that no column can hold: then it is not known.
    return cost.quantize(_QUANTUM, rounding) if cost is not None and 0 <= cost < MAX_COST else None


def _path_of(url: str) -> str:
    """Return a URL without its query, such as Azure's ``?api-version=…``: the price is the same."""
    return url.partition("?")[0].rstrip("/")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no price")
