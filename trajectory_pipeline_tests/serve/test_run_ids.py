"""Every run that is listed can be read, shown and erased, whatever its source calls it."""

import re
from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import psycopg
import pytest

from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_tokens import create_token
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.tenancy import ALL_SCOPES
from trajectory_pipeline_tests.serve.test_mcp import call, told
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_model, add_policy, add_runs

IDS = [
    "bench:job/task__1/trajectory.json",
    "bench:job//two",
    "ends/",
    "a b",
    "100%",
    "per%2Fcent",
    "what?#now",
    "line\nbreak",
    "\u00fcmlaut",
    "\U0001f600",
    "long" * 400,
]


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx2.Client]:
    """A client with every right, of a service over runs with these ids."""
    url = str(settings.storage.database_url)
    with psycopg.connect(url) as connection:
        add_policy(connection)
        add_runs(connection, [Run(run_id, judged_outcome="success", lesson="Look twice.") for run_id in IDS])
    token = create_token(TrajectoryDatabase(url), "all", ALL_SCOPES, None, None)
    storage = Storage.at(settings.storage.parquet_location, url)
    with (
        serving(settings, storage) as address,
        httpx2.Client(base_url=address, timeout=60, headers={"authorization": f"Bearer {token}"}) as client,
    ):
        yield client


def test_pages_of_one_run_hold_every_run(client: httpx2.Client) -> None:
    for path in ("/v1/trajectories", "/v1/lessons"):
        listed, cursor = [], None
        for _ in IDS:
            page = client.get(path, params={"limit": 1} | ({"cursor": cursor} if cursor else {}))
            assert page.status_code == 200, page.text
            listed += [item["run_id"] for item in page.json()["items"]]
            cursor = page.json()["next_cursor"]
        assert (sorted(listed), cursor) == (sorted(IDS), None)


def test_lists_of_tools_go_on_and_name_every_run_whole(client: httpx2.Client) -> None:
    token = client.headers["authorization"].removeprefix("Bearer ")
    for tool in ("list_runs", "get_lessons"):
        listed: list[str] = []
        cursor: dict[str, str] = {}
        for _ in IDS:
            data, notes = told(call(client, tool, {"limit": 1, **cursor}, token=token))
            listed += [item["run_id"] for item in next(iter(data.values()))]
            found = re.findall(r"cursor='([^']+)'", notes)
            cursor = {"cursor": found[0]} if found else {}
        assert (sorted(listed), cursor) == (sorted(IDS), {})
    for run_id in IDS:
        data, _ = told(call(client, "get_trajectory", {"run_id": run_id}, token=token))
        assert data["run"]["run_id"] == run_id


def test_ids_stay_whole_where_personal_data_is_replaced(settings: Settings) -> None:
    url, odd = str(settings.storage.database_url), "user@example.org/4111111111111111"
    with psycopg.connect(url) as connection:
        add_model(connection)
        add_policy(connection)
        add_runs(
            connection,
            [Run(odd, agent_id=odd, judged_outcome="success", lesson=f"Ask {odd}", task_family="family-1")],
        )
    settings = change_settings(settings, privacy__redaction="personal")
    storage = Storage.at(settings.storage.parquet_location, url)
    with serving(settings, storage) as address, httpx2.Client(base_url=address, timeout=60) as client:
        (lesson,) = client.get("/v1/lessons").json()["items"]
        (family,) = client.get("/v1/statistics", params={"group_by": "task_family"}).json()["items"]
        (agent,) = client.get("/v1/statistics", params={"group_by": "agent"}).json()["items"]
    assert (lesson["run_id"], lesson["agent_id"]) == (odd, odd)
    assert family["example"]["run_id"] == odd
    assert agent["key"] == odd
    assert "user@example.org" not in lesson["lesson"] + family["example"]["lesson"]


@pytest.mark.parametrize("safe", ["", "/"], ids=["encoded", "with slashes"])
def test_every_listed_run_can_be_read_shown_and_erased(client: httpx2.Client, safe: str) -> None:
    listed = [item["run_id"] for item in client.get("/v1/trajectories", params={"limit": 200}).json()["items"]]
    assert sorted(listed) == sorted(IDS)
    for run_id in listed:
        address = quote(run_id, safe=safe)
        got = client.get(f"/v1/trajectories/{address}")
        assert (got.status_code, got.json().get("run_id")) == (200, run_id), got.text
        assert client.get(f"/runs/{address}").status_code == 200
        # The rows are still at the source, so that it is refused: it was found.
        assert client.delete(f"/v1/trajectories/{address}").status_code == 409
        asked = client.post("/v1/verdicts", json={"run_ids": [run_id]})
        assert asked.status_code != 422, asked.text
