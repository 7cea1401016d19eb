"""Requests in Dagster's own queue: what is sent fits Dagster's schema, and each failure is a clear answer."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import graphql
import httpx2
import pytest
from dagster_graphql.schema import create_schema

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.launch_config import RefinementConfig
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.serve import dagster_queue
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.requested_work import Stage
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import change_settings, make_settings
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.tenancy import MINE, OTHER, Tokens


class FakeDagster:
    """A GraphQL endpoint that takes what Dagster's schema takes, and remembers it."""

    def __init__(self) -> None:
        self.schema = create_schema().graphql_schema
        self.asked: list[dict[str, Any]] = []
        self.answer: Any = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = json.dumps(fake.respond(body)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def respond(self, body: dict[str, Any]) -> Any:
        errors = graphql.validate(self.schema, graphql.parse(body["query"]))
        assert errors == []
        self.asked.append(body["variables"])
        if self.answer is not None:
            return self.answer
        if "params" in body["variables"]:
            kind = self.schema.get_type("ExecutionParams")
            graphql.utilities.coerce_input_value(body["variables"]["params"], kind)
            run = {"runId": f"dagster-{len(self.asked)}", "status": "QUEUED"}
            return {"data": {"launchRun": {"__typename": "LaunchRunSuccess", "run": run}}}
        tags = self.asked[0]["params"]["executionMetadata"]["tags"] if "params" in self.asked[0] else []
        run = {"runId": body["variables"]["runId"], "status": "STARTED", "tags": tags, "assetSelection": None}
        return {
            "data": {"runOrError": {"__typename": "Run", **run, "creationTime": 1.0, "startTime": 2.0, "endTime": None}}
        }


@pytest.fixture
def dagster() -> Iterator[FakeDagster]:
    fake = FakeDagster()
    thread = threading.Thread(target=fake.server.serve_forever, daemon=True)
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


@pytest.fixture
def client(tenant_settings: Settings, tokens: Tokens, dagster: FakeDagster) -> Iterator[httpx2.Client]:
    settings = change_settings(tenant_settings, notices__dagster_ui_url=dagster.url)
    storage = Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))
    with serving(settings, storage) as address, httpx2.Client(base_url=address, timeout=60) as client:
        yield client


def test_names_are_those_of_the_definitions() -> None:
    defs = build_defs(make_settings())
    job = defs.resolve_job_def(dagster_queue.JOB)
    names = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {*map(str, Stage), "refined_outcomes"} <= names


def test_run_that_is_asked_for_is_judged_alone(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    """The configuration that the request sends reaches the judging run."""
    ids = ["run-b", "run-a"]
    assert RefinementConfig(run_ids=ids).run_ids == ids
    hour = min(hour for hour, runs in sample_partitions().items() if runs >= 3)
    pipeline = replace(pipeline, judge_url=judge.base_url)
    pipeline.capture(hour)
    asked = min(pipeline.run_ids(hour))
    pipeline.refine(hour, run_ids=frozenset({asked}))
    assert pipeline.ask("SELECT DISTINCT run_id FROM trajectory.verdicts") == [{"run_id": asked}]
    pipeline.refine(hour)
    judged = {row["run_id"] for row in pipeline.ask("SELECT DISTINCT run_id FROM trajectory.verdicts")}
    assert judged == pipeline.run_ids(hour)


def test_verdicts_are_asked_for_these_runs_alone(client: httpx2.Client, dagster: FakeDagster, tokens: Tokens) -> None:
    ids = sorted(tokens.runs[MINE])[:3]
    answer = client.post("/v1/verdicts", json={"run_ids": ids}, headers=tokens.header("mine"))
    assert answer.status_code == 202, answer.text
    items = answer.json()["items"]
    assert sorted(run_id for item in items for run_id in item["run_ids"]) == ids
    for item, asked in zip(items, dagster.asked, strict=True):
        params = asked["params"]
        assert params["selector"]["assetSelection"] == [{"path": ["refined_outcomes"]}]
        assert params["runConfigData"] == {"ops": {"refined_outcomes": {"config": {"run_ids": item["run_ids"]}}}}
        tags = {tag["key"]: tag["value"] for tag in params["executionMetadata"]["tags"]}
        assert tags["dagster/partition"] == item["partition_key"]
    state = client.get(f"/v1/requests/{items[0]['dagster_run_id']}", headers=tokens.header("mine"))
    assert (state.status_code, state.json()["status"]) == (200, "STARTED")
    foreign = client.get(f"/v1/requests/{items[0]['dagster_run_id']}", headers=tokens.header("both"))
    assert foreign.status_code == 404


def test_materialization_asks_for_the_stages(client: httpx2.Client, dagster: FakeDagster, tokens: Tokens) -> None:
    body = {"run_ids": [min(tokens.runs[MINE])], "assets": ["trajectories"]}
    answer = client.post("/v1/materializations", json=body, headers=tokens.header("all"))
    assert answer.status_code == 202, answer.text
    (asked,) = dagster.asked
    assert asked["params"]["selector"]["assetSelection"] == [{"path": ["trajectories"]}]
    assert asked["params"]["runConfigData"] == {"ops": {}}


def test_foreign_run_is_not_judged(client: httpx2.Client, dagster: FakeDagster, tokens: Tokens) -> None:
    body = {"run_ids": [min(tokens.runs[MINE]), min(tokens.runs[OTHER])]}
    answer = client.post("/v1/verdicts", json=body, headers=tokens.header("mine"))
    assert (answer.status_code, dagster.asked) == (404, [])
    reader = client.post("/v1/verdicts", json=body, headers=tokens.header("reader"))
    assert (reader.status_code, dagster.asked) == (403, [])


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (
            {"data": {"launchRun": {"__typename": "PipelineNotFoundError", "message": "no such job\nstack"}}},
            502,
            "no such",
        ),
        ({"data": {"launchRun": {"__typename": "RunConfigValidationInvalid", "errors": [{"message": "x"}]}}}, 502, "x"),
        ({"errors": [{"message": "syntax"}]}, 502, "refused"),
        ([], 502, "refused"),
        ({"data": {}}, 502, "does not answer as this version"),
        ({"data": {"launchRun": None}}, 502, "does not answer as this version"),
        ({"data": {"launchRun": {"__typename": "LaunchRunSuccess"}}}, 502, "does not answer as this version"),
        ({"data": {"launchRun": {"__typename": "New", "errors": None}}}, 502, "does not answer as this version"),
        ({"data": {"launchRun": {"__typename": "New", "message": 5}}}, 502, "does not answer as this version"),
    ],
)
def test_refusal_of_dagster_is_told(
    client: httpx2.Client, dagster: FakeDagster, tokens: Tokens, answer: Any, status: int, text: str
) -> None:
    dagster.answer = answer
    found = client.post("/v1/verdicts", json={"run_ids": [min(tokens.runs[MINE])]}, headers=tokens.header("mine"))
    assert found.status_code == status
    assert text in found.json()["detail"]
    assert "stack" not in found.text


@pytest.mark.parametrize(
    "answer",
    [
        {"data": {}},
        {"data": {"runOrError": None}},
        {"data": {"runOrError": {"__typename": "Run", "runId": "a"}}},
        {
            "data": {
                "runOrError": {
                    "__typename": "Run",
                    "runId": "a",
                    "status": "QUEUED",
                    "tags": [],
                    "creationTime": None,
                    "startTime": None,
                    "endTime": None,
                }
            }
        },
    ],
)
def test_unexpected_answer_from_dagster_is_a_bad_gateway(
    client: httpx2.Client, dagster: FakeDagster, tokens: Tokens, answer: Any
) -> None:
    dagster.answer = answer
    found = client.get("/v1/requests/a", headers=tokens.header("mine"))
    assert (found.status_code, found.headers["content-type"]) == (502, "application/problem+json"), found.text
    metrics = client.get("/metrics", headers=tokens.header("all"))
    assert (metrics.status_code, "trajectory_dagster_up 0.0" in metrics.text) == (200, True)


def test_runs_that_were_queued_before_a_refusal_are_named(
    client: httpx2.Client, dagster: FakeDagster, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    respond = dagster.respond

    def refuse_the_second(body: dict[str, Any]) -> Any:
        answer = respond(body)
        refused = {"data": {"launchRun": {"__typename": "PythonError", "message": "no room"}}}
        return answer if len(dagster.asked) == 1 else refused

    monkeypatch.setattr(dagster, "respond", refuse_the_second)
    body = {"run_ids": sorted(tokens.runs[MINE])[:20]}
    found = client.post("/v1/verdicts", json=body, headers=tokens.header("mine"))
    assert found.status_code == 502
    detail = found.json()["detail"]
    assert "no room. 1 of" in detail
    assert "dagster-1 (" in detail


def test_answer_that_never_ends_is_given_up(dagster: FakeDagster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dagster_queue, "_MOST_BYTES", 1_000)
    dagster.answer = {"data": {"runOrError": {"__typename": "Run", "runId": "a" * 100_000}}}
    with pytest.raises(ProblemError, match="cannot be reached, or does not answer"):
        dagster_queue.DagsterQueue(dagster.url).run("a")


def test_no_dagster_is_told(guarded: httpx2.Client, tokens: Tokens) -> None:
    found = guarded.post("/v1/verdicts", json={"run_ids": [min(tokens.runs[MINE])]}, headers=tokens.header("mine"))
    assert found.status_code == 503
    assert "TRAJECTORY_DAGSTER_UI_URL" in found.json()["detail"]


def test_dagster_that_is_down_is_told(client: httpx2.Client, dagster: FakeDagster, tokens: Tokens) -> None:
    dagster.server.server_close()
    dagster.server.shutdown()
    found = client.post("/v1/verdicts", json={"run_ids": [min(tokens.runs[MINE])]}, headers=tokens.header("mine"))
    assert (found.status_code, "cannot be reached" in found.text) == (503, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"run_ids": []}', 422),
        (b'{"run_ids": "run-1"}', 422),
        (b'{"run_ids": ["a\\u0000"]}', 422),
        (b'{"run_ids": ["\\ud800"]}', 422),
        (b'{"run_ids": [1]}', 422),
        (b'{"run_ids": ["a"], "more": 1}', 422),
        (b'{"run_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"run_ids": [' + b'"x",' * 200 + b'"x"]}', 422),
        (b"\xff\xfe", 400),
    ],
)
def test_bad_body_is_refused(guarded: httpx2.Client, tokens: Tokens, body: bytes, status: int) -> None:
    headers = {**tokens.header("all"), "content-type": "application/json"}
    found = guarded.post("/v1/verdicts", content=body, headers=headers)
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/problem+json"
    assert len(found.content) < 4_000
