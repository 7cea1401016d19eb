"""The three commands that the demonstration prints, word by word in a shell, and as a browser would."""

import os
import subprocess

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
