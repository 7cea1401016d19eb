"""The rate limit that processes share, as the provider sees it: together they call no faster than allowed."""

from datetime import datetime

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.start_together import told_by

pytestmark = pytest.mark.heavy

PER_MINUTE = 300
INTERVAL_SECONDS = 60 / PER_MINUTE
TOLERANCE_SECONDS = 1.0
"""How late after its slot the first call may reach the server."""


def worker(pipeline: Pipeline, hour: datetime) -> str:
    """A program that judges a partition and prints how many calls that took."""
    return f"""
        from pathlib import Path
        from trajectory_pipeline.partition_keys import parse_partition_key
        from trajectory_pipeline_tests.pipeline.materializing import Pipeline

        pipeline = Pipeline(
            {pipeline.letta_url!r},
            {pipeline.database_url!r},
            Path({str(pipeline.folder)!r}),
            {pipeline.judge_url!r},
            judge_settings={{"requests_per_minute": {PER_MINUTE}}},
        )
        print("ready", flush=True)
        input()
        print(pipeline.refine(parse_partition_key({partition_key(hour)!r})).calls)
    """


def test_rate_limit_holds_for_two_processes_together(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    by_size = sorted(sample_partitions().items(), key=lambda item: item[1])
    hours = [hour for hour, _ in by_size[-2:]]
    pipeline.capture(*hours)
    calls = [int(output) for output in told_by([worker(pipeline, hour) for hour in hours])]

    usage_log = judge.calls(1_000)
    arrived = sorted(datetime.fromisoformat(call["started_at"]) for call in usage_log["calls"])
    assert min(calls) > 5
    assert len(arrived) == sum(calls) == usage_log["received"]
    # If each process had a limit of its own, the two would be twice as fast.
    for number, time in enumerate(arrived):
        assert (time - arrived[0]).total_seconds() >= number * INTERVAL_SECONDS - TOLERANCE_SECONDS
    assert sum(calls) * INTERVAL_SECONDS > 4 * TOLERANCE_SECONDS
