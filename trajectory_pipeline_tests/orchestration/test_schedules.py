"""The contract of the schedule: each hour once, five minutes after it closed, never the open one."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.hours import HOUR, key_of
from trajectory_pipeline.orchestration.schedules import NAME, closed_hour
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import make_settings

NINE = datetime(2026, 11, 21, 9, tzinfo=UTC)
WITHOUT_JUDGE = make_settings()
WITH_JUDGE = make_settings(judge_model="a-model", openai_base_url="http://127.0.0.1:1/v1")


def tick(settings: Settings, at: datetime) -> dg.RunRequest | str | None:
    """The run that a tick requests, or why it requests none."""
    repository = build_defs(settings).get_repository_def()
    context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=repository)
    result = repository.get_schedule_def(NAME).evaluate_tick(context)
    [request] = result.run_requests or [None]
    return request or result.skip_message


@pytest.mark.parametrize(
    ("minutes", "hour"),
    [(-1, 7), (0, 7), (4.99, 7), (5, 8), (6, 8), (59.99, 8), (60, 8), (64.99, 8), (65, 9)],
)
def test_an_hour_is_closed_five_minutes_after_its_end(minutes: float, hour: int) -> None:
    assert closed_hour(NINE + timedelta(minutes=minutes)) == NINE.replace(hour=hour)


def test_a_tick_requests_the_hour_that_closed_five_minutes_ago() -> None:
    request = tick(WITHOUT_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-21-08:00"
    assert request.tags["dagster/partition"] == "2026-11-21-08:00"


def test_a_tick_after_midnight_requests_the_last_hour_of_the_day_before() -> None:
    request = tick(WITHOUT_JUDGE, datetime(2027, 1, 1, 0, 5, tzinfo=UTC))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-12-31-23:00"


def test_a_day_of_ticks_requests_every_hour_once() -> None:
    """As Dagster's daemon would tick: by the cron string itself."""
    schedule = build_defs(WITHOUT_JUDGE).resolve_schedule_def(NAME)
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("5 * * * *", "UTC")
    hours = [closed_hour(NINE + timedelta(hours=number, minutes=5)) for number in range(24)]
    assert hours == [NINE + (number - 1) * HOUR for number in range(24)]


def test_before_the_first_partition_is_closed_nothing_is_requested() -> None:
    settings = make_settings(start=NINE)
    assert tick(settings, NINE + timedelta(minutes=5)) == (
        "2026-11-21-08:00 lies before the first partition, 2026-11-21-09:00."
    )
    request = tick(settings, NINE + timedelta(minutes=65))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == key_of(NINE)


def test_with_a_judge_all_three_assets_are_requested() -> None:
    request = tick(WITH_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert {key.to_user_string() for key in request.asset_selection or ()} == {
        "terminal_runs",
        "trajectories",
        "refined_outcomes",
    }


def test_without_a_judge_verdicts_are_not_requested_and_the_log_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    request = tick(WITHOUT_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert {key.to_user_string() for key in request.asset_selection or ()} == {"terminal_runs", "trajectories"}
    told = "".join(capfd.readouterr())
    assert "refined_outcomes is not requested. No judge is configured: set TRAJECTORY_JUDGE_MODEL" in told
