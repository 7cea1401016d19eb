"""The budget: what a call may cost at most, which caps are set, and whether they have headroom.

A call begins only if every cap that covers it has headroom for what was spent, what is reserved for calls in flight,
and what this call may cost at most. When the call ends, its real cost replaces the reservation. So a cap is exceeded
only where a provider bills more than was reserved: more prompt tokens than the estimate, or more than the largest
response; then by no more than that difference, summed over the calls in flight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from trajectory_pipeline.budget.prices import Prices
from trajectory_pipeline.errors import JudgeError, PipelineError
from trajectory_pipeline.urls import without_credentials

Scope = Literal["day", "organization", "materialization"]
Unit = Literal["usd", "tokens"]


@dataclass(frozen=True)
class Cost:
    """Dollars, 0 where the model has no known price, and tokens of prompt and response."""

    usd: Decimal = Decimal(0)
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.usd - other.usd, self.tokens - other.tokens)


@dataclass(frozen=True)
class SpendTotals:
    """What calls of one scope took: those that ended, and at most those in flight or of killed processes."""

    spent: Cost = field(default_factory=Cost)
    reserved: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Cap:
    """A limit on the totals of one scope, in one unit; its name is the ``error_class`` of verdicts that it defers."""

    name: str
    scope: Scope
    unit: Unit
    limit: Decimal
    setting: str
    label: str

    def amount_of(self, amount: Cost) -> Decimal:
        """Return an amount in this cap's unit."""
        return amount.usd if self.unit == "usd" else Decimal(amount.tokens)

    def remaining(self, totals: SpendTotals) -> Decimal:
        """Return the headroom, less reservations; negative where a provider billed more."""
        return self.limit - self.amount_of(totals.spent) - self.amount_of(totals.reserved)

    def format_amount(self, amount: Decimal) -> str:
        """Return an amount of this cap's unit as a person reads it."""
        return f"{amount.normalize():f} USD" if self.unit == "usd" else f"{int(amount)} tokens"

    def __str__(self) -> str:
        return f"{self.label} of {self.format_amount(self.limit)} ({self.setting})"


@dataclass(frozen=True)
class BudgetShortfall:
    """Why a call may not begin: it needs more headroom than remains, in the cap's unit.

    ``could_free_up``: whether it would fit if the calls in flight cost nothing.
    """

    cap: Cap
    headroom: Cost
    remaining: Decimal
    could_free_up: bool

    @property
    def exceeds_cap(self) -> bool:
        """Whether it would not fit even if nothing had been spent."""
        return self.cap.amount_of(self.headroom) > self.cap.limit

    def __str__(self) -> str:
        if self.exceeds_cap:
            most = self.cap.format_amount(self.cap.amount_of(self.headroom))
            return f"one call may cost {most}, more than the whole of {self.cap}"
        return f"{self.cap} has no headroom left for it"


class BudgetExhausted(PipelineError):  # noqa: N818 - an expected end, not an error
    """A call did not begin, because a cap has no headroom for it; nothing was sent, and nothing is owed."""

    def __init__(self, shortfall: BudgetShortfall) -> None:
        super().__init__(str(shortfall))
        self.shortfall = shortfall


def find_shortfall(caps: Sequence[Cap], totals: Mapping[Scope, SpendTotals], headroom: Cost) -> BudgetShortfall | None:
    """Return the first cap without the headroom that a call needs, or None; a scope without totals has none spent."""
    for cap in caps:
        used, needed = totals.get(cap.scope, SpendTotals()), cap.amount_of(headroom)
        remaining = cap.remaining(used)
        if remaining < needed:
            return BudgetShortfall(cap, headroom, remaining, cap.limit - cap.amount_of(used.spent) >= needed)
    return None


@dataclass(frozen=True)
class Budget:
    """What judging may cost; a cap that is None is not set.

    Attributes:
        daily_usd: dollars a UTC day.
        organization_usd: dollars a UTC day of one organization.
        prices: by which calls are reserved and settled.
        allow_unpriced: whether a model without a known price may be asked; only caps in tokens hold it then.
    """

    daily_usd: Decimal | None = None
    organization_usd: Decimal | None = None
    materialization_usd: Decimal | None = None
    daily_tokens: int | None = None
    materialization_tokens: int | None = None
    prices: Prices = field(default_factory=Prices)
    allow_unpriced: bool = False

    @property
    def caps(self) -> tuple[Cap, ...]:
        """The caps that are set."""
        every: tuple[tuple[str, Scope, Unit, Decimal | int | None, str], ...] = (
            ("materialization_budget", "materialization", "usd", self.materialization_usd, "MATERIALIZATION"),
            ("materialization_tokens", "materialization", "tokens", self.materialization_tokens, "MATERIALIZATION"),
            ("organization_budget", "organization", "usd", self.organization_usd, "ORGANIZATION_DAILY"),
            ("daily_budget", "day", "usd", self.daily_usd, "DAILY"),
            ("daily_tokens", "day", "tokens", self.daily_tokens, "DAILY"),
        )
        return tuple(
            Cap(name, scope, unit, Decimal(limit), f"TRAJECTORY_{prefix}_BUDGET_{unit.upper()}", _SCOPE_LABELS[scope])
            for name, scope, unit, limit, prefix in every
            if limit is not None
        )

    def require_price(self, model: str, base_url: str, *, answers: bool = True) -> None:
        """Raise JudgeError for a model whose price no cap can hold: an unknown one, unless allowed, or 0.

        ``answers``: whether it writes answers; an embedding model has no price of these.
        """
        most = self.prices.max_cost(model, base_url, 1_000, 1 if answers else 0)
        if most == 0 and self.daily_tokens is None:
            raise JudgeError(
                f"The price of the model {model} at {without_credentials(base_url)} is 0, so no cap in dollars could"
                " hold: set a cap in tokens (TRAJECTORY_DAILY_BUDGET_TOKENS), or its real price (TRAJECTORY_PRICES)."
            )
        if self.allow_unpriced or most is not None:
            return
        raise JudgeError(
            f"No price is known for the model {model} at {without_credentials(base_url)}, so no cap in dollars could"
            " hold: name it in a price table (TRAJECTORY_PRICES), or set TRAJECTORY_ALLOW_UNPRICED=true, and a cap"
            " in tokens (TRAJECTORY_DAILY_BUDGET_TOKENS)."
        )

    def require_batch_price(self, model: str, base_url: str) -> None:
        """Raise JudgeError for a model whose price in a batch is not known, unless that is allowed."""
        if self.allow_unpriced or self.prices.of_batches.max_cost(model, base_url, 1, 1) is not None:
            return
        raise JudgeError(
            f"No batch price is known for the model {model} at {without_credentials(base_url)}: add `batch`, the share"
            " of its price that a batch costs (0.5 for half), to its entry in a price table (TRAJECTORY_PRICES), or set"
            " TRAJECTORY_JUDGE_MODE=online."
        )

    def max_call_cost(self, model: str, base_url: str, prompt_tokens: int, response_tokens: int) -> Cost:
        """Return what calls of so many tokens may cost at most."""
        usd = self.prices.max_cost(model, base_url, prompt_tokens, response_tokens)
        return Cost(usd or Decimal(0), prompt_tokens + response_tokens)


_SCOPE_LABELS: Mapping[Scope, str] = {
    "day": "the budget of a day (UTC)",
    "organization": "the budget of an organization and day (UTC)",
    "materialization": "the budget of a materialization",
}
