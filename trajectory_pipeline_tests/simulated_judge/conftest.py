"""One server for all tests of the folder; each test finds its plan of faults and its books empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from trajectory_pipeline.simulated_judge import SimulatedJudge


@pytest.fixture(scope="session")
def running_judge() -> Iterator[SimulatedJudge]:
    with SimulatedJudge.start() as judge:
        yield judge


@pytest.fixture
def judge(running_judge: SimulatedJudge) -> SimulatedJudge:
    running_judge.clear_faults()
    running_judge.reset_calls()
    return running_judge


@pytest.fixture
def client(judge: SimulatedJudge) -> Iterator[OpenAI]:
    with OpenAI(base_url=judge.base_url, api_key="not needed", max_retries=0, timeout=10) as client:
        yield client
