"""Transcripts are rendered in another process where there are many: as in a thread, and none is lost with it."""

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from trajectory_pipeline.judge.judge_trajectory import RequestBuilder
from trajectory_pipeline.judge.policy import RefinementPolicy
from trajectory_pipeline.judge.redaction.redactor import RedactionTimeoutError
from trajectory_pipeline.judge.transcript.context import AgentContext, TaskContext
from trajectory_pipeline.judge.transcript.rendering import Rendering
from trajectory_pipeline.pipeline.renderer import WORTH_A_PROCESS, Renderer
from trajectory_pipeline_tests.judge.documents import ORDER

pytestmark = pytest.mark.process

CONTEXT = TaskContext(AgentContext("You sell shoes.", "[]", "at_capture"), [json.dumps(ORDER)])


def rendering(seconds: float = 60.0, tokens: int = 50_000) -> Rendering:
    return RequestBuilder([json.dumps(ORDER)], RefinementPolicy("m"), seconds=seconds, context=CONTEXT).rendering(
        tokens
    )


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Renderer]:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    renderer = Renderer(WORTH_A_PROCESS)
    yield renderer
    renderer.close()


def test_process_shows_what_is_shown_without_one(renderer: Renderer) -> None:
    many = [rendering(tokens=tokens) for tokens in (4_000, 50_000)]

    async def render_all() -> None:
        shown = await asyncio.gather(*map(renderer, many))
        assert shown == [one.render() for one in many]
        assert len(multiprocessing.active_children()) == 1

    asyncio.run(render_all())


def test_document_as_text_is_shown_as_the_document() -> None:
    parsed = RequestBuilder([ORDER], RefinementPolicy("m"), context=TaskContext(CONTEXT.agent, [ORDER]))
    assert parsed.build(50_000).shown_sha256 == (
        RequestBuilder([json.dumps(ORDER)], RefinementPolicy("m"), context=CONTEXT).build(50_000).shown_sha256
    )


def test_process_says_that_rendering_took_too_long(renderer: Renderer) -> None:
    with pytest.raises(RedactionTimeoutError):
        asyncio.run(renderer(rendering(seconds=-1)))


def test_transcripts_are_rendered_after_the_process_was_killed(renderer: Renderer) -> None:
    async def kill_and_render() -> None:
        before = await renderer(rendering())
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, signal.SIGKILL)
        assert await asyncio.gather(*(renderer(rendering()) for _ in range(3))) == [before] * 3
        assert multiprocessing.active_children() == []

    asyncio.run(kill_and_render())


def test_few_transcripts_start_no_process() -> None:
    few = Renderer(WORTH_A_PROCESS - 1)
    asyncio.run(few(rendering()))
    assert multiprocessing.active_children() == []


_PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from trajectory_pipeline.runtime.worker_process import prepare_worker_process

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, initializer=prepare_worker_process)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the process still waits for work"
        time.sleep(0.05)
