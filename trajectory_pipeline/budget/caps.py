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

Scope = Literal["day", "organization", "materialization"]


@dataclass(frozen=True)
class Cost:
    """Money and tokens.

    Attributes:
        usd: dollars; 0 where the model has no known price.
        tokens: of prompt and answer.
    """

    usd: Decimal = Decimal(0)
    tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.usd - other.usd, self.tokens - other.tokens)


@dataclass(frozen=True)
class SpendTotals:
    """What calls of one scope took so far.

    Attributes:
        spent: by calls that ended.
        reserved: for calls under way, and those of killed processes: at most.
    """

    spent: Cost = field(default_factory=Cost)
    reserved: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Cap:
    """A limit of one scope, in one unit.

    Attributes:
        name: as a verdict's ``error_class`` says it.
        scope: whose totals it limits.
        unit: what it limits.
        limit: the most.
        setting: environment variable that sets it.
        words: what it is, in a sentence.
    """

    name: str
    scope: Scope
    unit: Literal["usd", "tokens"]
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
    """Why a call may not begin.

    Attributes:
        cap: that lacks headroom for it.
        headroom: what the call needs.
        remaining: what is left.
        could_free_up: whether it would fit if the calls in flight cost nothing.
    """

    cap: Cap
    headroom: Cost
    remaining: Decimal
    could_free_up: bool

    def __str__(self) -> str:
        if self.cap.amount_of(self.headroom) > self.cap.limit:
            most = self.cap.format_amount(self.cap.amount_of(self.headroom))
            return f"one call may cost {most}, more than the whole of {self.cap}"
        return f"{self.cap} has no headroom left for it"


class BudgetExhausted(PipelineError):  # noqa: N818 - an expected end, not an error
    """A call did not begin, because a cap has no headroom for it; nothing was sent, and nothing is owed."""

    def __init__(self, shortfall: BudgetShortfall) -> None:
        super().__init__(str(shortfall))
        self.shortfall = shortfall


def find_shortfall(caps: Sequence[Cap], totals: Mapping[Scope, SpendTotals], headroom: Cost) -> BudgetShortfall | None:
    """Return the first cap that has no headroom for a call; None where all have.

    Args:
        caps: that are set.
        totals: of the scopes that cover the call; a missing one is zero.
        headroom: that the call needs.
    """
    for cap in caps:
        used = totals.get(cap.scope, SpendTotals())
        remaining = cap.remaining(used)
        if remaining < cap.amount_of(headroom):
            could_free_up = cap.limit - cap.amount_of(used.spent) >= cap.amount_of(headroom)
            return BudgetShortfall(cap, headroom, remaining, could_free_up)
    return None


@dataclass(frozen=True)
class Budget:
    """What judging may cost.

    Attributes:
        daily_usd: dollars a UTC day; None for no cap, as in all others.
        organization_usd: dollars a UTC day of one organization.
        materialization_usd: dollars of one materialization.
        daily_tokens: tokens a UTC day.
        materialization_tokens: tokens of one materialization.
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
        every = (
            (
                "materialization_budget",
                "materialization",
                "usd",
                self.materialization_usd,
                "MATERIALIZATION_BUDGET_USD",
            ),
            (
                "materialization_tokens",
                "materialization",
                "tokens",
                self.materialization_tokens,
                "MATERIALIZATION_BUDGET_TOKENS",
            ),
            ("organization_budget", "organization", "usd", self.organization_usd, "ORGANIZATION_DAILY_BUDGET_USD"),
            ("daily_budget", "day", "usd", self.daily_usd, "DAILY_BUDGET_USD"),
            ("daily_tokens", "day", "tokens", self.daily_tokens, "DAILY_BUDGET_TOKENS"),
        )
        return tuple(
            Cap(name, scope, unit, Decimal(limit), f"TRAJECTORY_{setting}", _SCOPE_LABELS[scope])  # type: ignore[arg-type]
            for name, scope, unit, limit, setting in every
            if limit is not None
        )

    def require_price(self, model: str, base_url: str) -> None:
        """Refuse a model without a known price, unless that is allowed.

        Raises:
            JudgeError: it has none; the text says what to do.
        """
        if self.allow_unpriced or self.prices.max_cost(model, base_url, 1, 1) is not None:
            return
        raise JudgeError(
            f"No price is known for the model {model} at {base_url}, so no cap in dollars could hold: name it in a"
            " price table (TRAJECTORY_PRICES), or set TRAJECTORY_ALLOW_UNPRICED=true, and caps in tokens"
            " (TRAJECTORY_DAILY_BUDGET_TOKENS)."
        )

    def max_call_cost(self, model: str, base_url: str, prompt_tokens: int, answer_tokens: int) -> Cost:
        """Return what calls of so many tokens may cost at most."""
        usd = self.prices.max_cost(model, base_url, prompt_tokens, answer_tokens)
        return Cost(usd or Decimal(0), prompt_tokens + answer_tokens)


_SCOPE_LABELS: Mapping[str, str] = {
    "day": "the budget of a day (UTC)",
    "organization": "the budget of an organization and day (UTC)",
    "materialization": "the budget of a materialization",
}
