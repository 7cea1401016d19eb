"""Scenarios: a fault of the simulated judge that affects every call, or every third one.

Their parameters and timeouts are short, so that none takes minutes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trajectory_pipeline.demo.simulated_judge import FAULTS, FaultStage

PARAMS: dict[str, dict[str, Any]] = {
    "slow": {"seconds": 0.05},
    "late_answer": {"seconds": 4.0},
    "rate_limit": {"retry_after": 0.05},
    "rate_limit_date": {"retry_after": 0.0},
    "rate_limit_ms": {"retry_after_ms": 20},
    "limit_used_up": {"seconds": 0.05},
}
TIMEOUTS = {"hang": 2.0, "late_answer": 2.0, "slow_drip": 2.0}
"""Timeout of a call in seconds for the faults that exceed it; 30 in all other scenarios."""

ALWAYS, SOMETIMES = 1, 3


@dataclass(frozen=True)
class Scenario:
    """A fault, and how often it applies: 1 is every call, 3 every third."""

    fault: str | None
    every: int = ALWAYS
    timeout_seconds: float = 30.0
    params: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return self.fault or "healthy"

    @property
    def planned_faults(self) -> list[dict[str, Any]]:
        if self.fault is None:
            return []
        return [{"fault": self.fault, "params": self.params, "every": self.every}]


def scenario(fault: str | None, every: int = ALWAYS) -> Scenario:
    return Scenario(fault, every, TIMEOUTS.get(fault or "", 30.0), PARAMS.get(fault or "", {}))


def all_scenarios() -> Iterator[Scenario]:
    yield scenario(None)
    for fault in (
        name for name, fault in FAULTS.items() if fault.stage not in (FaultStage.DECISION, FaultStage.EMBEDDING)
    ):
        yield scenario(fault)
        yield scenario(fault, SOMETIMES)
