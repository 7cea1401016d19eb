"""The contract of ``kill -9``: whatever a worker was doing, one ordinary run makes all true and leaves nothing behind.

Real processes. A seed says what a kill waits for: a number of files or ledger entries, a COPY that is under way, a
temporary file that grows, or a moment later than one of these.
"""

import random
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from trajectory_pipeline_tests.crashes.expected import assert_complete
from trajectory_pipeline_tests.crashes.processes import Workers, wait_until
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.process, pytest.mark.heavy]

KILLS = 6


def moments(pipeline: Pipeline, chance: random.Random, hours: int) -> dict[str, Callable[[], bool]]:
    """What can be seen of a worker from outside."""
    number = chance.randint(1, hours)
    began = pipeline.ask("SELECT clock_timestamp() AS now")[0]["now"]

    def entries(asset: str) -> int:
        question = "SELECT count(*) AS n FROM trajectory.partitions WHERE asset = %s AND materialized_at > %s"
        return int(pipeline.ask(question, asset, began)[0]["n"])

    def doing(statement: str) -> bool:
        question = "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
        return bool(pipeline.ask(f"{question} AND state <> 'idle'", statement)[0]["n"])

    return {
        f"{number} partitions read": lambda: entries("terminal_runs") >= number,
        f"{number} partitions converted": lambda: entries("trajectories") >= number,
        "a COPY under way": lambda: doing("COPY staged%"),
        "a merge under way": lambda: doing("WITH merged%"),
        "a temporary file": lambda: any(pipeline.folder.rglob(".writing-*")),
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1, 2])
def test_one_run_after_many_kills_completes_everything(
    pipeline: Pipeline, crew: Workers, hours: list[datetime], seed: int
) -> None:
    chance = random.Random(seed)
    for number in range(KILLS):
        mark(pipeline, f"version {number}", hours)
        what, reached = chance.choice(sorted(moments(pipeline, chance, len(hours)).items()))
        pid = crew.start(pipeline, hours)
        wait_until(lambda: reached() or crew.ended(pid), what)  # noqa: B023 - waited for at once
        time.sleep(chance.random() * 0.05)
        crew.kill(pid)
    assert_complete(pipeline, hours)
