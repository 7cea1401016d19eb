"""Metrics of the pipeline: what they say is what the database and Dagster hold, and the dashboard uses no others."""

import json
import re
from pathlib import Path
from typing import Any

import graphql
import httpx2
import psycopg
import pytest
import yaml
from dagster_graphql.schema import create_schema
from prometheus_client.parser import text_string_to_metric_families

from trajectory_pipeline.serve.dagster_queue import STATE, DagsterQueue, DagsterState
from trajectory_pipeline.serve.metrics import Metrics
from trajectory_pipeline.serve.pipeline_metrics import PipelineMetrics
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.service import make_service
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.tenancy import Tokens

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DAGSTER = DagsterState({"queued": 7, "running": 1, "failed": 2}, {"SENSOR": True, "BACKFILL": False})
Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def expressions() -> dict[str, str]:
    """Return the PromQL of all alerts and panels by what they are of."""
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"][0]["rules"]
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return {
        **{rule["alert"]: rule["expr"] for rule in rules},
        **{
            f"{panel['title']} {target['refId']}": target["expr"]
            for panel in dashboard["panels"]
            for target in panel.get("targets", ())
        },
    }


def samples(text: bytes) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def label(name: str, value: str) -> frozenset[tuple[str, str]]:
    return frozenset({(name, value)})


@pytest.fixture
def exported(own_story: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """What a service over a changed copy of the story exports."""
    with psycopg.connect(own_story.database_url) as connection:
        [run] = connection.execute("SELECT run_id FROM trajectory.trajectories ORDER BY 1 LIMIT 1").fetchone() or [""]
        connection.execute(
            "UPDATE trajectory.trajectories SET end_time = now() - interval '100 s', first_captured_at = now()"
            " WHERE run_id = %s",
            [run],
        )
        connection.execute(
            "INSERT INTO trajectory.invalidations SELECT id, asset, key, 'a reason', now() FROM (VALUES"
            " ('withheld deletions 2026-11-20-10:00', 'terminal_runs', '2026-11-20-10:00'),"
            " ('one', 'trajectories', '2026-11-20-11:00'), ('two', 'terminal_runs', '2026-11-20-11:00')"
            ") AS v (id, asset, key)"
        )
        connection.execute(
            "INSERT INTO trajectory.spend_totals VALUES ('day', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'), 1,"
            " 0.5, 1.25, 0, 900, now()) ON CONFLICT (scope, scope_key) DO UPDATE SET spent_usd = 1.25,"
            " reserved_usd = 0.5, spent_tokens = 900"
        )
        connection.execute(
            "UPDATE trajectory.partitions SET upstream_digest = 'other' WHERE ctid = (SELECT ctid FROM"
            " trajectory.partitions WHERE asset = 'trajectories' LIMIT 1)"
        )
    monkeypatch.setattr(DagsterQueue, "state", lambda self, since: DAGSTER)
    settings = make_settings(storage__database_url=own_story.database_url, notices__dagster_ui_url="http://127.0.0.1:1")
    with Storage.at(str(own_story.folder), own_story.database_url).pooled() as storage:
        text = PipelineMetrics(make_service(settings, storage, loopback=True)).text()
    return samples(text)


def test_metrics_say_what_the_database_and_dagster_hold(exported: Samples) -> None:
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert exported["trajectory_database_up"][nothing] == 1
    assert 100 <= exported["trajectory_capture_lag_seconds"][label("statistic", "median")] < 160
    assert exported["trajectory_stale_partitions"] == {
        label("reason", "withheld_deletions"): 1,
        label("reason", "invalidated"): 1,
        label("reason", "not_converted"): 1,
        label("reason", "older_version"): 0,
    }
    assert exported["trajectory_spent_usd"][nothing] == 1.25
    assert exported["trajectory_reserved_usd"][nothing] == 0.5
    assert exported["trajectory_spent_tokens"][nothing] == 900
    assert exported["trajectory_daily_budget_usd"][nothing] == 5
    assert exported["trajectory_quarantined_runs"][nothing] == 0
    assert exported["trajectory_database_bytes"][nothing] > 1_000_000
    assert {key for labels in exported["trajectory_last_materialization_timestamp_seconds"] for key in labels} == {
        ("asset", name) for name in ("terminal_runs", "trajectories", "refined_outcomes")
    }
    assert sum(exported["trajectory_recent_verdicts"].values()) >= 1
    assert exported["trajectory_dagster_runs"] == {label("state", name): n for name, n in DAGSTER.runs.items()}
    assert exported["trajectory_dagster_daemon_healthy"] == {
        label("daemon", "SENSOR"): 1,
        label("daemon", "BACKFILL"): 0,
    }


def test_dashboard_and_alerts_name_metrics_that_are_exported(exported: Samples) -> None:
    service = Metrics()
    service.requests.labels("GET", "/health", "200").inc()
    service.seconds.labels("GET", "/health").observe(1)
    known = exported | samples(service.text())
    # What Prometheus itself adds has no such prefix.
    for of, expression in expressions().items():
        names = set(re.findall(r"\btrajectory_\w+", expression))
        assert names <= known.keys(), (of, names - known.keys())
        for name, key, value in re.findall(r'(trajectory_\w+)\{(\w+)="([^"]+)"', expression):
            if name != "trajectory_recent_verdicts":
                assert any((key, value) in labels for labels in known[name]), (of, name, key, value)


def test_unreadable_database_and_dagster_are_said(own_story: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> DagsterState:
        raise ProblemError(503, "no answer")

    monkeypatch.setattr(DagsterQueue, "state", refuse)
    settings = make_settings(storage__database_url=own_story.database_url, notices__dagster_ui_url="http://127.0.0.1:1")
    with Storage.at(str(own_story.folder), own_story.database_url).pooled() as storage:
        service = make_service(settings, storage, loopback=True)
        with psycopg.connect(own_story.database_url) as connection:
            connection.execute("DROP TABLE trajectory.quarantine CASCADE")
        found = samples(PipelineMetrics(service).text())
    assert {name: list(values.values()) for name, values in found.items()} == {
        "trajectory_database_up": [0],
        "trajectory_dagster_up": [0],
    }


def test_token_of_one_tenant_gets_no_metrics_of_all(guarded: httpx2.Client, tokens: Tokens) -> None:
    texts = {name: guarded.get("/metrics", headers=tokens.header(name)).text for name in tokens.by_name}
    of_all = {name for name, text in texts.items() if "trajectory_spent_usd" in text}
    assert of_all == {"all", "reader"}


def test_dagster_is_asked_in_its_own_words() -> None:
    schema: Any = create_schema().graphql_schema
    assert graphql.validate(schema, graphql.parse(STATE)) == []
