"""The client of the session's judge, as a user of the API has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge


@pytest.fixture
def client(judge: SimulatedJudge) -> Iterator[OpenAI]:
    with OpenAI(base_url=judge.base_url, api_key="not needed", max_retries=0, timeout=10) as client:
        yield client
