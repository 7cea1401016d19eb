"""Runs by filters, page by page, and one trajectory, over HTTP."""

import contextlib
import json
import socket

import httpx2
import psycopg
import pytest

from trajectory_pipeline_tests.pipeline.materializing import Pipeline


def pages(client: httpx2.Client, **parameters: object) -> list[list[dict[str, object]]]:
    """Return the items of all pages."""
    found, cursor = [], None
    while True:
        asked = {**parameters, **({"cursor": cursor} if cursor else {})}
        answer = client.get("/v1/trajectories", params=asked)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found.append(body["items"])
        cursor = body["next_cursor"]
        if cursor is None:
            return found


@pytest.fixture
def stored(story: Pipeline) -> list[tuple[object, ...]]:
    with psycopg.connect(story.database_url) as connection:
        return connection.execute(
            "SELECT run_id, agent_id, heuristic_outcome, outcome, verdict_status FROM trajectory.outcomes"
            " ORDER BY end_time DESC, run_id DESC"
        ).fetchall()


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_pages_hold_every_run_once_newest_first(
    served: httpx2.Client, stored: list[tuple[object, ...]], limit: int
) -> None:
    found = pages(served, limit=limit)
    assert all(len(page) == limit for page in found[:-1])
    assert [item["run_id"] for page in found for item in page] == [row[0] for row in stored]


def test_filters_find_what_sql_finds(served: httpx2.Client, stored: list[tuple[object, ...]]) -> None:
    for agent in {row[1] for row in stored}:
        for outcome in {row[3] for row in stored} - {None}:
            (found,) = pages(served, agent_id=agent, outcome=outcome, limit=200)
            assert [item["run_id"] for item in found] == [r[0] for r in stored if (r[1], r[3]) == (agent, outcome)]


def test_time_filter_is_half_open(served: httpx2.Client, stored: list[tuple[object, ...]]) -> None:
    (everything,) = pages(served, limit=200)
    middle = everything[len(everything) // 2]["end_time"]
    (older,), (newer,) = pages(served, completed_to=middle, limit=200), pages(served, completed_from=middle, limit=200)
    assert [*newer, *older] == everything
    assert newer[-1]["end_time"] == middle


def test_heuristic_and_judged_values_are_apart(served: httpx2.Client, stored: list[tuple[object, ...]]) -> None:
    (items,) = pages(served, limit=200)
    assert [(i["run_id"], i["heuristic"]["outcome"], (i["judged"] or {}).get("outcome")) for i in items] == [
        (row[0], row[2], row[3]) for row in stored
    ]


def test_trajectory_has_document_and_evidence(served: httpx2.Client, stored: list[tuple[object, ...]]) -> None:
    run_id = next(row[0] for row in stored if row[3] == "failure")
    answer = served.get(f"/v1/trajectories/{run_id}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json()
    assert body["run_id"] == body["document"]["run_id"] == run_id
    assert body["judged"]["requirements"][0]["evidence"]
    assert "data" in body["notice"]


def test_unknown_run_is_a_problem(served: httpx2.Client) -> None:
    answer = served.get("/v1/trajectories/run-unknown", headers={"x-request-id": "mine"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/trajectories?limit=0", 422),
        ("/v1/trajectories?limit=100000", 422),
        ("/v1/trajectories?limit=x", 422),
        ("/v1/trajectories?unknown=1", 422),
        ("/v1/trajectories?cursor=x", 422),
        ("/v1/trajectories?cursor=IAA=", 422),
        ("/v1/trajectories?outcome=good", 422),
        ("/v1/trajectories?agent_id=%00", 422),
        ("/v1/trajectories?completed_from=5", 422),
        ("/v1/trajectories?completed_from=soon", 422),
        ("/v1/trajectories?ended_from=2026-01-01", 422),
        ("/v1/trajectories?completed_from=9999-12-31T23:59:59-23:00", 422),
        ("/v1/trajectories/%00", 422),
        (f"/v1/trajectories/{'x' * 2001}", 422),
        (f"/v1/trajectories/{'x' * 2000}", 404),
        ("/v1/trajectories/x%20y", 404),
        ("/v1/nothing", 404),
        ("/v1/trajectories?completed_from=2026-01-02&completed_to=2026-01-01", 422),
        ("/v1/search?q=x&completed_from=2026-01-01&completed_to=2026-01-01", 422),
        ("/v1/contrast?q=x&completed_from=2026-01-02&completed_to=2026-01-01", 422),
        ("/v1/lessons?completed_from=2026-01-02&completed_to=2026-01-01", 422),
        ("/v1/statistics?completed_from=2026-01-02&completed_to=2026-01-01", 422),
        ("/health?x=1", 200),
        ("/metrics", 200),
    ],
)
def test_bad_input_is_refused(served: httpx2.Client, path: str, status: int) -> None:
    answer = served.get(path)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_large_body_is_refused(served: httpx2.Client) -> None:
    answer = served.post("/v1/trajectories", content=b"x" * 2_000_000)
    assert answer.status_code == 413


def test_time_without_an_offset_is_utc(served: httpx2.Client) -> None:
    for given, same in (("2026-11-24", "2026-11-24T00:00:00Z"), ("2026-11-24T10:00:00", "2026-11-24T10:00:00+00:00")):
        first, second = (
            served.get("/v1/trajectories", params={"completed_from": time, "limit": 200}).json()["items"]
            for time in (given, same)
        )
        assert first == second != []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *((f"/v1/trajectories?{name}={value}&{name}={value}", name) for name, value in (("limit", 1), ("cursor", "x"))),
        *(
            (f"/v1/search?q=refund&{name}={value}&{name}={value}", name)
            for name, value in (("k", 1), ("mode", "words"))
        ),
        ("/v1/search?q=refund&q=order", "q"),
        ("/v1/contrast?q=refund&q=order", "q"),
        ("/v1/statistics?group_by=day&group_by=week", "group_by"),
        ("/v1/lessons?task_family=a&task_family=b", "task_family"),
        ("/v1/lessons?completed_from=2026-01-01&completed_from=2026-01-02", "completed_from"),
        ("/?q=refund&q=order", "q"),
        ("/?outcome=failure&outcome=success", "outcome"),
        ("/runs/run-1?page=1&page=2", "page"),
        ("/login?then=/a&then=/b", "then"),
    ],
)
def test_parameter_of_one_value_is_refused_twice(served: httpx2.Client, path: str, name: str) -> None:
    answer = served.get(path)
    assert answer.status_code == 422
    assert f"query.{name}: it has one value, and is given several times" in answer.text


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/v1/trajectories/run-1?fields=x", "query.fields: it is not known here: leave it out."),
        ("/v1/search?q=x&outcom=failure", "query.outcom: it is not known here: leave it out, or take one of "),
        ("/v1/statistics?day=1", "query.day: it is not known here: leave it out, or take one of "),
        ("/v1/lessons?x%0Ay=1", "query: it is not known here"),
    ],
)
def test_unknown_parameter_is_refused(served: httpx2.Client, path: str, detail: str) -> None:
    """A misspelled filter would find everything."""
    answer = served.get(path)
    assert (answer.status_code, answer.json()["detail"].startswith(detail)) == (422, True), answer.text


def test_parameter_of_several_values_is_given_several_times(served: httpx2.Client) -> None:
    assert served.get("/v1/trajectories?outcome=failure&outcome=success&tool=a&tool=b").status_code == 200


def test_cursor_is_of_one_list_and_its_filters(served: httpx2.Client) -> None:
    asked = {"outcome": ["success", "failure"], "limit": 2}
    cursor = served.get("/v1/trajectories", params=asked).json()["next_cursor"]
    again = {"outcome": ["failure", "success"], "limit": 5, "cursor": cursor}
    assert served.get("/v1/trajectories", params=again).status_code == 200, "whatever their order, and the page's size"
    for path, filters in (
        ("/v1/lessons", {"outcome": ["success", "failure"]}),
        ("/v1/trajectories", {}),
        ("/v1/trajectories", {"outcome": "success"}),
        ("/v1/trajectories", {"outcome": ["success", "failure"], "execution_status": "completed"}),
        ("/", {}),
    ):
        answer = served.get(path, params={**filters, "cursor": cursor})
        assert (answer.status_code, "of another list, or of other filters" in answer.text) == (422, True), path


@pytest.mark.parametrize(
    "path", ["/health", "/", "/families", "/docs", "/openapi.json", "/v1/trajectories", "/style.css"]
)
def test_head_is_answered_as_get_without_a_body(served: httpx2.Client, path: str) -> None:
    got, asked = served.get(path), served.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert asked.headers[name] == got.headers[name]
    assert served.head("/v1/nothing").status_code == 404
    assert served.head("/v1/verdicts").status_code == 405


@pytest.mark.parametrize("size", [70_000, 900_000])
def test_headers_that_are_too_long_are_refused(served: httpx2.Client, size: int) -> None:
    with socket.create_connection((served.base_url.host, served.base_url.port or 80), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-long: ")
        # The server may close the connection before all of it is sent.
        with contextlib.suppress(OSError):
            connection.sendall(b"a" * size + b"\r\n\r\n")
        answered = b""
        with contextlib.suppress(ConnectionError):
            answered = b"".join(iter(lambda: connection.recv(4096), b""))
    # A connection that is closed while more arrives may be reset before its answer is read.
    assert answered.startswith(b"HTTP/1.1 431 ") or (size > 500_000 and not answered)
    assert served.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/trajectories", "/v1/statistics", "/"])
def test_request_for_a_websocket_is_answered_as_any_other(served: httpx2.Client, path: str) -> None:
    headers = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    assert served.get(path, headers=headers).status_code == 200
    unknown = served.get("/nothing", headers=headers)
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["/v1/trajectories/", "/v1/statistics/", "/families/", "/health/"])
def test_nobody_is_sent_to_another_address(served: httpx2.Client, path: str) -> None:
    answer = served.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert "location" not in answer.headers


def test_what_is_no_http_is_answered_by_a_problem(served: httpx2.Client) -> None:
    with socket.create_connection((served.base_url.host, served.base_url.port or 80), timeout=30) as connection:
        connection.sendall(b"NO HTTP\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 400
