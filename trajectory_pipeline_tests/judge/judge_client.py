"""One call that asks a judge over real HTTP, and what its records say."""

import asyncio
from typing import Any

from trajectory_pipeline.judge.client.call_record import AskResult, CallRecord
from trajectory_pipeline.judge.client.session import open_session
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.documents import ORDER
from trajectory_pipeline_tests.judge.provider import Provider
from trajectory_pipeline_tests.judge.rendering import render

KEY = "sk-test-0123456789abcdef"
PROMPT = built_in_prompt().messages(render(ORDER).text)


class CallLog:
    """The records passed to ``on_begin`` and ``on_end``, in order."""

    def __init__(self) -> None:
        self.began: list[CallRecord] = []
        self.ended: list[CallRecord] = []

    async def on_begin(self, attempt: CallRecord) -> None:
        self.began.append(attempt)

    async def on_end(self, attempt: CallRecord) -> None:
        self.ended.append(attempt)


def judge_at(url: str, **settings: Any) -> JudgeConfig:
    defaults = {"model": "some-model", "timeout_seconds": 5.0, "first_pause_seconds": 0.01}
    return JudgeConfig(base_url=url, api_key=KEY, **{**defaults, **settings})


def ask(url: str, log: CallLog | None = None, **settings: Any) -> AskResult[JudgeResponse]:
    log = log or CallLog()

    async def work() -> AskResult[JudgeResponse]:
        async with open_session(judge_at(url, **settings)) as session:
            return await session.ask(PROMPT, JudgeResponse, log.on_begin, log.on_end)

    return asyncio.run(work())


def ask_provider(*answers: Any, log: CallLog | None = None, **settings: Any) -> AskResult[JudgeResponse]:
    """Ask a provider that gives these answers in order, and then repeats the last."""

    def respond(number: int) -> tuple[int, Any, dict[str, str]]:
        answer = answers[min(number, len(answers)) - 1]
        return answer if isinstance(answer, tuple) else (200, answer, {})

    with Provider(respond) as provider:
        return ask(provider.url, log, **settings)


def error_classes(result: AskResult[JudgeResponse]) -> list[tuple[str, str | None]]:
    return [(attempt.result, attempt.error_class) for attempt in result.calls]


def purposes(result: AskResult[JudgeResponse]) -> list[str]:
    return [attempt.purpose for attempt in result.calls]
