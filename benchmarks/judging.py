"""How fast a partition is judged, compared with the client library alone.

The provider here answers at once or after a delay: the simulated judge, which applies rules, is slower. The whole stage
reads, renders, reserves, calls, checks and stores. Provider, client and stage are separate processes; all calls go to
127.0.0.1.
"""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.bench import FIRST_HOUR, Bench, Sinks, capture
from benchmarks.letta_database.load import DatabaseSpec
from benchmarks.measuring import Child, Result, in_child

CONCURRENCY = 64
MODEL = "simulated-judge"

_ANSWER: dict[str, Any] = {
    "requirements": [
        {
            "statement": f"The agent does what the user asked for, part {number} of it, and says so.",
            "kind": "action",
            "evidence": [{"message_id": "message-none", "quote": "A quote that stands nowhere."}],
            "reasoning": "The tool returned what was asked for, and the agent said the same in its last message.",
            "status": "met",
        }
        for number in range(4)
    ],
    "failure": None,
    "learning": {
        "reasoning": "A plain task, plainly done, with one tool.",
        "interaction_depth": 2,
        "task_complexity": 2,
        "tool_use": 3,
        "reference_value": 2,
    },
    "key_decisions": [],
    "summary": "The user wanted something, the agent looked it up and gave it. " * 10,
    "lesson": None,
    "tags": ["lookup", "tool", "plain"],
    "task_category": "information_retrieval",
}

_FINDINGS: dict[str, Any] = {"findings": [], "account": "The agent looked something up."}


# ---- the provider ---------------------------------------------------------------------------------------------------


@contextmanager
def provider(latency: float) -> Iterator[str]:
    """Run a provider in a process of its own; gives its URL.

    Args:
        latency: seconds that each answer takes.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, latency), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, latency: float) -> None:
    from aiohttp import web

    def completion(answer: dict[str, Any]) -> bytes:
        message = {"role": "assistant", "content": json.dumps(answer)}
        output = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 5000, "completion_tokens": 700, "total_tokens": 5700},
        }
        return json.dumps(output).encode()

    verdict, findings = completion(_ANSWER), completion(_FINDINGS)

    async def chat(request: web.Request) -> web.Response:
        # A transcript that is too long for one prompt is asked about in parts.
        part = b"part_findings" in await request.read()
        await asyncio.sleep(latency)
        return web.Response(body=findings if part else verdict, content_type="application/json")

    async def run() -> None:
        application = web.Application(client_max_size=2**27)
        application.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


# ---- what is measured, each in a process of its own -----------------------------------------------------------------


def client_alone(url: str, calls: int, characters: int) -> float:
    """Make calls by the client library's fastest transport and typed method; returns seconds."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    from trajectory_pipeline.judge.response_schema import JudgeResponse

    messages: Any = [{"role": "user", "content": "x" * characters}]

    async def work() -> float:
        async with AsyncOpenAI(
            api_key="none", base_url=url, max_retries=0, http_client=DefaultAioHttpClient()
        ) as client:

            async def one() -> None:
                await client.chat.completions.parse(
                    model=MODEL, messages=messages, temperature=0.0, response_format=JudgeResponse
                )

            return await _all(one, calls)

    return asyncio.run(work())


def plain_http(url: str, calls: int, characters: int) -> float:
    """Make calls by plain aiohttp, which shows what the provider can do; returns seconds."""
    import aiohttp

    body = json.dumps({"messages": [{"role": "user", "content": "x" * characters}]}).encode()

    async def work() -> float:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> None:
                async with session.post(f"{url}/chat/completions", data=body) as response:
                    await response.read()

            return await _all(one, calls)

    return asyncio.run(work())


async def _all(one: Callable[[], Awaitable[None]], calls: int) -> float:
    left = iter(range(calls))

    async def work() -> None:
        for _ in left:
            await one()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return time.perf_counter() - started


def whole_stage(url: str, database_url: str, folder: str, policy: int) -> dict[str, float]:
    """Judge the partition; returns calls, seconds from first to last, and the mean length of a prompt.

    Args:
        url: of the provider.
        database_url: of the trajectory database.
        folder: of the Parquet storage.
        policy: a number that makes the policy another one, so that nothing is judged yet.
    """
    from trajectory_pipeline.budget.caps import Budget
    from trajectory_pipeline.budget.prices import load_prices
    from trajectory_pipeline.demo.simulated_judge.prices import PRICE_TABLE
    from trajectory_pipeline.judge.config import JudgeConfig
    from trajectory_pipeline.pipeline.judge import JudgingRun
    from trajectory_pipeline.storage.storage import Storage

    started = time.perf_counter()
    judging = JudgingRun(
        Storage.at(folder, database_url),
        JudgeConfig(
            MODEL,
            url,
            "not-needed",
            max_prompt_tokens=100_000 + policy,
            concurrency=CONCURRENCY,
            budget=Budget(prices=load_prices(PRICE_TABLE)),
        ),
    )
    judging.judge_partitions([FIRST_HOUR])
    result = judging.publish(FIRST_HOUR)
    taken = time.perf_counter() - started
    if result.errors:
        raise RuntimeError(f"verdicts failed; is the provider's answer not as the schema asks? {dict(result.errors)}")
    characters = _one_number(database_url, "SELECT avg(prompt_characters) FROM trajectory.verdict_attempts")
    return {"calls": result.calls, "seconds": taken, "characters": characters}


def _one_number(url: str, question: str) -> float:
    import psycopg

    with psycopg.connect(url) as connection:
        row = connection.execute(question.encode()).fetchone()
    if row is None:
        raise RuntimeError(f"no answer to {question}")
    return float(row[0])


# ---- the measurement ------------------------------------------------------------------------------------------------


def measure(bench: Bench) -> Result:
    """Measure client and stage in turn, over a provider that takes 200 ms, and the stage over one that takes 2 s."""
    result = Result("10", f"Judging, {CONCURRENCY} calls at once")
    with provider(0.0) as url:
        calls = 4_000
        taken = in_child(f"{__name__}:plain_http", url=url, calls=calls, characters=20_000).value
    result.add("the provider by itself: plain HTTP, prompts of 20,000 characters, no latency", calls / taken, "calls/s")
    quick, slow = bench.size.judged
    _quick(bench, quick, result)
    _slow(bench, slow, result)
    return result


def _quick(bench: Bench, runs: int, result: Result) -> None:
    alone, reached, peaks = list[float](), list[float](), list[float]()
    with bench.sinks() as sinks, provider(0.2) as url:
        capture(bench.letta(DatabaseSpec(runs, 1, FIRST_HOUR)), sinks.database_url, str(sinks.folder))
        for number in range(bench.size.tries):
            judged = _judged(url, sinks, number)
            reached.append(judged.value["calls"] / judged.value["seconds"])
            peaks.append(judged.peak_mb)
            size = round(judged.value["characters"])
            child = in_child(f"{__name__}:client_alone", url=url, calls=runs, characters=size)
            alone.append(runs / child.value)
    reference = result.add("200 ms: the client library alone, by its fastest transport", alone, "calls/s")
    figure = result.add("200 ms: the whole stage", reached, "calls/s")
    result.add("the stage beside the client alone", figure / reference, "×", at_least=0.8)
    result.add(f"peak memory of the stage, {runs:,} trajectories", peaks, "MB")
    result.notes.append(f"Prompts have {size:,} characters on the average; the client alone sends as many.")


def _slow(bench: Bench, runs: int, result: Result) -> None:
    with bench.sinks() as sinks, provider(2.0) as url:
        capture(bench.letta(DatabaseSpec(runs, 1, FIRST_HOUR)), sinks.database_url, str(sinks.folder))
        judged = _judged(url, sinks, 0)
    figure = result.add("2 s: the whole stage", judged.value["calls"] / judged.value["seconds"], "calls/s")
    share = figure / (CONCURRENCY / 2.0)
    result.add("2 s: share of what the concurrency allows", share, "×", at_least=0.95)
    result.add(f"peak memory of the stage, {runs:,} trajectories", judged.peak_mb, "MB")


def _judged(url: str, sinks: Sinks, policy: int) -> Child:
    return in_child(
        f"{__name__}:whole_stage", url=url, database_url=sinks.database_url, folder=str(sinks.folder), policy=policy
    )
