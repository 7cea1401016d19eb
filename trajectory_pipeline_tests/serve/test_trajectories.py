"""Runs by filters, page by page, and one trajectory, over HTTP."""

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
        ("/v1/trajectories?completed_from=2026-01-01", 422),
        ("/v1/trajectories?completed_from=9999-12-31T23:59:59-23:00", 422),
        ("/v1/trajectories/%00", 422),
        (f"/v1/trajectories/{'x' * 201}", 422),
        (f"/v1/trajectories/{'x' * 200}", 404),
        ("/v1/trajectories/x%20y", 404),
        ("/v1/nothing", 404),
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
