"""Backups that were made one after the other, of stores that go on changing: what is restored heals by itself."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from trajectory_pipeline.defs.partitions import range_tags
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.reconciliation import build_reconciliation_sensor
from trajectory_pipeline.demo.embedded_postgres.binaries import installed_binaries
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.crashes.worker import mark
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import CAPTURE, add_run, query, requested_hours, run, tick_sensor
from trajectory_pipeline_tests.distributed.equality import check_equal_to_scratch
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = [pytest.mark.heavy, pytest.mark.process]
PROJECT = Path(__file__).parents[2]


def postgres_program(name: str) -> str:
    """Return a client program of Postgres: the embedded server's own, which is as new as that server."""
    return str(installed_binaries().program(name))


def dump(url: str, file: Path) -> None:
    subprocess.run([postgres_program("pg_dump"), "-Fc", "-f", str(file), url], check=True)


def restore(url: str, file: Path) -> None:
    command = [postgres_program("pg_restore"), "--exit-on-error", "--no-owner", "-d", url, str(file)]
    subprocess.run(command, check=True)


def test_restored_stores_heal_when_files_are_newer_than_rows(
    pipeline: Pipeline, make_database: Callable[[str | None], str], tmp_path: Path
) -> None:
    hours = sorted(sample_partitions())[-6:]
    pipeline.capture(*hours)
    # 1. The trajectory database is backed up.
    dump(pipeline.database_url, tmp_path / "trajectory.dump")
    # Meanwhile the source changes, a run is deleted there, and both are captured.
    mark(pipeline, "changed", hours[:2])
    with psycopg.connect(pipeline.letta_url) as connection:
        row = connection.execute(
            "SELECT id FROM runs WHERE completed_at >= %s AND status = 'completed' ORDER BY id LIMIT 1",
            [hours[-1].replace(tzinfo=None)],
        ).fetchone()
        assert row is not None
        gone = row[0]
        for statement in ("DELETE FROM messages WHERE run_id = %s", "DELETE FROM steps WHERE run_id = %s"):
            connection.execute(statement.encode(), [gone])
        connection.execute("DELETE FROM runs WHERE id = %s", [gone])
    pipeline.capture(*hours)
    # 2. The files are backed up.
    shutil.copytree(pipeline.folder, tmp_path / "copy")
    # The source changes once more, and everything is lost.
    mark(pipeline, "again", hours[2:3])

    database = make_database(None)
    restore(database, tmp_path / "trajectory.dump")
    restored = Pipeline(pipeline.letta_url, database, tmp_path / "copy")
    stale = find_stale_partitions(LettaSource(restored.letta_url), restored.database, hours)
    assert {hours[0], hours[1], hours[2], hours[-1]} <= set(stale)
    restored.capture(*stale)
    assert find_stale_partitions(LettaSource(restored.letta_url), restored.database, hours) == []
    [kept] = restored.ask("SELECT deleted_at FROM trajectory.trajectories WHERE run_id = %s", gone)
    assert kept["deleted_at"] is not None
    scratch = Pipeline(pipeline.letta_url, make_database("template_trajectory"), tmp_path / "scratch")
    scratch.capture(*hours)
    check_equal_to_scratch(restored, scratch, hours, complete=False, deleted=frozenset({gone}))


def open_instance(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    """Open Dagster's own instance on Postgres, as its processes do."""
    home.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("DAGSTER_PG_URL", sqlalchemy_url(url, "psycopg2"))
    return dg.DagsterInstance.get()


def pipeline_of(settings: Settings) -> Pipeline:
    storage = settings.storage
    return Pipeline(str(settings.source.postgres_url), str(storage.database_url), Path(str(storage.parquet_location)))


def requested(settings: Settings, instance: dg.DagsterInstance) -> list[datetime]:
    """The partitions that the capture sensor requests."""
    return requested_hours(tick_sensor(build_capture_sensor(settings, lambda: NOW), settings, instance))


def test_three_stores_restored_from_backups_in_order_heal(
    settings: Settings,
    make_database: Callable[[str | None], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = change_settings(settings, capture__start=BUSY[0])
    dagster_url = make_database(None)
    with open_instance(tmp_path / "home", dagster_url, monkeypatch) as instance:
        assert run(settings, instance, BUSY[0], BUSY[3], assets=CAPTURE).success
        # A run is in progress during the backup.
        add_run(instance, dg.DagsterRunStatus.STARTED, range_tags(BUSY[0], BUSY[0]), [dg.AssetKey("terminal_runs")])
        # 1. Dagster's storage. Its backup lacks what follows.
        dump(dagster_url, tmp_path / "dagster.dump")
        assert run(settings, instance, BUSY[4], BUSY[5], assets=CAPTURE).success
        # 2. The trajectory database.
        dump(str(settings.storage.database_url), tmp_path / "trajectory.dump")
        mark(pipeline_of(settings), "changed", [BUSY[0], BUSY[1]])
        assert run(settings, instance, BUSY[1], assets=CAPTURE).success
        assert run(settings, instance, BUSY[6], assets=CAPTURE).success
        # 3. The files.
        shutil.copytree(settings.storage.data_folder, tmp_path / "copy")

    # Everything is lost, and restored: files, trajectory database, Dagster's storage.
    database, dagster_url = make_database(None), make_database(None)
    restore(database, tmp_path / "trajectory.dump")
    restore(dagster_url, tmp_path / "dagster.dump")
    restored = change_settings(settings, storage__database_url=database, storage__data_folder=tmp_path / "copy")
    with open_instance(tmp_path / "new home", dagster_url, monkeypatch) as instance:
        # The run that was in progress keeps its partition until a person ends it.
        hours = requested(restored, instance)
        assert BUSY[0] not in hours
        assert {BUSY[1], BUSY[6], BUSY[7]} <= set(hours)
        [lost] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        instance.report_run_canceled(lost)
        assert BUSY[0] in requested(restored, instance)

        for hour in requested(restored, instance):
            assert run(restored, instance, hour, assets=CAPTURE).success
        assert requested(restored, instance) == []
        reconciliation = build_reconciliation_sensor(restored, lambda: NOW)
        reported = str(tick_sensor(reconciliation, restored, instance).skip_message)
        assert not reported.endswith(" 0 reported to Dagster.")
        assert str(tick_sensor(reconciliation, restored, instance).skip_message).endswith(" 0 reported to Dagster.")
        for asset in CAPTURE:
            entries = query(database, "SELECT partition_key FROM trajectory.partitions WHERE asset = %s", [asset])
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {key for (key,) in entries}

    scratch = Pipeline(str(settings.source.postgres_url), make_database("template_trajectory"), tmp_path / "scratch")
    scratch.capture(*BUSY)
    check_equal_to_scratch(pipeline_of(restored), scratch, BUSY, complete=False)
