"""What the simulated models cost: listed prices, so that a demonstration can show costs labelled as simulated.

Belongs here: the models that are served, their prices and the exact arithmetic. Does not belong here: counting
tokens (``protocol``) and keeping the account (``books``). No one is ever charged: the prices exist so that caps,
reservations and reports have something exact to be checked against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

JUDGE_MODEL = "simulated-judge"
OBEDIENT_MODEL = "simulated-judge-obedient"
EMBEDDING_MODEL = "simulated-embedding"

CHAT_MODELS = (JUDGE_MODEL, OBEDIENT_MODEL)

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class SimulatedPrice:
    """The listed price of one simulated model, in US dollars per million tokens."""

    input: Decimal
    cached_input: Decimal
    output: Decimal

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Decimal:
        """Give the exact cost in US dollars; ``cached_tokens`` are among the ``prompt_tokens``."""
        fresh_tokens = prompt_tokens - cached_tokens
        total = fresh_tokens * self.input + cached_tokens * self.cached_input + completion_tokens * self.output
        return total / _MILLION

    def listing(self) -> dict[str, object]:
        """Give the ``pricing`` object of a ``GET /v1/models`` entry."""
        return {
            "input": float(self.input),
            "cached_input": float(self.cached_input),
            "output": float(self.output),
            "currency": "USD",
            "per_tokens": 1_000_000,
            "simulated": True,
        }


_JUDGE_PRICE = SimulatedPrice(input=Decimal("0.50"), cached_input=Decimal("0.05"), output=Decimal("2.00"))

SIMULATED_PRICES: Mapping[str, SimulatedPrice] = MappingProxyType(
    {
        JUDGE_MODEL: _JUDGE_PRICE,
        OBEDIENT_MODEL: _JUDGE_PRICE,
        EMBEDDING_MODEL: SimulatedPrice(input=Decimal("0.02"), cached_input=Decimal("0.02"), output=Decimal(0)),
    }
)
"""Every served model and its listed price."""


def base_model(model: str) -> str:
    """Give the model's name without the fault that a suffix asks for (``simulated-judge:refusal``)."""
    return model.partition(":")[0]


def simulated_price(model: str) -> SimulatedPrice | None:
    """Give the listed price of a simulated model, with or without a fault suffix; None for any other model."""
    return SIMULATED_PRICES.get(base_model(model))


def decimal_text(amount: Decimal) -> str:
    """Write an amount exactly and without an exponent, as JSON numbers cannot be trusted to."""
    return format(amount.normalize() if amount else Decimal(0), "f")
