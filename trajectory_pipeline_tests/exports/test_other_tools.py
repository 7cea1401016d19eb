"""Exports opened by the tools that they are for, each in its own environment or process: `make test-heavy`."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trajectory
from hypothesis import HealthCheck, given, settings

from trajectory_pipeline.exports import writers
from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.otel import telemetry_of
from trajectory_pipeline.exports.otlp import OtlpSender
from trajectory_pipeline.exports.scout import scout_row
from trajectory_pipeline.exports.source import ExportRun, json_bytes
from trajectory_pipeline.exports.trajectory_v1 import trajectory_v1_records
from trajectory_pipeline.exports.writers import ScoutTables
from trajectory_pipeline_tests.conversion.made_runs import made_runs, renamed
from trajectory_pipeline_tests.conversion.raw_runs import Raw
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs
from trajectory_pipeline_tests.conversion.strategies import raw_runs
from trajectory_pipeline_tests.exports.content import Fact, called, export_runs, returned, said
from trajectory_pipeline_tests.exports.environments import ROOT, environment
from trajectory_pipeline_tests.exports.test_otel import a_run

pytestmark = [pytest.mark.heavy, pytest.mark.process, pytest.mark.timeout(900)]
SCOUT = "inspect-scout==0.6.1"
PHOENIX = "arize-phoenix==20.26.1"


@pytest.fixture(scope="module")
def runs() -> list[ExportRun]:
    """The sample's, those made by hand, and some by chance."""
    return export_runs([*sample_runs(), *made_runs(), *_by_chance()])


def _by_chance() -> list[Raw]:
    found: list[Raw] = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(raw_runs())
    def collect(raw: Raw) -> None:
        found.append(renamed(raw, f"run-by-chance-{len(found)}"))

    collect()
    return found


# ---- Inspect Scout -------------------------------------------------------------------------------------------------

_READ = """
import asyncio, json, sys
from inspect_scout import transcripts_from
from inspect_scout._transcript.types import TranscriptContent

async def main():
    async with transcripts_from(sys.argv[1]).reader() as reader:
        async for info in reader.index():
            transcript = await reader.read(info, TranscriptContent(messages="all"))
            messages = [message.model_dump(mode="json", exclude_none=True) for message in transcript.messages]
            print(json.dumps({"run_id": info.task_id, "info": info.model_dump(mode="json"), "messages": messages}))

asyncio.run(main())
"""


def test_scout_reads_what_the_runs_hold(runs: list[ExportRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = environment("scout", SCOUT) / "python"
    monkeypatch.setattr(writers, "ROWS_AT_ONCE", 20)
    monkeypatch.setattr(writers, "GROUPS_IN_A_FILE", 3)
    writer = ScoutTables(tmp_path)
    for number, run in enumerate(runs):
        writer.write(scout_row(run), "train" if number % 3 else "test")
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"train.parquet", "train-2.parquet", "test.parquet"}
    checked = subprocess.run([python.with_name("scout"), "db", "validate", tmp_path], capture_output=True, check=True)
    assert b"Schema validation passed" in checked.stdout
    done = subprocess.run([python, "-c", _READ, tmp_path], capture_output=True, text=True, check=True)
    read = {line["run_id"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert read.keys() == {run.run_id for run in runs}
    for run in runs:
        info, messages = read[run.run_id]["info"], read[run.run_id]["messages"]
        if run.system_prompt is not None:
            assert messages.pop(0)["content"] == run.system_prompt
        facts = [fact for message in messages for fact in _of_message(message)]
        assert [fact for fact in facts if fact[0] != "returned"] == said(run, as_heard=True)
        assert sorted(fact for fact in facts if fact[0] == "returned") == returned(run)
        assert (info["score"], info["agent"]) == (None, run.trajectory["agent_name"])
        assert info["metadata"]["heuristic_outcome"] == run.trajectory["heuristic_outcome"]


def _of_message(message: dict[str, Any]) -> Iterator[Fact]:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    if message["role"] == "tool":
        yield ("returned", message.get("tool_call_id", ""), text)
        return
    yield from (("reasoned", part["reasoning"]) for part in parts if part["type"] == "reasoning")
    yield ({"assistant": "agent"}.get(message["role"], message["role"]), text)
    for call in message.get("tool_calls", ()):
        odd = "parse_error" in call
        yield called(call["function"], call["arguments"]["arguments_text"] if odd else json.dumps(call["arguments"]))


# ---- trajectory-v1 -------------------------------------------------------------------------------------------------


def test_letta_package_accepts_the_records_and_makes_the_same_of_atif(runs: list[ExportRun], tmp_path: Path) -> None:
    """Its validator is run as it is; and its own reader of ATIF 1.7 gives the same records as our writer."""
    records = {run.run_id: found for run in runs if isinstance(found := trajectory_v1_records(run), list)}
    assert len(records) > 200
    bundle = Path(trajectory.__file__).parent / "_vendor" / "trajectory-cli.mjs"
    source, end = (
        bundle.read_text(encoding="utf-8").split("main().catch", 1)[0],
        (
            "const given = JSON.parse(readFileSync(0, 'utf8'));"
            "const problem = (one) => { try { validateTranscript(one); } catch (error) { return error.message; } };"
            "process.stdout.write(JSON.stringify(given.map((one) => problem(one) ?? null)));"
        ),
    )
    script = tmp_path / "validate.mjs"
    script.write_text(source + end, encoding="utf-8")
    done = subprocess.run(
        ["node", script], input=json.dumps(list(records.values())), capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) == {None}
    unbounded: Any = {"toolArguments": {"maxCharacters": None}, "toolResults": {"maxCharacters": None}}
    mine = [run for run in runs if run.run_id in records]
    theirs = trajectory.normalize_many(
        {
            "source": "atif",
            "transcript": json_bytes(atif_trajectory(run, "1.7")[0]).decode(),
            "filters": {"systemMessages": "include"},
            "bounds": unbounded,
        }
        for run in mine
    )
    for run, result in zip(mine, theirs, strict=True):
        if not any(number for loss, number in run.losses.items() if loss.startswith(_LOST_BY_RECORDS_ALONE)):
            assert _comparable(records[run.run_id]) == _comparable(result["records"]), run.run_id


_LOST_BY_RECORDS_ALONE = ("arguments that are no JSON object", "texts of role")
"""What ATIF keeps, in `extra` or as a system step that names the role, and records have no place for."""


def _comparable(records: Any) -> list[Any]:
    """Return records without what an ATIF file does not tell its reader: whether a tool succeeded, exact times."""
    found = []
    for record in records[1:]:
        kept = {name: value for name, value in record.items() if name not in ("ok", "timestamp")}
        if "tool_calls" in kept:
            kept["tool_calls"] = [{**call, "args": json.loads(call["args"])} for call in kept["tool_calls"]]
        found.append(kept)
    return found


# ---- Phoenix, which takes OpenInference over OTLP ------------------------------------------------------------------


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Phoenix server."""
    binaries = environment("phoenix", PHOENIX)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    variables = {
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": ports[0],
        "PHOENIX_GRPC_PORT": ports[1],
        "PHOENIX_WORKING_DIR": str(tmp_path_factory.mktemp("phoenix")),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    server = subprocess.Popen(
        [binaries / "phoenix", "serve"],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        for _ in range(240):
            assert server.poll() is None, "Phoenix has ended"
            try:
                httpx2.get(f"{url}/healthz", timeout=2)
                break
            except httpx2.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def test_phoenix_shows_the_spans_of_a_run_once_however_often_they_are_sent(phoenix: str) -> None:
    telemetry = telemetry_of(a_run(), openinference=True)
    assert telemetry is not None
    sender = OtlpSender(phoenix, {})
    for _ in range(2):
        assert sender.write(telemetry, "train") is None
    sender.close()
    spans: list[Any] = []
    for _ in range(60):
        answer = httpx2.get(f"{phoenix}/v1/projects/default/spans", timeout=10)
        spans = answer.json()["data"] if answer.status_code == httpx2.codes.OK else []
        if len(spans) >= len(telemetry.spans):
            break
        time.sleep(0.5)
    kinds = {span["name"]: span["span_kind"] for span in spans}
    assert kinds == {"invoke_agent Ada": "AGENT", "chat gpt-4o-mini": "LLM", "execute_tool find": "TOOL"}
    assert len(spans) == 4
    (tool,) = [span for span in spans if span["span_kind"] == "TOOL"]
    assert tool["attributes"]["input.value"] == '{"town": "Oslo"}'


# ---- the docs' commands --------------------------------------------------------------------------------------------


def test_scout_example_of_the_docs_runs(runs: list[ExportRun], tmp_path: Path) -> None:
    """`transcripts`, as the page's command writes it, opened as the page says."""
    binaries = environment("scout", SCOUT)
    folder = tmp_path / "transcripts"
    folder.mkdir()
    writer = ScoutTables(folder)
    for run in runs[:9]:
        writer.write(scout_row(run), "train")
    writer.close()
    page = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    assert SCOUT in page
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "inspect_scout" in block]
    done = subprocess.run([binaries / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "9" in done.stdout
