"""The commands ``check``, ``erase`` and ``prune``, and dry runs: what they print and change."""

from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.pipeline.test_source_changes import delete_run

SMALL = sorted((size, hour) for hour, size in sample_partitions().items() if size > 2)
(_, HOUR), (_, OTHER) = sorted(SMALL[:2], key=lambda item: item[1])
KEY, OTHER_KEY = partition_key(HOUR), partition_key(OTHER)
RANGE = ("--from", HOUR.isoformat(), "--to", OTHER.replace(minute=1).isoformat())


def captured(databases: dict[str, str]) -> Pipeline:
    folder = Path(databases["TRAJECTORY_DATA_FOLDER"]) / "parquet"
    pipeline = Pipeline(databases["LETTA_PG_URI"], databases["TRAJECTORY_DATABASE_URL"], folder)
    pipeline.capture(HOUR)
    return pipeline


def gone(pipeline: Pipeline) -> str:
    run_id = min(pipeline.run_ids(HOUR))
    delete_run(pipeline, run_id)
    return run_id


def test_dry_run_reports_planned_changes_and_changes_nothing(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    gone(pipeline)
    files, ledger = pipeline.files(), pipeline.ask("SELECT * FROM trajectory.partitions ORDER BY 1, 2")
    result = run_command("materialize", *RANGE, "--dry-run", **databases)
    assert result.exit_code == 0, result.output
    assert f"{KEY} would be captured again (1 run deleted at the source)" in squeezed(result)
    assert f"{OTHER_KEY} would be captured ({sample_partitions()[OTHER]} new runs)" in squeezed(result)
    assert squeezed(result).endswith("Nothing was changed.")
    assert (pipeline.files(), pipeline.ask("SELECT * FROM trajectory.partitions ORDER BY 1, 2")) == (files, ledger)
    with psycopg.connect(databases["DAGSTER_PG_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (0,)


def test_dry_run_of_trajectories_does_not_read_the_source(run_command: Command, databases: dict[str, str]) -> None:
    captured(databases)
    unreachable = {**databases, "LETTA_PG_URI": "postgresql://letta@127.0.0.1:1/letta"}
    result = run_command("materialize", "--partition", KEY, "--select", "trajectories", "--dry-run", **unreachable)
    assert result.exit_code == 0, result.output
    assert f"{KEY} would be rebuilt from its raw rows, without the source" in squeezed(result)
    missing = run_command("materialize", "--partition", OTHER_KEY, "--select", "trajectories", "--dry-run", **databases)
    assert missing.exit_code == 1
    assert f"{OTHER_KEY} has no raw rows" in squeezed(missing)


def test_check_lists_differences_and_exits_1_if_there_are_any(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    hours = {"TRAJECTORY_START": HOUR.isoformat()}
    pipeline.change_source(
        f"DELETE FROM runs WHERE status IN ('completed', 'failed', 'cancelled')"
        f" AND date_trunc('hour', completed_at) <> '{HOUR:%Y-%m-%d %H:%M}'"
    )
    pipeline.capture(HOUR)
    result = run_command("check", **databases, **hours)
    assert result.exit_code == 0, result.output
    assert f"1 partition, {sample_partitions()[HOUR]} runs at the source: no differences." in squeezed(result)
    pipeline.do(f"DELETE FROM trajectory.trajectories WHERE run_id = '{min(pipeline.run_ids(HOUR))}'")
    red = run_command("check", **databases, **hours)
    assert red.exit_code == 1
    assert f"✗ {KEY}: {sample_partitions()[HOUR]} trajectories by the ledger" in squeezed(red)
    late = run_command("check", **databases, TRAJECTORY_START="2026-11-23")
    assert f"{sample_partitions()[HOUR]} terminal runs are before the first partition" in squeezed(late)


def test_erase_with_policy_keep_exits_2(run_command: Command, databases: dict[str, str]) -> None:
    result = run_command("erase", **databases)
    assert result.exit_code == 2
    assert "TRAJECTORY_DELETED_CONTENT is not erase" in squeezed(result)


def test_erase_dry_run_only_lists_and_erase_erases(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    run_id = gone(pipeline)
    pipeline.capture(HOUR)
    erasing = {
        **databases,
        "TRAJECTORY_DELETED_CONTENT": "erase",
        "LETTA_PG_URI": "postgresql://letta@127.0.0.1:1/letta",
    }
    planned = run_command("erase", "--dry-run", **erasing)
    assert f"{KEY} 1 run with content deleted at the source 1 partition. Nothing was changed." in squeezed(planned)
    row = pipeline.trajectory(run_id)
    assert row is not None
    assert not row["erased"]
    done = run_command("erase", **erasing)
    assert done.exit_code == 0, done.output
    row = pipeline.trajectory(run_id)
    assert row is not None
    assert row["erased"]
    assert squeezed(run_command("erase", **erasing)) == "0 partitions. Done."


def test_prune_without_retention_settings_exits_2(run_command: Command, databases: dict[str, str]) -> None:
    result = run_command("prune", "--dry-run", **databases)
    assert result.exit_code == 2
    assert "Neither TRAJECTORY_RETENTION_DAYS nor TRAJECTORY_RAW_RETENTION_DAYS is set" in squeezed(result)


def test_prune_dry_run_only_lists_and_prune_deletes(
    run_command: Command, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = captured(databases)
    monkeypatch.setattr("trajectory_pipeline.cli.prune.utc_now", lambda: HOUR + timedelta(days=30, hours=1))
    unreachable = {**databases, "LETTA_PG_URI": "postgresql://letta@127.0.0.1:1/letta"}
    young = run_command("prune", **unreachable, TRAJECTORY_RETENTION_DAYS="31")
    assert (young.exit_code, squeezed(young)) == (0, "0 partitions, 0 rows, 0 files of 0 bytes. Deleted.")
    ages = {"TRAJECTORY_RETENTION_DAYS": "30", "TRAJECTORY_RAW_RETENTION_DAYS": "30"}
    files = pipeline.files()
    rows, size = 2 * sample_partitions()[HOUR], sum(map(len, files.values()))
    planned = run_command("prune", "--dry-run", **unreachable, **ages)
    assert planned.exit_code == 0, planned.output
    assert squeezed(planned).endswith(f"1 partition, {rows} rows, 2 files of {size} bytes. Nothing was changed.")
    assert pipeline.files() == files
    done = run_command("prune", **unreachable, **ages)
    assert done.exit_code == 0, done.output
    assert squeezed(done).endswith(f"1 partition, {rows} rows, 2 files of {size} bytes. Deleted.")
    assert pipeline.files() == {}
    assert pipeline.ask("SELECT 1 AS x FROM trajectory.trajectories") == []
