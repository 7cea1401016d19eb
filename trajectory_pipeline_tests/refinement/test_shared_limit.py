"""The contract of a limit that workers share, as the provider sees it: together they call no faster than allowed."""

import subprocess
import sys
import textwrap
from datetime import datetime

from trajectory_pipeline.hours import key_of
from trajectory_pipeline.sample.load import sample_partitions
from trajectory_pipeline.simulated_judge import SimulatedJudge
from trajectory_pipeline_tests.stages.pipeline import Pipeline

A_MINUTE = 300
BETWEEN_SECONDS = 60 / A_MINUTE
LATE_SECONDS = 1.0
"""That the first call may reach the server after its turn has come."""


def worker(pipeline: Pipeline, hour: datetime) -> subprocess.Popen[str]:
    """A process that judges a partition once it is told to."""
    program = f"""
        from pathlib import Path
        from trajectory_pipeline.hours import hour_of
        from trajectory_pipeline_tests.stages.pipeline import Pipeline

        pipeline = Pipeline(
            {pipeline.letta_url!r},
            {pipeline.database_url!r},
            Path({str(pipeline.folder)!r}),
            {pipeline.judge_url!r},
            judge_settings={{"requests_per_minute": {A_MINUTE}}},
        )
        print("ready", flush=True)
        input()
        print(pipeline.refine(hour_of({key_of(hour)!r})).calls)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_together_call_no_faster_than_allowed(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    by_size = sorted(sample_partitions().items(), key=lambda item: item[1])
    hours = [hour for hour, _ in by_size[-2:]]
    pipeline.capture(*hours)
    workers = [worker(pipeline, hour) for hour in hours]
    for process in workers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in workers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    calls = [int(process.communicate(timeout=120)[0]) for process in workers]

    books = judge.calls(1_000)
    arrived = sorted(datetime.fromisoformat(call["started_at"]) for call in books["calls"])
    assert min(calls) > 5
    assert len(arrived) == sum(calls) == books["received"]
    # Each alone would keep the limit too, and both of them be twice as fast.
    for number, moment in enumerate(arrived):
        assert (moment - arrived[0]).total_seconds() >= number * BETWEEN_SECONDS - LATE_SECONDS
    assert sum(calls) * BETWEEN_SECONDS > 4 * LATE_SECONDS
