"""Runs made up for tests of task families."""

from datetime import timedelta
from typing import Any

import numpy as np

from trajectory_pipeline_tests.storage.postgres.searchable import NOON, Run

CENTERS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
OUTCOMES = ("success", "success", "failure", "partial_success", "unknown", None)


def kind_of_task(run_id: str) -> int:
    return int(run_id.split("-")[1]) % len(CENTERS)


def made_up(numbers: range, *, minutes: int = 0, **more: Any) -> list[Run]:
    """Runs of three kinds of tasks, each a little off its kind's direction."""
    rng = np.random.default_rng(numbers.start)
    return [
        Run(
            f"run-{n:03}",
            vector=(np.array(CENTERS[n % 3]) + rng.uniform(-0.15, 0.15, 3)).round(3).tolist(),
            end_time=NOON + timedelta(minutes=n + minutes),
            judged_outcome=OUTCOMES[n % len(OUTCOMES)],
            **more,
        )
        for n in numbers
    ]
