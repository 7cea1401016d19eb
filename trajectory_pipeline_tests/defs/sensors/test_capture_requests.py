"""The contract of the capture sensor: it requests the partitions that differ from the source, and no others.

Real databases, a clock that stands still, Dagster's instance in memory. Whatever changes in the source (rows that come,
change or go, in any table that a trajectory is made of, whether or not Letta moves a timestamp) is found by comparing.
"""

import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from trajectory_pipeline.defs.asset_keys import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.partitions import hours_of_tags, range_tags
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.run_requests import MAX_RUNS_PER_TICK, PAUSE_AFTER_FAILURE
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.pipeline import capture
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import add_run, execute, query, requested_hours, run, tick_sensor
from trajectory_pipeline_tests.marks import some_heavy


def tick(
    settings: Settings, instance: dg.DagsterInstance, now: datetime = NOW, cursor: str | None = None
) -> SensorExecutionData:
    return tick_sensor(build_capture_sensor(settings, lambda: now), settings, instance, cursor)


# ---- from nothing to all -------------------------------------------------------------------------------------------


def test_capture_with_empty_sinks_requests_every_hour_with_runs(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    """With the default start, almost two years of partitions: they are found tick by tick, the newest first."""
    now = busy_hours[-1] + timedelta(minutes=30)
    found: list[datetime] = []
    while hours := requested_hours(result := tick(settings, instance, now)):
        assert len(result.run_requests) <= MAX_RUNS_PER_TICK
        # What was never captured is missing, not stale.
        assert result.asset_events == []
        assert not found or max(hours) < min(found)
        found.extend(hours)
        for request in result.run_requests:
            assert request.asset_selection == CAPTURE
            add_run(instance, dg.DagsterRunStatus.QUEUED, request.tags, CAPTURE)
    assert sorted(found) == busy_hours
    assert result.skip_message == "289 partitions compared, 46 stale: 46 in progress."


def test_capture_with_captured_history_requests_nothing(captured: Settings, instance: dg.DagsterInstance) -> None:
    result = tick(captured, instance)
    assert (result.run_requests, result.skip_message) == ([], "10 partitions compared, 0 stale.")
    assert result.cursor == partition_key(captured.capture.start)


def test_capture_requests_raw_rows_without_trajectories(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.storage.database_url),
        "DELETE FROM trajectory.partitions WHERE asset = 'trajectories' AND partition_key ="
        f" '{partition_key(BUSY[2])}'",
    )
    assert requested_hours(tick(captured, instance)) == [BUSY[2]]


def test_capture_requests_trajectories_of_former_raw_rows(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.storage.database_url),
        "UPDATE trajectory.partitions SET upstream_digest = 'of others'"
        f" WHERE asset = 'trajectories' AND partition_key = '{partition_key(BUSY[2])}'",
    )
    assert requested_hours(tick(captured, instance)) == [BUSY[2]]


def test_capture_with_empty_source_requests_nothing(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.source.postgres_url), "TRUNCATE runs CASCADE")
    execute(
        str(captured.storage.database_url),
        "TRUNCATE trajectory.partitions, trajectory.trajectories, trajectory.run_locations",
    )
    result = tick(captured, instance)
    assert (result.run_requests, result.skip_message) == ([], "10 partitions compared, 0 stale.")


@pytest.mark.parametrize("lost", ["terminal_runs", "trajectories"])
def test_capture_requests_an_empty_hour_with_half_its_ledger(
    captured: Settings, instance: dg.DagsterInstance, lost: str
) -> None:
    empty = NOW.replace(minute=0)
    execute(
        str(captured.storage.database_url),
        f"DELETE FROM trajectory.partitions WHERE asset = '{lost}' AND partition_key = '{partition_key(empty)}'",
    )
    assert requested_hours(tick(captured, instance)) == [empty]


def test_capture_with_lost_ledger_requests_hours_gone_at_the_source(
    captured: Settings, instance: dg.DagsterInstance
) -> None:
    execute(str(captured.source.postgres_url), "TRUNCATE runs CASCADE")
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    held = query(
        str(captured.storage.database_url), "SELECT DISTINCT partition_key FROM trajectory.trajectories ORDER BY 1"
    )
    assert [partition_key(hour) for hour in requested_hours(tick(captured, instance))] == [row[0] for row in held] != []


# ---- any change to any row -----------------------------------------------------------------------------------------

OF_HOUR = (
    "(SELECT min(r.id) FROM runs r JOIN messages m ON m.run_id = r.id JOIN steps s ON s.run_id = r.id"
    " JOIN run_metrics rm ON rm.id = r.id JOIN step_metrics sm ON sm.id = s.id"
    " WHERE r.status = 'completed' AND date_trunc('hour', r.completed_at) = '2026-11-20 14:00')"
)
"""A run that has rows in every table that a trajectory is made of."""


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE messages SET content = content WHERE id = (SELECT min(id) FROM messages WHERE run_id = {OF_HOUR})",
        f"UPDATE messages SET is_deleted = true WHERE id = (SELECT min(id) FROM messages WHERE run_id = {OF_HOUR})",
        f"UPDATE steps SET feedback = 'positive' WHERE id = (SELECT min(id) FROM steps WHERE run_id = {OF_HOUR})",
        f"UPDATE runs SET status = 'failed' WHERE id = {OF_HOUR}",
        f"UPDATE runs SET status = 'running' WHERE id = {OF_HOUR}",
        f"UPDATE run_metrics SET run_ns = 7 WHERE id = {OF_HOUR}",
        "UPDATE step_metrics SET step_ns = 7 WHERE id = (SELECT min(m.id) FROM step_metrics m JOIN steps s USING (id)"
        f" WHERE s.run_id = {OF_HOUR})",
        "INSERT INTO messages SELECT (jsonb_populate_record(m, jsonb_build_object('id', 'message-late',"
        " 'sequence_id', (SELECT max(sequence_id) + 1 FROM messages)))).* FROM messages m"
        f" WHERE id = (SELECT min(id) FROM messages WHERE run_id = {OF_HOUR})",
        'INSERT INTO runs SELECT (jsonb_populate_record(r, \'{"id": "run-late"}\')).* FROM runs r'
        f" WHERE id = {OF_HOUR}",
        f"DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE run_id = {OF_HOUR})",
        f"DELETE FROM run_metrics WHERE id = {OF_HOUR}",
        f"DELETE FROM runs WHERE id = {OF_HOUR}",
    ],
)
def test_capture_after_one_changed_row_requests_its_partition_only(
    captured: Settings, instance: dg.DagsterInstance, change: str
) -> None:
    before = query(str(captured.source.postgres_url), f"SELECT {OF_HOUR}")
    assert before != [(None,)]
    execute(str(captured.source.postgres_url), change)
    result = tick(captured, instance)
    assert requested_hours(result) == [datetime(2026, 11, 20, 14, tzinfo=UTC)]
    assert [request.tags["trajectory/reason"] for request in result.run_requests] == ["the source changed"]
    # What the UI shows of the partition until its run is over.
    (event,) = result.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert (event.asset_key, event.partition) == (CAPTURE[0], "2026-11-20-14:00")
    assert event.metadata["stale"] == dg.MetadataValue.bool(True)


def test_capture_after_moved_run_requests_both_hours(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.source.postgres_url),
        f"UPDATE runs SET completed_at = '2026-11-20 18:59:59.999999' WHERE id = {OF_HOUR}",
    )
    assert requested_hours(tick(captured, instance)) == [NOW.replace(hour=hour, minute=0) for hour in (14, 18)]


def test_capture_after_run_ends_requests_the_open_hour(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.source.postgres_url), f"UPDATE runs SET completed_at = '2026-11-20 19:29' WHERE id = {OF_HOUR}"
    )
    assert requested_hours(tick(captured, instance)) == [NOW.replace(hour=hour, minute=0) for hour in (14, 19)]


def test_capture_with_running_run_requests_nothing(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.source.postgres_url),
        "INSERT INTO runs SELECT (jsonb_populate_record(r,"
        ' \'{"id": "run-going", "status": "running", "completed_at": null}\')).* FROM runs r'
        f" WHERE id = {OF_HOUR}",
    )
    assert requested_hours(tick(captured, instance)) == []


def test_capture_after_materialization_requests_nothing(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.source.postgres_url), f"UPDATE runs SET metadata_ = '{{\"k\": 1}}' WHERE id = {OF_HOUR}")
    [hour] = requested_hours(tick(captured, instance))
    assert run(captured, instance, hour, assets=["terminal_runs", "trajectories"]).success
    assert requested_hours(tick(captured, instance)) == []


# ---- what holds a request back -------------------------------------------------------------------------------------


def test_capture_skips_a_partition_in_progress(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    add_run(instance, dg.DagsterRunStatus.STARTED, range_tags(BUSY[1], BUSY[5]))
    add_run(instance, dg.DagsterRunStatus.QUEUED, {"dagster/partition": partition_key(BUSY[7])}, CAPTURE)
    add_run(instance, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(BUSY[0])}, REFINEMENT)
    assert requested_hours(tick(captured, instance)) == [BUSY[0], BUSY[6]]


@pytest.mark.parametrize(
    ("took", "pause"),
    some_heavy(
        [(timedelta(0), 70), (timedelta(seconds=3), 100), (timedelta(minutes=5), 3070), (timedelta(hours=3), 3600)],
        (timedelta(seconds=3), 100),
        (timedelta(hours=3), 3600),
    ),
)
@pytest.mark.parametrize("where", ["19:00", "14:00"])
def test_capture_of_a_busy_hour_waits_by_what_the_last_one_took(
    captured: Settings, instance: dg.DagsterInstance, took: timedelta, pause: int, where: str
) -> None:
    """Every tick would find it changed: it would be read again twice a minute, each time with a run in Dagster."""
    hour = datetime.fromisoformat(f"2026-11-20T{where}+00:00")
    ended = f"completed_at = '{hour + timedelta(minutes=20):%Y-%m-%d %H:%M}'"
    execute(str(captured.source.postgres_url), f"UPDATE runs SET {ended} WHERE id = {OF_HOUR}")
    execute(
        str(captured.storage.database_url),
        f"UPDATE trajectory.partitions SET materialized_at = '{NOW}', snapshot_at = '{NOW - took}'"
        f" WHERE asset = 'terminal_runs' AND partition_key = '{partition_key(hour)}'",
    )
    for seconds in (0, 30, pause - 1):
        result = tick(captured, instance, NOW + timedelta(seconds=seconds), partition_key(BUSY[0]))
        assert hour not in requested_hours(result)
    assert "1 materialized a moment ago" in str(result.skip_message) or result.run_requests
    assert hour in requested_hours(tick(captured, instance, NOW + timedelta(seconds=pause), partition_key(BUSY[0])))
    assert hour in requested_hours(tick(captured, instance, NOW - timedelta(seconds=9), partition_key(BUSY[0])))


def test_capture_leaves_no_observation_of_the_open_hour(captured: Settings, instance: dg.DagsterInstance) -> None:
    """It is stale all the time, and Dagster keeps observations without a run for good."""
    execute(
        str(captured.source.postgres_url), f"UPDATE runs SET completed_at = '2026-11-20 19:29' WHERE id = {OF_HOUR}"
    )
    observed = [event.partition for event in tick(captured, instance).asset_events if event.partition]
    assert observed == ["2026-11-20-14:00"]


def test_capture_pauses_after_a_failed_run(captured: Settings, instance: dg.DagsterInstance) -> None:
    """One that cannot succeed would otherwise fail twice a minute, for ever."""
    now = datetime.now(UTC)
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    execute(str(captured.source.postgres_url), f"DELETE FROM runs WHERE completed_at >= '{NOW:%Y-%m-%d %H:%M}'")
    add_run(instance, dg.DagsterRunStatus.FAILURE, range_tags(BUSY[0], BUSY[7]), CAPTURE)
    following = partition_key(BUSY[7] + HOUR)
    result = tick(captured, instance, now, following)
    assert result.run_requests == []
    assert str(result.skip_message).endswith("8 stale: 8 failed in the last 10 minutes.")
    later = now + PAUSE_AFTER_FAILURE + timedelta(minutes=1)
    assert requested_hours(tick(captured, instance, later, following)) == BUSY


def test_capture_after_a_failed_range_pauses_only_what_failed(
    captured: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbors of a partition that cannot succeed are requested at once."""
    real = capture.materialize_terminal_runs

    def materialize(hour: datetime, *arguments: Any, **options: Any) -> Any:
        if hour in (BUSY[2], BUSY[5]):
            raise OverflowError("odd") if hour == BUSY[2] else SourceError("gone")
        return real(hour, *arguments, **options)

    monkeypatch.setattr(capture, "materialize_terminal_runs", materialize)
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    assert not run(captured, instance, BUSY[0], BUSY[-1], assets=["terminal_runs", "trajectories"]).success
    healthy = [hour for hour in BUSY if hour not in (BUSY[2], BUSY[5])]
    # Captured in the failed run, and not converted, because Dagster started no second step.
    result = tick(captured, instance)
    assert requested_hours(result) == healthy
    for request in result.run_requests:
        hours = hours_of_tags(request.tags)
        assert hours is not None
        assert run(captured, instance, *hours, assets=["terminal_runs", "trajectories"]).success
    result = tick(captured, instance)
    assert result.run_requests == []
    assert str(result.skip_message).endswith("2 stale: 2 failed in the last 10 minutes.")


def test_capture_after_a_killed_range_requests_its_hours_alone(
    captured: Settings, instance: dg.DagsterInstance
) -> None:
    """Whichever of them killed the run fails alone the next time."""
    now = datetime.now(UTC)
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    execute(str(captured.source.postgres_url), f"DELETE FROM runs WHERE completed_at >= '{NOW:%Y-%m-%d %H:%M}'")
    add_run(instance, dg.DagsterRunStatus.FAILURE, range_tags(BUSY[1], BUSY[3]), CAPTURE)
    following = partition_key(BUSY[7] + HOUR)
    assert requested_hours(tick(captured, instance, now, following)) == [BUSY[0], *BUSY[4:]]
    later = now + PAUSE_AFTER_FAILURE + timedelta(minutes=1)
    requests = tick(captured, instance, later, following).run_requests
    assert [hours_of_tags(request.tags) for request in reversed(requests)] == [
        *((hour, hour) for hour in BUSY[:4]),
        (BUSY[4], BUSY[7]),
    ]


def test_capture_with_unreachable_source_hides_the_password(captured: Settings, instance: dg.DagsterInstance) -> None:
    settings = change_settings(captured, source__postgres_url="postgresql://letta:hunter2@127.0.0.1:1/letta")
    result = tick(settings, instance, cursor="2026-11-20-12:00")
    assert result.run_requests == []
    assert str(result.skip_message).startswith("Connecting failed at the source 127.0.0.1:1/letta: ")
    assert "hunter2" not in str(result.skip_message)
    assert "is the server running" in str(result.skip_message)
    assert result.cursor in (None, "2026-11-20-12:00")


def test_capture_with_unreachable_sink_hides_the_password(captured: Settings, instance: dg.DagsterInstance) -> None:
    settings = change_settings(captured, storage__database_url="postgresql://me:hunter2@127.0.0.1:1/agents")
    result = tick(settings, instance)
    assert result.run_requests == []
    assert "127.0.0.1:1/agents" in str(result.skip_message)
    assert "hunter2" not in str(result.skip_message)


def test_capture_with_slow_source_times_out_and_compares_fewer(
    captured: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectory_pipeline.defs.sensors.capture.QUERY_TIMEOUT_SECONDS", 1)
    with psycopg.connect(str(captured.source.postgres_url)) as connection:
        connection.execute("LOCK TABLE steps")
        result = tick(captured, instance)
        again = tick(captured, instance, cursor=result.cursor)
        last = tick(captured, instance, cursor="2026-11-20-15:00 / 256")
    assert result.run_requests == []
    assert str(result.skip_message).startswith("Comparing fingerprints failed at the source")
    assert "timeout" in str(result.skip_message)
    assert (result.cursor, again.cursor) == (" / 2", " / 4")
    # What is too much even so is passed over: the rest of the history must not wait for it.
    assert last.cursor == "2026-11-20-14:00 / 256"
    # A tick that took far less than its limit is followed by one that asks for more.
    monkeypatch.setattr("trajectory_pipeline.defs.sensors.capture.QUERY_TIMEOUT_SECONDS", 120)
    assert tick(captured, instance, cursor=again.cursor).cursor == f"{partition_key(captured.capture.start)} / 2"


def test_capture_with_silent_source_times_out(captured: Settings, instance: dg.DagsterInstance) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://letta:hunter2@127.0.0.1:{silent.getsockname()[1]}/letta?connect_timeout=2"
        result = tick(change_settings(captured, source__postgres_url=url), instance, cursor="2026-11-20-12:00")
    assert result.run_requests == []
    assert str(result.skip_message).startswith("Connecting failed at the source 127.0.0.1:")
    assert "timeout" in str(result.skip_message)


def test_capture_requests_ranges_and_single_hours(captured: Settings, instance: dg.DagsterInstance) -> None:
    execute(
        str(captured.storage.database_url),
        f"DELETE FROM trajectory.partitions WHERE partition_key IN ('{partition_key(BUSY[0])}',"
        f" '{partition_key(BUSY[4])}',"
        f" '{partition_key(BUSY[5])}')",
    )
    pair, single = tick(captured, instance).run_requests
    assert (pair.partition_key, single.partition_key) == (None, partition_key(BUSY[0]))
    assert pair.tags == {
        "trajectory/reason": "the source changed",
        "dagster/sensor_name": "capture_sensor",
        **range_tags(BUSY[4], BUSY[5]),
    }
    assert single.tags["dagster/partition"] == partition_key(BUSY[0])


def test_capture_with_batch_of_one_requests_a_run_per_partition(
    captured: Settings, instance: dg.DagsterInstance
) -> None:
    execute(str(captured.storage.database_url), "TRUNCATE trajectory.partitions")
    settings = change_settings(captured, dagster__backfill_batch=1)
    result = tick(settings, instance)
    assert [request.partition_key for request in result.run_requests] == [
        partition_key(hour) for hour in reversed(BUSY)
    ]
