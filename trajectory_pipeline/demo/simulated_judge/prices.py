"""What the simulated models cost: made-up prices, so that caps, reservations and reports have something to work with.

``PRICE_TABLE`` is what ``TRAJECTORY_PRICES`` must name wherever this server is the judge.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

PRICE_TABLE = Path(__file__).with_name("prices.json")
JUDGE_MODEL = "simulated-judge"
OBEDIENT_MODEL = "simulated-judge-obedient"
SCRIPTED_MODEL = "scripted-judge"
EMBEDDING_MODEL = "simulated-embedding"

_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class SimulatedPrice:
    """The price of one simulated model, in US dollars per million tokens.

    The arithmetic is separate from the pipeline's on purpose: tests compare the two.
    """

    input: Decimal
    cached_input: Decimal
    output: Decimal
    batch: Decimal

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Decimal:
        """Return the exact cost in US dollars; ``cached_tokens`` are among the ``prompt_tokens``."""
        fresh_tokens = prompt_tokens - cached_tokens
        total = fresh_tokens * self.input + cached_tokens * self.cached_input + completion_tokens * self.output
        return total / _MILLION

    def as_json(self) -> dict[str, object]:
        """Return the ``pricing`` object of a ``GET /v1/models`` entry."""
        return {
            "input": float(self.input),
            "cached_input": float(self.cached_input),
            "output": float(self.output),
            "currency": "USD",
            "per_tokens": 1_000_000,
            "simulated": True,
        }


SIMULATED_PRICES: Mapping[str, SimulatedPrice] = MappingProxyType(
    {
        row["model"]: SimulatedPrice(row["input"], row["cached_input"], row["output"], row["batch"])
        for row in json.loads(PRICE_TABLE.read_text(encoding="utf-8"), parse_float=Decimal)["prices"]
    }
)
"""Every served model and its price."""


def base_model(model: str) -> str:
    """Return the model's name without the fault that a suffix asks for (``simulated-judge:refusal``)."""
    return model.partition(":")[0]


def decimal_text(amount: Decimal) -> str:
    """Write an amount exactly and without an exponent, as JSON numbers cannot be trusted to."""
    return format(amount.normalize() if amount else Decimal(0), "f")
