"""The failure notice sensor: posts a message to a webhook for each failed Dagster run of this code location."""

import dagster as dg

from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import without_credentials

FAILURE_NOTICE_SENSOR = "failure_notice_sensor"
_TIMEOUT_SECONDS = 10.0
_ATTEMPTS = 3
_LONGEST_REASON = 600
_RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


def build_failure_notice_sensor(settings: Settings) -> dg.SensorDefinition:
    """Return the sensor; it runs by default where a webhook is set."""
    webhook = settings.notices.webhook_url
    notice = "" if webhook else "\n\n**Sends nothing.** Set TRAJECTORY_WEBHOOK_URL."

    @dg.run_failure_sensor(
        name=FAILURE_NOTICE_SENSOR,
        default_status=dg.DefaultSensorStatus.RUNNING if webhook else dg.DefaultSensorStatus.STOPPED,
        monitor_all_code_locations=False,
        description="Posts a message to TRAJECTORY_WEBHOOK_URL for each failed run: the job, the partitions, and why."
        f" It has no transcript and no secret.{notice}",
    )
    def failure_notice_sensor(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        if webhook is None:
            return dg.SkipReason("No webhook is set: TRAJECTORY_WEBHOOK_URL.")
        text = describe_failure(context, settings.notices.dagster_ui_url)
        _post(webhook.get_secret_value(), text)
        return None

    return failure_notice_sensor


def describe_failure(context: dg.RunFailureSensorContext, ui_url: str | None) -> str:
    """Return the message of one failed run. Of an unexpected error only the type is named: its text may hold data."""
    run = context.dagster_run
    lines = [f"Dagster run {run.run_id[:8]} of {run.job_name} failed{_partitions(run)}."]
    for event in context.get_step_failure_events():
        failure = event.step_failure_data
        if failure.user_failure_data and failure.user_failure_data.description:
            reason = " ".join(failure.user_failure_data.description.split())
        else:
            error = failure.error
            while error and error.cause:
                error = error.cause
            reason = f"unexpected error {error.cls_name}" if error else "unknown error"
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}… (the rest is in the Dagster UI)"
        lines.append(f"{event.step_key}: {reason}")
    if len(lines) == 1:
        lines.append("No step says why: see the run in the Dagster UI.")
    if ui_url:
        lines.append(f"{without_credentials(ui_url).rstrip('/')}/runs/{run.run_id}")
    return "\n".join(lines)


def _partitions(run: dg.DagsterRun) -> str:
    if key := run.tags.get("dagster/partition"):
        return f" for partition {key}"
    first, last = (run.tags.get(tag) for tag in _RANGE_TAGS)
    return f" for partitions {first} to {last}" if first and last else ""


def _post(webhook: str, text: str) -> None:
    """Post a message; a failure ends the tick, whose error never shows the webhook, which is a secret."""
    import httpx2

    problem = ""
    for _ in range(_ATTEMPTS):
        try:
            response = httpx2.post(webhook, json={"text": text}, timeout=_TIMEOUT_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            problem = type(error).__name__
            continue
        if response.is_success:
            return
        problem = f"status {response.status_code}"
        if response.status_code < 500 and response.status_code != 429:
            break
    raise dg.Failure(
        f"The webhook did not take the message ({problem}, {pluralize(_ATTEMPTS, 'attempt')} at most). Check"
        " TRAJECTORY_WEBHOOK_URL."
    ) from None
