"""Every run that is listed can be read, shown and erased, whatever its source calls it."""

from collections.abc import Iterator
from urllib.parse import quote

import httpx2
import psycopg
import pytest

from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_tokens import create_token
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.tenancy import ALL_SCOPES
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs

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
        add_runs(connection, [Run(run_id) for run_id in IDS])
    token = create_token(TrajectoryDatabase(url), "all", ALL_SCOPES, None, None)
    storage = Storage.at(settings.storage.parquet_location, url)
    with (
        serving(settings, storage) as address,
        httpx2.Client(base_url=address, timeout=60, headers={"authorization": f"Bearer {token}"}) as client,
    ):
        yield client


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
