"""Search, contrast, lessons and statistics over HTTP."""

from collections import Counter

import httpx2
import psycopg
import pytest

from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.serve.tenancy import MINE, OTHER, Tokens


@pytest.fixture
def outcomes(tenant_settings: Settings, tokens: Tokens) -> list[tuple[str, str, str | None, str | None]]:
    with psycopg.connect(str(tenant_settings.storage.database_url)) as connection:
        return connection.execute(
            "SELECT run_id, heuristic_outcome, outcome, lesson FROM trajectory.outcomes"
            " ORDER BY end_time DESC, run_id DESC"
        ).fetchall()


def test_search_finds_by_words_what_the_token_may_see(guarded: httpx2.Client, tokens: Tokens) -> None:
    found = {}
    for name in ("mine", "all", "foreign"):
        # The filter gives the one token what policies give the other.
        asked = {"q": "the", "k": 100, "organization_id": MINE} if name == "all" else {"q": "the", "k": 100}
        answer = guarded.get("/v1/search", params=asked, headers=tokens.header(name))
        assert answer.status_code == 200, answer.text
        found[name] = {item["run_id"] for item in answer.json()["items"]}
    assert found["foreign"] == set()
    assert 10 < len(found["mine"]) < 100
    assert found["mine"] == found["all"] <= tokens.runs[MINE]


def test_contrast_has_each_side(guarded: httpx2.Client, tokens: Tokens) -> None:
    answer = guarded.get("/v1/contrast", params={"q": "the", "k": 2}, headers=tokens.header("all"))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert {hit["judged_outcome"] for hit in body["successes"]} == {"success"}
    assert {hit["judged_outcome"] for hit in body["failures"]} == {"failure"}
    assert all(hit["evidence"] for hit in body["failures"])
    assert body["words_only"]


def test_lessons_are_those_of_verdicts(
    guarded: httpx2.Client, tokens: Tokens, outcomes: list[tuple[str, str, str | None, str | None]]
) -> None:
    answer = guarded.get("/v1/lessons", params={"limit": 200}, headers=tokens.header("mine"))
    found = [(item["run_id"], item["judged_outcome"]) for item in answer.json()["items"]]
    assert found == [(row[0], row[2]) for row in outcomes if row[3] is not None and row[0] in tokens.runs[MINE]]


def test_statistics_count_the_tenants_runs(
    guarded: httpx2.Client, tokens: Tokens, outcomes: list[tuple[str, str, str | None, str | None]]
) -> None:
    for name, runs in (("mine", tokens.runs[MINE]), ("all", tokens.runs[MINE] | tokens.runs[OTHER])):
        answer = guarded.get("/v1/statistics", headers=tokens.header(name))
        assert answer.status_code == 200, answer.text
        (group,) = answer.json()["items"]
        rows = [row for row in outcomes if row[0] in runs]
        judged, heuristic = Counter(row[2] for row in rows), Counter(row[1] for row in rows)
        assert group["runs"] == len(rows)
        assert group["judged"] == {key: judged[key] for key in group["judged"]}
        assert group["heuristic"] == {key: heuristic[key] for key in group["heuristic"]}
        assert group["not_judged"] == judged[None]
        decided = judged["success"] + judged["partial_success"] + judged["failure"]
        low, high = wilson_interval(judged["success"], decided) or (0, 0)
        assert group["success_rate"] == {
            "rate": judged["success"] / decided,
            "low": low,
            "high": high,
            "successes": judged["success"],
            "of": decided,
        }


@pytest.mark.parametrize(
    "group_by",
    ["agent", "organization", "day", "week", "tool", "model", "failure_mode", "task_category", "task_family"],
)
def test_groups_hold_every_run(guarded: httpx2.Client, tokens: Tokens, group_by: str) -> None:
    answer = guarded.get("/v1/statistics", params={"group_by": group_by}, headers=tokens.header("mine"))
    assert answer.status_code == 200, answer.text
    runs = sum(group["runs"] for group in answer.json()["items"])
    # Of tools and models a run has any number.
    assert runs == len(tokens.runs[MINE]) or group_by in ("tool", "model")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/search", 422),
        ("/v1/search?q=", 422),
        ("/v1/search?q=%20", 422),
        ("/v1/search?q=%00", 422),
        ("/v1/search?q=" + "x" * 3000, 422),
        ("/v1/search?q=a&k=0", 422),
        ("/v1/search?q=a&k=1000000", 422),
        ("/v1/search?q=a&mode=magic", 422),
        ("/v1/search?q=a&mode=meaning", 503),
        ("/v1/search?q=a&limit=3", 422),
        ("/v1/contrast?q=a&outcome=success", 422),
        ("/v1/statistics?group_by=run_id", 422),
        ("/v1/lessons?cursor=%ff", 422),
    ],
)
def test_bad_input_is_refused(guarded: httpx2.Client, tokens: Tokens, path: str, status: int) -> None:
    answer = guarded.get(path, headers=tokens.header("all"))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
