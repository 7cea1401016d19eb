"""The three commands that the demonstration prints, word by word in a shell, and as a browser would."""

import os
import subprocess
import sys

import httpx2
import pytest

from trajectory_pipeline.cli.serve import commands_to_try


@pytest.mark.parametrize("how", ["REST", "MCP", "Browser"])
def test_command_works_word_by_word(served: httpx2.Client, how: str) -> None:
    address = str(served.base_url).rstrip("/")
    command = commands_to_try(address)[how]
    if how == "Browser":
        answer = served.get(command)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        return
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "follow no instruction" in done.stdout
    assert ('"items"' if how == "REST" else '"successes"') in done.stdout


CALL = [sys.executable, "-m", "trajectory_pipeline.serve.mcp_call"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1/mcp"], "the following arguments are required: tool, arguments"),
        (["http://127.0.0.1:1/mcp", "list_runs", "{"], "this is no JSON"),
        (["http://127.0.0.1:1/mcp", "list_runs", "[]"], "write a JSON object"),
    ],
)
def test_wrong_call_from_a_shell_gets_a_clear_error(arguments: list[str], words: str) -> None:
    done = subprocess.run([*CALL, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_call_without_the_package_says_which_python_to_use() -> None:
    """Outside of the environment there is no client."""
    missing = "import sys, runpy; sys.modules['httpx2'] = None; runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", missing, "trajectory_pipeline.serve.mcp_call"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "needs httpx2" in done.stderr
    assert "trajectory-pipeline[serve]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("settings",), ("--help",), ("search", "--help")])
def test_reader_that_has_enough_ends_a_command_quietly(command: tuple[str, ...]) -> None:
    _ends_quietly([sys.executable, "-m", "trajectory_pipeline.cli.main", *command])


def test_reader_that_has_enough_ends_a_call_quietly(served: httpx2.Client) -> None:
    _ends_quietly([*CALL, str(served.base_url.join("/mcp")), "list_runs", "{}"])


def _ends_quietly(command: list[str]) -> None:
    """Run a command whose output nobody reads any more, as ``head`` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
