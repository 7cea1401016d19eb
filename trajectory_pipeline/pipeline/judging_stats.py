"""What judging did so far, counted for each partition, and the progress line that is built from it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from trajectory_pipeline.judge.client.call_record import CallRecord

REPORT_SECONDS = 5.0
"""Least time between two progress lines."""


@dataclass
class JudgingStats:
    """What judging did.

    Attributes:
        judged: trajectories that the judge was asked about.
        calls: HTTP calls made.
        cost_usd: known cost of these calls; a lost call counts at its reserved cost.
        unpriced_calls: answered calls without a known price.
        models: names of the models that answered.
        simulated_models: those of them that are simulations.
        deferred: deferred verdicts, by the cap that was exhausted.
        claimed_elsewhere: verdicts that another worker reached in the meantime.
    """

    judged: int = 0
    calls: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced_calls: int = 0
    models: set[str] = field(default_factory=set)
    simulated_models: set[str] = field(default_factory=set)
    deferred: Counter[str] = field(default_factory=Counter)
    claimed_elsewhere: int = 0

    def add_calls(self, calls: Sequence[CallRecord]) -> None:
        """Count the calls that were made for one verdict."""
        self.calls += len(calls)
        self.unpriced_calls += sum(call.cost_usd is None for call in calls if call.result not in ("error", "lost"))
        self.cost_usd += sum((call.cost_usd or Decimal(0) for call in calls), Decimal(0))
        self.models |= {call.response_model for call in calls if call.response_model}
        self.simulated_models |= {call.response_model for call in calls if call.response_model and call.simulated}


class JudgingProgress:
    """Reports how many trajectories are done, and what they cost, at most every few seconds.

    Args:
        total: trajectories to judge.
        stats: by partition key, of all partitions that are judged.
        report: takes a progress line.
    """

    def __init__(self, total: int, stats: Mapping[str, JudgingStats], report: Callable[[str], None]) -> None:
        self.report = report
        self._total = total
        self._done = 0
        self._stats = stats
        self._reported_at = time.monotonic()

    def __str__(self) -> str:
        return f"{self._done} of {self._total} trajectories"

    def count_done(self) -> None:
        """Count one more trajectory as done."""
        self._done += 1

    def report_if_due(self) -> None:
        """Report, unless the last report is too recent."""
        if time.monotonic() - self._reported_at > REPORT_SECONDS:
            self.report_now()

    def report_now(self) -> None:
        """Report whatever the time."""
        self._reported_at = time.monotonic()
        deferred = sum(stats.deferred.total() for stats in self._stats.values())
        cost = sum((stats.cost_usd for stats in self._stats.values()), Decimal(0))
        suffix = f", {deferred} deferred by a cap" if deferred else ""
        self.report(f"{self} judged, {cost} USD{suffix}")
