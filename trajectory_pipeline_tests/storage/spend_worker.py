"""A worker in a process of its own that begins and ends calls as fast as it can.

``python -m … URL SEED BATCHES CAP``: with 0 batches it begins one, and is killed amid it.
"""

import os
import random
import signal
import sys
from decimal import Decimal

from trajectory_pipeline.budget.caps import Budget
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.storage.calls import begin_calls, end_calls, ended_attempt, reservation


def main(url: str, seed: int, batches: int, cap: str) -> None:
    choice = random.Random(seed)
    caps = Budget(daily_usd=Decimal(cap), organization_usd=Decimal(cap), daily_tokens=10**9).caps
    with open_verdicts(TrajectoryDatabase(url)) as store:
        for _ in range(batches or 1):
            batch = [reservation(str(Decimal(choice.randint(1, 100)) / 1000)) for _ in range(choice.randint(1, 4))]
            refusals = begin_calls(store.connection, caps, batch)
            if not batches:
                os.kill(os.getpid(), signal.SIGKILL)
            begun = [call for call, refusal in zip(batch, refusals, strict=True) if refusal is None]
            ends = [ended_attempt(call, str(call.reserved.usd * choice.randint(0, 10) / 10)) for call in begun]
            if ends:
                end_calls(store.connection, ends)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
