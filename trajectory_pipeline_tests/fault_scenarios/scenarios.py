"""The moods of the simulated judge: a fault that strikes every call, or every third one.

Belongs here: which there are, and what they are set to so that none takes minutes. Does not belong here: what must hold
in all of them (``contract``).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trajectory_pipeline.demo.simulated_judge import FAULTS

PARAMS: dict[str, dict[str, Any]] = {
    "slow": {"seconds": 0.05},
    "late_answer": {"seconds": 4.0},
    "rate_limit": {"retry_after": 0.05},
    "rate_limit_date": {"retry_after": 0.0},
    "rate_limit_ms": {"retry_after_ms": 20},
    "limit_used_up": {"seconds": 0.05},
}
TIMEOUTS = {"hang": 2.0, "late_answer": 2.0, "slow_drip": 2.0}
"""Seconds that a call may take, where it is the fault that it takes longer; 30 in all other moods."""

ALWAYS, SOMETIMES = 1, 3


@dataclass(frozen=True)
class Mood:
    """A fault, and how often it strikes: 1 is every call, 3 every third."""

    fault: str | None
    every: int = ALWAYS
    timeout_seconds: float = 30.0
    params: dict[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return self.fault or "healthy"

    @property
    def orders(self) -> list[dict[str, Any]]:
        if self.fault is None:
            return []
        return [{"fault": self.fault, "params": self.params, "every": self.every}]


def mood(fault: str | None, every: int = ALWAYS) -> Mood:
    return Mood(fault, every, TIMEOUTS.get(fault or "", 30.0), PARAMS.get(fault or "", {}))


def every_mood() -> Iterator[Mood]:
    yield mood(None)
    for fault in FAULTS:
        yield mood(fault)
        yield mood(fault, SOMETIMES)
