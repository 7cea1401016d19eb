"""What judging did, in numbers."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from decimal import Decimal

from trajectory_pipeline.judge.client.call_record import CallRecord


@dataclass
class JudgingStats:
    """What judging did.

    Attributes:
        judged: trajectories that the judge was asked about.
        calls: HTTP calls made.
        input_tokens: prompt tokens of these calls, as far as they are reported; ``output_tokens`` alike.
        cost_usd: known cost of these calls; a lost call counts at its reserved cost.
        unpriced_calls: answered calls without a known price.
        cut_prompts: calls whose prompt the server cut, by the tokens that it counted.
        submitted: trajectories that wait for a batch now.
        models: that answered.
        simulated_models: those of them that are simulations.
        deferred: deferred verdicts, by the cap that was exhausted.
        claimed_elsewhere: verdicts that another worker reached in the meantime.
    """

    judged: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced_calls: int = 0
    cut_prompts: int = 0
    submitted: int = 0
    models: set[str] = field(default_factory=set)
    simulated_models: set[str] = field(default_factory=set)
    deferred: Counter[str] = field(default_factory=Counter)
    claimed_elsewhere: int = 0

    def add(self, other: "JudgingStats") -> None:
        """Count what another one did as well."""
        for name, value in vars(JudgingStats()).items():
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, mine | others if isinstance(value, set) else mine + others)

    def add_calls(self, calls: Collection[CallRecord]) -> None:
        """Count the calls that were made for one verdict."""
        self.calls += len(calls)
        self.input_tokens += sum(call.usage.input_tokens for call in calls if call.usage)
        self.output_tokens += sum(call.usage.output_tokens for call in calls if call.usage)
        self.unpriced_calls += sum(call.cost_usd is None for call in calls if call.result not in ("error", "lost"))
        self.cut_prompts += sum(call.share_read < 1 for call in calls)
        self.cost_usd += sum((call.cost_usd or Decimal(0) for call in calls), Decimal(0))
        self.models |= {call.response_model for call in calls if call.response_model}
        self.simulated_models |= {call.response_model for call in calls if call.response_model and call.simulated}
