"""The Dagster UI behind its guard: web pages of other sites can neither read nor change anything; the UI works."""

import base64
import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from trajectory_pipeline.cli.dagster_processes import graphql, start_webserver
from trajectory_pipeline.cli.listening import listen_nearby, port_of
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge

pytestmark = pytest.mark.process

CHANGE = "mutation { setNuxSeen }"
JSON = {"Content-Type": "application/json"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
    "Sec-WebSocket-Protocol": "graphql-ws",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of Dagster's real webserver on a project without definitions, with Dagster's default storage."""
    home: Path = tmp_path_factory.mktemp("dagster")
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (home / "workspace.yaml").write_text("load_from: []\n")
    listening = listen_nearby(0)
    port = port_of(listening)
    with start_webserver({**os.environ, "DAGSTER_HOME": str(home)}, home / "workspace.yaml", listening, home / "log"):
        until = time.monotonic() + 120
        while graphql(port, "{ version }") is None:
            assert time.monotonic() < until, (home / "log").read_text()
            time.sleep(0.3)
        yield port


def ask(port: int, method: str, path: str, headers: Mapping[str, str], body: str | None = None) -> tuple[int, str]:
    """Send one request, with ``Host`` only as given; returns status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{port}", **headers}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() if body is not None else None)
        answer = connection.getresponse()
        return answer.status, "" if answer.status == 101 else answer.read().decode()
    finally:
        connection.close()


def change(port: int, **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", "/graphql", {**JSON, **named}, json.dumps({"query": CHANGE}))


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LOCALHOST:{}", "[::1]:{}", "localhost", "127.0.0.2"])
def test_webserver_answers_its_own_page(port: int, host: str) -> None:
    host = host.format(port)
    own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
    assert change(port, **own) == (200, '{"data":{"setNuxSeen":true}}')
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert ask(port, "GET", "/graphql", {**SOCKET, **own})[0] == 101
    assert "<html" in ask(port, "GET", "/", {"Host": host, "Sec-Fetch-Site": "none"})[1]


def test_webserver_answers_programs_without_browser_headers(port: int) -> None:
    assert change(port)[0] == 200
    assert ask(port, "GET", "/server_info", {})[0] == 200
    assert ask(port, "GET", "/graphql", SOCKET)[0] == 101


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "user@localhost",
        "localhost@evil.example",
        "10.1.2.3",
        "0.0.0.0",
        "[fe80::1]",
        "",
    ],
)
def test_webserver_refuses_other_hosts(port: int, host: str) -> None:
    for method, path, headers in (("GET", "/", {}), ("GET", "/server_info", {}), ("GET", "/graphql", SOCKET)):
        status, text = ask(port, method, path, {**headers, "Host": host})
        assert status in (400, 403)
        assert "dagster" not in text.lower()
    assert change(port, Host=host)[0] in (400, 403)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "https://localhost.evil.example"],
)
def test_webserver_refuses_other_origins(port: int, origin: str) -> None:
    assert change(port, Origin=origin) == (403, "Refused: the request comes from another site.\n")
    assert ask(port, "GET", "/graphql", {**SOCKET, "Origin": origin})[0] == 403
    form = {"Content-Type": "text/plain", "Origin": origin}
    assert ask(port, "POST", f"/graphql?query={quote(CHANGE)}", form, "")[0] == 403
    assert ask(port, "POST", f"/report_asset_materialization/a?x={quote(CHANGE)}", form, "")[0] == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_webserver_refuses_what_another_site_embeds(port: int, site: str) -> None:
    for other in ({"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, {**LINK, "Sec-Fetch-Dest": "iframe"}, {}):
        assert ask(port, "GET", "/server_info", {**other, "Sec-Fetch-Site": site})[0] == 403
    assert change(port, Sec_Fetch_Site=site)[0] == 403


def test_webserver_link_from_another_site_opens_the_page(port: int) -> None:
    assert ask(port, "GET", "/assets", {**LINK, "Accept": "text/html"})[0] == 200


@pytest.mark.parametrize("path", ["/graphql", "/graphql/"])
@pytest.mark.parametrize("headers", [{}, {"Accept": "*/*"}, LINK, {"Origin": "http://127.0.0.1:{}"}])
def test_webserver_refuses_graphql_by_get(port: int, path: str, headers: dict[str, str]) -> None:
    sent = {name: value.format(port) for name, value in headers.items()}
    status, text = ask(port, "GET", f"{path}?query={quote(CHANGE)}", sent)
    assert (status, text) == (403, "Refused: send GraphQL by POST.\n")


def test_simulated_judge_refuses_web_pages() -> None:
    with SimulatedJudge.start() as judge:
        port = int(judge.base_url.rpartition(":")[2].partition("/")[0])
        for other in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            for method in ("GET", "POST", "DELETE"):
                assert ask(port, method, "/control/faults", {**JSON, **other}, "[]")[0] == 403
        assert ask(port, "GET", "/control/calls", {})[0] == 200
