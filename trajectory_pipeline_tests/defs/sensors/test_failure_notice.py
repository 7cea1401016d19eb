"""What a webhook gets for a failed run, over HTTP: job, partitions, reason and link; no secret, no data."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from trajectory_pipeline.defs.sensors.failure_notice import build_failure_notice_sensor
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import make_settings

pytestmark = pytest.mark.process


@dataclass
class Webhook:
    """A server that answers with the given statuses in turn, the last one for ever, and holds what it got."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [200])
    received: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    state = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(state.statuses.pop(0) if len(state.statuses) > 1 else state.statuses[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret-path"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def notify(settings: Settings, instance: dg.DagsterInstance, error: Exception) -> None:
    """Run a job of one hour that ends with the error, then the sensor for it."""

    @dg.asset(partitions_def=dg.HourlyPartitionsDefinition("2026-11-20-00:00"))
    def trajectories() -> None:
        raise error

    job = dg.define_asset_job("trajectory_job", [trajectories])
    definitions = dg.Definitions(assets=[trajectories], jobs=[job])
    result = definitions.resolve_job_def("trajectory_job").execute_in_process(
        instance=instance, partition_key="2026-11-20-14:00", raise_on_error=False
    )
    context = dg.build_run_status_sensor_context(
        sensor_name="failure_notice_sensor",
        dagster_instance=instance,
        dagster_run=result.dagster_run,
        dagster_event=result.get_run_failure_event(),
    ).for_run_failure()
    build_failure_notice_sensor(settings)(context)


def notices(webhook: Webhook, **values: Any) -> Settings:
    return make_settings(notices__webhook_url=SecretStr(webhook.url), **values)


def test_notice_names_job_partition_reason_and_link(instance: dg.DagsterInstance, webhook: Webhook) -> None:
    settings = notices(webhook, notices__dagster_ui_url="https://dagster.example.com/")
    notify(settings, instance, dg.Failure("Reading runs failed: no SELECT on steps. Grant it."))
    (message,) = webhook.received
    first, reason, link = message["text"].splitlines()
    assert first.endswith("of trajectory_job failed for partition 2026-11-20-14:00.")
    assert reason == "trajectories: Reading runs failed: no SELECT on steps. Grant it."
    assert link.startswith("https://dagster.example.com/runs/")


def test_notice_of_unexpected_error_has_its_type_alone(instance: dg.DagsterInstance, webhook: Webhook) -> None:
    notify(notices(webhook), instance, ValueError("the agent said: my password is hunter2"))
    (message,) = webhook.received
    assert "trajectories: unexpected error ValueError" in message["text"]
    assert "hunter2" not in message["text"]


def test_notice_of_long_reason_says_that_it_is_cut(instance: dg.DagsterInstance, webhook: Webhook) -> None:
    notify(notices(webhook), instance, dg.Failure("x" * 5000))
    assert len(webhook.received[0]["text"]) < 1000
    assert "the rest is in the Dagster UI" in webhook.received[0]["text"]


def test_notice_is_sent_again_after_a_server_error(instance: dg.DagsterInstance, webhook: Webhook) -> None:
    webhook.statuses = [503, 429, 200]
    notify(notices(webhook), instance, dg.Failure("no"))
    assert len(webhook.received) == 3


@pytest.mark.parametrize(("status", "attempts"), [(500, 3), (404, 1)])
def test_refused_notice_is_an_error_without_the_webhook(
    instance: dg.DagsterInstance, webhook: Webhook, status: int, attempts: int
) -> None:
    webhook.statuses = [status]
    with pytest.raises(dg.Failure) as failed:
        notify(notices(webhook), instance, dg.Failure("no"))
    assert len(webhook.received) == attempts
    assert f"status {status}" in str(failed.value.description)
    assert "secret-path" not in str(failed.value.description)


def test_unreachable_webhook_is_an_error_without_the_webhook(instance: dg.DagsterInstance) -> None:
    unreachable = Webhook(url="http://127.0.0.1:1/secret-path")
    with pytest.raises(dg.Failure, match="ConnectError") as failed:
        notify(notices(unreachable), instance, dg.Failure("no"))
    assert "secret-path" not in repr(failed.value.description)
    assert failed.value.__cause__ is None


def test_sensor_runs_by_default_only_with_a_webhook(webhook: Webhook) -> None:
    assert build_failure_notice_sensor(notices(webhook)).default_status is dg.DefaultSensorStatus.RUNNING
    without = build_failure_notice_sensor(make_settings())
    assert without.default_status is dg.DefaultSensorStatus.STOPPED
    assert "Sends nothing" in str(without.description)
