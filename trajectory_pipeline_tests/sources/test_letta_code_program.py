"""The real Letta Code, offline against a local server: what it writes is read, and as the vendor's converter does."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trajectory

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_FOLDER
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline_tests.exports.environments import environment

pytestmark = [pytest.mark.heavy, pytest.mark.process]
PROGRAM = "letta==0.34.12"
Row = dict[str, Any]


@contextmanager
def scripted_model() -> Iterator[int]:
    """Serve a model that lists a folder which is not there, and then says so; yields the port."""

    def chunk(delta: Row, finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        body = {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "fake-1",
            "choices": [choice],
            **more,
        }
        return f"data: {json.dumps(body)}\n\n".encode()

    def usage(prompt: int, completion: int) -> Row:
        return {
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def send(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            models = {"object": "list", "data": [{"id": "fake-1", "object": "model", "created": 1, "owned_by": "x"}]}
            self.send(json.dumps(models).encode(), "application/json")

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tools = [tool["function"]["name"] for tool in asked.get("tools") or ()]
            since = max((n for n, m in enumerate(asked["messages"]) if m["role"] == "user"), default=0)
            has_looked = any(message["role"] == "tool" for message in asked["messages"][since:])
            if "Bash" in tools and not has_looked:
                call = {
                    "name": "Bash",
                    "arguments": json.dumps({"command": "ls /definitely/not/here", "description": "x"}),
                }
                parts = [
                    chunk({"role": "assistant", "content": "I will look."}),
                    chunk({"tool_calls": [{"index": 0, "id": f"call_{since}", "type": "function", "function": call}]}),
                    chunk({}, "tool_calls", **usage(100, 20)),
                ]
            else:
                said = {"role": "assistant", "content": "The folder does not exist."}
                parts = [chunk(said), chunk({}, "stop", **usage(200, 8))]
            self.send(b"".join([*parts, b"data: [DONE]\n\n"]), "text/event-stream")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local backend with two conversations, one of two runs, that the program wrote."""
    home, program = tmp_path_factory.mktemp("home"), environment("letta-code", PROGRAM) / "letta"
    variables = {"HOME": str(home), "PATH": os.environ["PATH"], "DISABLE_AUTOUPDATER": "1", "LETTA_CODE_TELEM": "0"}

    def letta(*arguments: str) -> None:
        done = subprocess.run(
            [program, *arguments], env=variables, cwd=home, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr

    with scripted_model() as port:
        url, common = (
            f"http://127.0.0.1:{port}/v1",
            ("--backend", "local", "--model", "openai-compatible/fake-1", "--yolo"),
        )
        letta("backend", "local")
        letta("connect", "openai-compatible", "--base-url", url, "--api-key", "x")
        letta("-p", "List the folder /definitely/not/here", "--new-agent", "--personality", "blank", *common)
        letta("-p", "Look again", "--conversation", "local-conv-1", *common)
        letta("-p", "Another one", "--new-agent", "--personality", "blank", *common)
    return home / ".letta" / "lc-local-backend"


def read(folder: Path) -> list[Row]:
    with LettaCodeSource("laptop", (folder,)).snapshot() as snapshot:
        assert list(snapshot.remarks) == []
        assert snapshot.unknown_columns == []
        rows: list[Row] = []
        for hour in snapshot.runs_by_hour():
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                conversion = convert_batch(batch, partition_key(hour))
                assert conversion.quarantined == []
                rows += conversion.rows
    return sorted(rows, key=lambda row: row["start_time"])


def test_what_the_program_writes_becomes_a_run_for_each_thing_that_was_asked(backend: Path) -> None:
    rows = read(backend)
    assert len(rows) == 3
    assert len({row["agent_id"] for row in rows}) == 2
    for row in rows:
        assert (row["status"], row["stop_reason"], row["step_count"], row["tools_used"]) == (
            *("completed", "end_turn"), 2, ["Bash"],
        )  # fmt: skip
        assert (row["input_tokens"], row["output_tokens"], row["total_tokens"]) == (300, 28, 328)
        returned = [one for turn in row["turns"] for message in turn["messages"] for one in message["tool_returns"]]
        # It ended with code 2, and the program recorded no error: whether it succeeded is not known.
        assert [one["status"] for one in returned] == [None]
        assert "No such file or directory" in returned[0]["text"]


@pytest.mark.parametrize("of_sample", [False, True])
def test_vendors_own_converter_sees_the_same(
    backend: Path, monkeypatch: pytest.MonkeyPatch, *, of_sample: bool
) -> None:
    """It needs Node, which the program carries."""
    folder = LETTA_CODE_FOLDER if of_sample else backend
    (node,) = environment("letta-code", PROGRAM).parent.rglob("_payload/bin/node")
    monkeypatch.setenv("PATH", f"{node.parent}{os.pathsep}{os.environ['PATH']}")
    theirs: list[tuple[str, str]] = []
    for path in folder.glob("conversations/*/messages.jsonl"):
        for record in trajectory.normalize_transcript(source="pi", transcript=path.read_text())["records"]:
            theirs += _said(dict(record))
    assert sorted(theirs) == sorted(pair for row in read(folder) for pair in _ours(row))
    assert theirs


def _said(record: Row) -> Iterator[tuple[str, str]]:
    content = record.get("content")
    if record["role"] in ("user", "assistant", "tool") and content:
        yield record["role"], "".join(content.split())
    for call in record.get("tool_calls") or ():
        yield "call", f"{call['name']} {json.loads(call['args'])}"


def _ours(row: Row) -> Iterator[tuple[str, str]]:
    reminders = ""
    for turn in row["turns"]:
        for message in turn["messages"]:
            text = "".join("".join(part["text"] for part in message["content"] if part["type"] == "text").split())
            if message["role"] == "system":
                # The converter leaves what the program wrote in the user's message.
                reminders = text
            elif text:
                yield message["role"], f"{reminders}{text}" if message["role"] == "user" else text
            for call in message["tool_calls"]:
                yield "call", f"{call['name']} {json.loads(call['arguments'])}"
