"""What docs/service.md shows works, and it names every endpoint."""

import json
import os
import re
import subprocess
from pathlib import Path

import httpx2
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
pytestmark = pytest.mark.process


@pytest.mark.parametrize("command", COMMANDS)
def test_example_answers(served: httpx2.Client, command: str) -> None:
    environment = {**os.environ, "SERVICE": str(served.base_url).rstrip("/")}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer.keys() & {"items", "successes", "status"}
    assert "request_id" not in answer


def test_every_endpoint_is_named(served: httpx2.Client) -> None:
    paths = served.get("/openapi.json").json()["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described == set(re.findall(r"^\| `((?:GET|POST|DELETE) \S+)`", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_page_of_another_site_is_refused(served: httpx2.Client, headers: dict[str, str]) -> None:
    answer = served.get("/v1/trajectories", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert "access-control-allow-origin" not in answer.headers
