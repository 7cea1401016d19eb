"""Asking a judge over real HTTP, in one line."""

import asyncio
from typing import Any

from trajectory_pipeline.judge.client.session import AskResult, CallRecord, open_session
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.prompt import messages
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.documents import ORDER
from trajectory_pipeline_tests.judge.provider import Provider
from trajectory_pipeline_tests.judge.rendering import whole

KEY = "sk-test-0123456789abcdef"
PROMPT = messages(whole(ORDER).text)


class CallLog:
    """What ``began`` and ``ended`` were told."""

    def __init__(self) -> None:
        self.began: list[CallRecord] = []
        self.ended: list[CallRecord] = []

    async def on_begin(self, attempt: CallRecord) -> None:
        self.began.append(attempt)

    async def on_end(self, attempt: CallRecord) -> None:
        self.ended.append(attempt)


def judge_at(url: str, **settings: Any) -> JudgeConfig:
    known = {"model": "some-model", "timeout_seconds": 5.0, "first_pause_seconds": 0.01}
    return JudgeConfig(base_url=url, api_key=KEY, **{**known, **settings})


def ask(url: str, told: CallLog | None = None, **settings: Any) -> AskResult[JudgeResponse]:
    told = told or CallLog()

    async def work() -> AskResult[JudgeResponse]:
        async with open_session(judge_at(url, **settings)) as session:
            return await session.ask(PROMPT, JudgeResponse, told.on_begin, told.on_end)

    return asyncio.run(work())


def ask_provider(*answers: Any, told: CallLog | None = None, **settings: Any) -> AskResult[JudgeResponse]:
    """Ask a provider that gives these answers, the last of them again and again."""

    def answering(number: int) -> tuple[int, Any, dict[str, str]]:
        answer = answers[min(number, len(answers)) - 1]
        return answer if isinstance(answer, tuple) else (200, answer, {})

    with Provider(answering) as provider:
        return ask(provider.url, told, **settings)


def error_classes(asked: AskResult[JudgeResponse]) -> list[tuple[str, str | None]]:
    return [(attempt.result, attempt.error_class) for attempt in asked.calls]


def purposes(asked: AskResult[JudgeResponse]) -> list[str]:
    return [attempt.purpose for attempt in asked.calls]
