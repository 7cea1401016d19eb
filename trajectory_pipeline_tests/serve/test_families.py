"""How often each kind of task succeeds, the same wherever it is asked: REST, MCP, page, report, command and SQL."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.pipeline.task_families import update_task_families
from trajectory_pipeline.report.page import build_report
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.cli.conftest import Command, run_command  # noqa: F401 - a fixture
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.pipeline.kinds_of_tasks import made_up
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.test_mcp import call, told
from trajectory_pipeline_tests.storage.postgres.searchable import add_model, add_policy, add_runs

ASK = (
    "SELECT family_id, runs, success_rate, success_low, success_high FROM trajectory.task_family_outcomes"
    " ORDER BY runs DESC, family_id"
)
"""As docs/search.md has it, but for the ties."""


@pytest.fixture(scope="module")
def database(make_own_settings: Callable[[], Settings]) -> TrajectoryDatabase:
    """Sixty runs of three kinds of tasks."""
    url = str(make_own_settings().storage.database_url)
    with psycopg.connect(url) as connection:
        add_model(connection)
        add_policy(connection)
        add_runs(connection, made_up(range(60)))
    database = TrajectoryDatabase(url)
    update_task_families(database)
    return database


@pytest.fixture(scope="module")
def client(database: TrajectoryDatabase) -> Iterator[httpx2.Client]:
    settings = make_settings(storage__database_url=database.url)
    with (
        serving(settings, Storage.at("unused", database.url)) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def rates(database: TrajectoryDatabase) -> dict[str, tuple[float, ...]]:
    """What the documented query says: rate and interval of each family; no interval is empty."""
    found = {
        row["family_id"]: (row["success_rate"], row["success_low"], row["success_high"]) for row in database.rows(ASK)
    }
    assert len(found) == 3
    assert all(low < high for _, low, high in found.values())
    return found


def test_documented_group_by_counts_what_the_rate_is_of(
    database: TrajectoryDatabase, rates: dict[str, tuple[float, ...]]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    (statement,) = re.findall(r"```sql\n(SELECT f\.family_id.*?)```", page, re.DOTALL)
    counted = {row["family_id"]: row["success"] / row["decided"] for row in database.rows(statement)}
    assert counted == {family: pytest.approx(rate) for family, (rate, _, _) in rates.items()}


def of_group(group: dict[str, Any]) -> tuple[float, ...]:
    rate = group["success_rate"]
    return rate["rate"], rate["low"], rate["high"]


def test_statistics_say_the_same_as_sql(client: httpx2.Client, rates: dict[str, tuple[float, ...]]) -> None:
    answer = client.get("/v1/statistics", params={"group_by": "task_family"}).json()
    groups = {group["key"]: group for group in answer["items"]}
    assert groups.keys() == rates.keys()
    for family, group in groups.items():
        assert of_group(group) == pytest.approx(rates[family])
        read = client.get(f"/v1/trajectories/{group['example']['run_id']}").json()
        assert (read["task_family"], group["example"]["summary"]) == (family, "what was done")
    (one,) = client.get("/v1/statistics", params={"task_family": min(rates)}).json()["items"]
    assert of_group(one) == pytest.approx(rates[min(rates)])
    assert one["example"] is None


def test_tool_says_the_same_as_sql(client: httpx2.Client, rates: dict[str, tuple[float, ...]]) -> None:
    data, _ = told(call(client, "list_task_families", {}))
    assert {one["task_family"]: pytest.approx(of_group(one)) for one in data["families"]} == rates


def test_report_says_the_same_as_sql(database: TrajectoryDatabase, rates: dict[str, tuple[float, ...]]) -> None:
    report = build_report(database, Redactor(key=b"k"))
    shown = {row["family"]: (row["share"], row["low"], row["high"]) for row in report.tables["families"]}
    assert shown == {family: pytest.approx(numbers) for family, numbers in rates.items()}
    assert all(f"<small>{family}</small>" in report.html for family in rates)


def test_command_says_the_same_as_sql(
    database: TrajectoryDatabase,
    rates: dict[str, tuple[float, ...]],
    run_command: Command,  # noqa: F811
) -> None:
    variables = {"TRAJECTORY_DATABASE_URL": database.url, "LETTA_PG_URI": database.url}
    found = json.loads(run_command("families", "--json", **variables).stdout)["families"]
    assert {
        one["family_id"]: pytest.approx((one["success_rate"], one["success_low"], one["success_high"])) for one in found
    } == rates
    assert {one["example"] for one in found} == {"what was done"}
    result = run_command("families", "--family", min(rates), **variables)
    assert min(rates) in result.output
    assert max(rates) not in result.output
    (row,) = database.rows("SELECT * FROM trajectory.task_family_outcomes WHERE family_id = %s", [min(rates)])
    decided = row["success"] + row["partial_success"] + row["failure"]
    assert f"{row['success']} of {decided}, {row['success_rate']:.0%}" in result.output
    unknown = run_command("families", "--family", min(rates), "--family", "x", **variables)
    assert (unknown.exit_code, "There is no task family x" in unknown.output) == (2, True)


def test_page_lists_families_and_a_run_names_its_own(
    client: httpx2.Client, rates: dict[str, tuple[float, ...]]
) -> None:
    page = client.get("/families")
    assert page.status_code == 200
    for family, (rate, low, high) in rates.items():
        assert f"/?task_family={family}" in page.text
        assert f"({100 * rate:.0f} %, {100 * low:.0f}–{100 * high:.0f} %)" in page.text
    # The denominator is said, and what is left out of it.
    for group in client.get("/v1/statistics", params={"group_by": "task_family"}).json()["items"]:
        judged, rate = group["judged"], group["success_rate"]
        assert rate["successes"] == judged["success"]
        assert rate["of"] == judged["success"] + judged["partial_success"] + judged["failure"]
        assert group["runs"] == rate["of"] + judged["unknown"] + group["not_judged"]
        words = f"{group['runs']} runs: {rate['successes']} of {rate['of']} succeeded"
        assert words in page.text
        newest = client.get(f"/runs/{group['example']['run_id']}").text
        assert f"{rate['successes']} of {rate['of']} succeeded" in newest
    read = client.get("/v1/trajectories/run-059").json()
    similar = [one["run_id"] for one in read["similar_runs"]]
    assert len(similar) == 3
    assert sorted(read["similar_runs"], key=lambda one: -one["similarity"]) == read["similar_runs"]
    run = client.get("/runs/run-059").text
    assert f"/?task_family={read['task_family']}" in run
    assert all(f'href="/runs/{run_id}"' in run for run_id in similar)
    data, _ = told(call(client, "get_trajectory", {"run_id": "run-059"}))
    assert (data["run"]["task_family"], data["run"]["similar_runs"]) == (read["task_family"], read["similar_runs"])
