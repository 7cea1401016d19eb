"""The contract of the schedule: each hour once, five minutes after it closed, never the open one."""

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import dagster as dg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.asset_keys import CAPTURE
from trajectory_pipeline.defs.jobs.trajectory import SCHEDULE_NAME, last_closed_hour
from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_FOLDER, LETTA_CODE_NAME, LETTA_CODE_SOURCE
from trajectory_pipeline.partition_keys import HOUR, LETTA, at_source, name_at, partition_key
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.settings import Settings, SourceSettings
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import change_settings, make_settings
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import add_run, execute, resources_of

LAG = timedelta(minutes=5)
NINE = datetime(2026, 11, 21, 9, tzinfo=UTC)
NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"
WITHOUT_JUDGE = make_settings(source__postgres_url=NOWHERE, storage__database_url=NOWHERE)
WITH_JUDGE = change_settings(WITHOUT_JUDGE, judge__model="a-model", judge__base_url="http://127.0.0.1:1/v1")


@cache
def _instance_on_disk() -> dg.DagsterInstance:
    """An instance for all ticks that write nothing into it: a schedule's context takes none that is in memory."""
    return dg.DagsterInstance.local_temp(mkdtemp())


def tick(
    settings: Settings, at: datetime, instance: dg.DagsterInstance | None = None, source: str = LETTA
) -> dg.RunRequest | str | None:
    """The run that a tick requests, or why it requests none."""
    repository = build_defs(settings).get_repository_def()
    context = dg.build_schedule_context(
        instance=instance or _instance_on_disk(),
        scheduled_execution_time=at,
        repository_def=repository,
        resources=resources_of(settings),
    )
    result = repository.get_schedule_def(name_at(SCHEDULE_NAME, source)).evaluate_tick(context)
    [request] = result.run_requests or [None]
    return request or result.skip_message


@pytest.mark.parametrize(
    ("minutes", "hour"),
    [(-1, 7), (0, 7), (4.99, 7), (5, 8), (6, 8), (59.99, 8), (60, 8), (64.99, 8), (65, 9)],
)
def test_last_closed_hour_is_closed_for_the_whole_lag(minutes: float, hour: int) -> None:
    assert last_closed_hour(NINE + timedelta(minutes=minutes), LAG) == NINE.replace(hour=hour)


def test_schedule_requests_the_hour_closed_five_minutes_ago() -> None:
    request = tick(WITHOUT_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-21-08:00"
    assert request.tags["dagster/partition"] == "2026-11-21-08:00"


def test_schedule_after_midnight_requests_the_last_hour_of_the_day() -> None:
    request = tick(WITHOUT_JUDGE, datetime(2027, 1, 1, 0, 5, tzinfo=UTC))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-12-31-23:00"


def test_schedule_over_a_day_requests_every_hour_once() -> None:
    """As Dagster's daemon would tick: by the cron string itself."""
    schedule = build_defs(WITHOUT_JUDGE).resolve_schedule_def(SCHEDULE_NAME)
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("5 * * * *", "UTC")
    hours = [last_closed_hour(NINE + timedelta(hours=number, minutes=5), LAG) for number in range(24)]
    assert hours == [NINE + (number - 1) * HOUR for number in range(24)]


def test_schedule_before_the_first_partition_closes_skips() -> None:
    settings = change_settings(WITHOUT_JUDGE, capture__start=NINE)
    assert tick(settings, NINE + timedelta(minutes=5)) == (
        "2026-11-21-08:00 is before the first partition, 2026-11-21-09:00."
    )
    request = tick(settings, NINE + timedelta(minutes=65))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == partition_key(NINE)


def test_schedule_with_judge_requests_all_three_assets() -> None:
    request = tick(WITH_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert {key.to_user_string() for key in request.asset_selection or ()} == {
        "terminal_runs",
        "trajectories",
        "refined_outcomes",
    }


def test_schedule_without_judge_logs_why_it_requests_no_verdicts(capfd: pytest.CaptureFixture[str]) -> None:
    request = tick(WITHOUT_JUDGE, NINE + timedelta(minutes=5))
    assert isinstance(request, dg.RunRequest)
    assert {key.to_user_string() for key in request.asset_selection or ()} == {"terminal_runs", "trajectories"}
    output = "".join(capfd.readouterr())
    assert "refined_outcomes is not requested. No judge is configured: set TRAJECTORY_JUDGE_MODEL" in output


# ---- with the capture sensor -----------------------------------------------------------------------------------------


@pytest.fixture
def with_sensor(captured: Settings) -> Settings:
    return change_settings(captured, capture__enabled=True)


AFTER_BUSY = NOW.replace(hour=BUSY[-1].hour + 1, minute=5)
"""When the last of the busy hours is requested."""


def test_schedule_skips_an_hour_that_the_sensor_captured(with_sensor: Settings) -> None:
    assert tick(with_sensor, AFTER_BUSY) == (
        f"{partition_key(BUSY[-1])} is already up to date; the capture sensor handled it."
    )


def test_schedule_requests_a_captured_hour_that_changed(with_sensor: Settings) -> None:
    execute(
        str(with_sensor.source.postgres_url),
        f"UPDATE runs SET background = true WHERE completed_at >= '{BUSY[-1]:%F %T}'",
    )
    request = tick(with_sensor, AFTER_BUSY)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == partition_key(BUSY[-1])


def test_schedule_skips_an_hour_in_progress(with_sensor: Settings, tmp_path: Path) -> None:
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    execute(str(with_sensor.storage.database_url), "TRUNCATE trajectory.partitions")
    add_run(instance, dg.DagsterRunStatus.QUEUED, {"dagster/partition": partition_key(BUSY[-1])}, CAPTURE)
    assert tick(with_sensor, AFTER_BUSY, instance) == f"{partition_key(BUSY[-1])} is already in progress."


def test_schedule_with_sensor_off_requests_a_captured_hour(captured: Settings) -> None:
    assert isinstance(tick(captured, AFTER_BUSY), dg.RunRequest)


def test_schedule_with_unreachable_source_requests_the_run(with_sensor: Settings) -> None:
    unreachable = change_settings(with_sensor, source__postgres_url="postgresql://letta@127.0.0.1:1/letta")
    assert isinstance(tick(unreachable, AFTER_BUSY), dg.RunRequest)


def test_schedule_follows_the_closing_lag_setting() -> None:
    settings = change_settings(WITHOUT_JUDGE, capture__closing_lag_minutes=75)
    schedule = build_defs(settings).resolve_schedule_def(SCHEDULE_NAME)
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.cron_schedule == "15 * * * *"
    request = tick(settings, NINE + timedelta(minutes=15))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-21-07:00"


# ---- of another source -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_letta_code(with_sensor: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that name the demonstration's runs of Letta Code, which ended between 11 and 12 o'clock."""
    monkeypatch.setenv("TRAJECTORY_SOURCES", LETTA_CODE_SOURCE)
    others = SourceSettings.model_validate({"TRAJECTORY_SOURCES": LETTA_CODE_SOURCE}).others
    return change_settings(with_sensor, source__others=others)


NOON = datetime(2026, 11, 29, 12, 5, tzinfo=UTC)


def test_each_source_has_a_schedule_of_its_own_that_is_off_by_default(with_letta_code: Settings) -> None:
    for enabled in (False, True):
        definitions = build_defs(change_settings(with_letta_code, capture__enabled=enabled))
        schedule = definitions.resolve_schedule_def(f"{SCHEDULE_NAME}_{LETTA_CODE_NAME}")
        assert schedule.default_status.value == ("RUNNING" if enabled else "STOPPED")
        assert schedule.job_name == f"trajectory_job_{LETTA_CODE_NAME}"


def test_schedule_of_a_source_requests_its_hour_until_it_is_captured(with_letta_code: Settings) -> None:
    settings, hour = with_letta_code, at_source(NOON.replace(hour=11, minute=0), LETTA_CODE_NAME)
    request = tick(settings, NOON, source=LETTA_CODE_NAME)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == partition_key(hour)
    assert {tuple(key.path) for key in request.asset_selection or ()} == {
        (LETTA_CODE_NAME, name) for name in ("terminal_runs", "trajectories")
    }
    sinks = Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))
    materialize_terminal_runs(hour, LettaCodeSource(LETTA_CODE_NAME, (LETTA_CODE_FOLDER,)), sinks)
    materialize_trajectories(hour, sinks)
    assert tick(settings, NOON, source=LETTA_CODE_NAME) == (
        f"{partition_key(hour)} is already up to date; the capture sensor handled it."
    )


def test_schedule_of_a_source_that_is_gone_requests_the_run(
    with_letta_code: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its failure shows what is wrong where people look for it."""
    monkeypatch.setenv("TRAJECTORY_SOURCES", f"{LETTA_CODE_NAME}=letta_code:{tmp_path / 'gone'}")
    assert isinstance(tick(with_letta_code, NOON, source=LETTA_CODE_NAME), dg.RunRequest)
