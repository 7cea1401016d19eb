"""Each check of a partition fails on the fault that it is for, names what is wrong, and says what to do."""

from datetime import datetime, timedelta

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from trajectory_pipeline.defs.asset_checks import checks_of, repeat_results
from trajectory_pipeline.defs.history_checks import JOB_NAME
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.repeated_runs import find_repeated_runs
from trajectory_pipeline.schema.bookkeeping import QUARANTINE
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.declared_schema import schema_differences
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.defs.conftest import BUSY
from trajectory_pipeline_tests.defs.dagster_runs import (
    CAPTURE,
    check_evaluations,
    execute,
    query,
    run,
    run_job,
    started_steps,
)


def storage_of(settings: Settings) -> Storage:
    return Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))


def advice(check: dg.AssetCheckEvaluation) -> str:
    return str(check.metadata["what_to_do"].value)


# ---- schema ---------------------------------------------------------------------------------------------------------


def test_schema_of_captured_files_and_tables_is_as_declared(captured: Settings) -> None:
    storage = storage_of(captured)
    assert schema_differences(storage, TERMINAL_RUNS, BUSY) == []
    assert schema_differences(storage, TRAJECTORIES, BUSY, [TRAJECTORIES, QUARANTINE]) == []


@pytest.mark.parametrize("change", ["lost", "other type", "extra"])
def test_schema_of_a_changed_file_names_partition_and_column(captured: Settings, change: str) -> None:
    storage = storage_of(captured)
    [batch] = pa.Table.from_batches(storage.parquet.read(TRAJECTORIES, BUSY[0])).combine_chunks().to_batches()
    table = pa.table(batch.columns, names=batch.schema.names)
    changed = {
        "lost": (table.drop_columns("step_count"), "it has no column step_count"),
        "other type": (
            table.set_column(0, "run_id", table["run_id"].cast(pa.large_string())),
            "its column run_id is large_string, declared is string",
        ),
        "extra": (table.append_column("mine", table["run_id"]), "its column mine is not declared"),
    }
    content, expected = changed[change]
    file, path = storage.parquet.filesystem(TRAJECTORIES, BUSY[0])
    with file.open(path, "wb") as handle:
        pa.parquet.write_table(content, handle)
    [difference] = schema_differences(storage, TRAJECTORIES, BUSY)
    assert str(difference) == f"{partition_key(BUSY[0])}, the file of trajectories: {expected}"
    assert difference.extra is (change == "extra")


def test_schema_check_on_a_changed_table_stops_downstream(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    execute(
        str(judged.storage.database_url), "ALTER TABLE trajectory.trajectories ALTER COLUMN step_count DROP NOT NULL"
    )
    result = run(judged, instance, busy_hours[0])
    check = check_evaluations(instance, result.run_id, "trajectories")["schema_is_as_declared"]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert "step_count is bigint, declared is bigint NOT NULL" in str(check.description)
    assert "trajectory-pipeline migrate" in advice(check)
    assert started_steps(instance, result.run_id) == set(CAPTURE)


def test_schema_check_with_a_column_more_only_warns(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    execute(str(judged.storage.database_url), "ALTER TABLE trajectory.trajectories ADD COLUMN mine text")
    result = run(judged, instance, busy_hours[0])
    assert result.success
    check = check_evaluations(instance, result.run_id, "trajectories")["schema_is_as_declared"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)


def test_schema_without_primary_key_is_a_difference(captured: Settings) -> None:
    execute(str(captured.storage.database_url), "ALTER TABLE trajectory.trajectories DROP CONSTRAINT trajectories_pkey")
    [difference] = schema_differences(storage_of(captured), TRAJECTORIES, [], [TRAJECTORIES])
    assert "it has no PRIMARY KEY (run_id)" in str(difference)


# ---- uniqueness -----------------------------------------------------------------------------------------------------


def test_captured_runs_are_each_there_once(captured: Settings) -> None:
    for table in (TERMINAL_RUNS, TRAJECTORIES):
        assert find_repeated_runs(table, BUSY, storage_of(captured)) == {}


@pytest.mark.parametrize("table", [TERMINAL_RUNS, TRAJECTORIES], ids=lambda table: str(table.name))
def test_run_twice_in_a_file_is_found(captured: Settings, table: object) -> None:
    assert table in (TERMINAL_RUNS, TRAJECTORIES)
    declared = TERMINAL_RUNS if table is TERMINAL_RUNS else TRAJECTORIES
    storage = storage_of(captured)
    batches = list(storage.parquet.read(declared, BUSY[0]))
    storage.parquet.write(declared, BUSY[0], [*batches, batches[0].slice(0, 1)])
    run_id = str(batches[0].column("run_id")[0])
    assert find_repeated_runs(declared, BUSY, storage) == {
        run_id: f"more than once in the file of {partition_key(BUSY[0])}"
    }


def test_run_in_two_partitions_of_postgres_is_found(captured: Settings) -> None:
    url, keys = str(captured.storage.database_url), sorted(map(partition_key, BUSY[:2]))
    [(run_id,)] = query(url, f"SELECT min(run_id) FROM trajectory.trajectories WHERE partition_key = '{keys[0]}'")
    execute(
        url,
        "ALTER TABLE trajectory.trajectories DROP CONSTRAINT trajectories_pkey",
        f"CREATE TEMP TABLE twice AS SELECT * FROM trajectory.trajectories WHERE run_id = '{run_id}';"
        f" UPDATE twice SET partition_key = '{keys[1]}'; INSERT INTO trajectory.trajectories SELECT * FROM twice",
    )
    repeated = find_repeated_runs(TRAJECTORIES, BUSY, storage_of(captured))
    assert repeated == {run_id: f"2 times in Postgres, in {keys[0]}, {keys[1]}"}


@pytest.mark.parametrize("in_postgres", [True, False])
def test_unique_check_over_all_partitions_names_both_files(
    captured: Settings, instance: dg.DagsterInstance, *, in_postgres: bool
) -> None:
    """The daily job needs neither the report nor its extra."""
    storage, before = storage_of(captured), BUSY[0] - timedelta(hours=30)
    rows = list(storage.parquet.read(TRAJECTORIES, BUSY[0]))
    storage.parquet.write(TRAJECTORIES, before, rows)
    run_id = min(map(str, rows[0].column("run_id")))
    if not in_postgres:
        execute(str(captured.storage.database_url), "DELETE FROM trajectory.trajectories")
    result = run_job(captured, instance, JOB_NAME)
    assert result.success
    check = check_evaluations(instance, result.run_id)["run_ids_are_unique"]
    assert not check.passed
    names = [partition_key(before), partition_key(BUSY[0])]
    where = f"in the file of {names[0]}, and in {names[1]} in Postgres"
    expected = where if in_postgres else f"in the files of {names[0]} and {names[1]}"
    assert f"first {run_id}, {expected}" in str(check.description)
    assert run_id in str(check.metadata["runs"].value)
    assert "Materialize the partitions that are named again" in advice(check)
    assert "trajectory_report" not in started_steps(instance, result.run_id)


# ---- cost and verdicts ----------------------------------------------------------------------------------------------


def test_cost_check_above_a_cap_names_cap_and_calls(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    url = str(judged.storage.database_url)
    first = run(judged, instance, busy_hours[0])
    kept = check_evaluations(instance, first.run_id)["cost_is_under_cap"]
    assert kept.passed
    assert kept.description == "1 cap kept"
    execute(
        url,
        "UPDATE trajectory.spend_totals SET spent_usd = 7.5 WHERE scope = 'day'",
        "UPDATE trajectory.verdict_attempts SET cost_usd = reserved_usd + 1"
        " WHERE run_id = (SELECT min(run_id) FROM trajectory.verdict_attempts)",
    )
    result = run(judged, instance, busy_hours[0])
    check = check_evaluations(instance, result.run_id)["cost_is_under_cap"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == "the budget of a day (UTC) of 5 USD (TRAJECTORY_DAILY_BUDGET_USD): 7.5 USD spent"
    [(run_id,)] = query(url, "SELECT min(run_id) FROM trajectory.verdict_attempts")
    assert str(check.metadata["calls_above_their_reservation"].value).startswith(f"- `{run_id}: ")
    assert "docs/budget.md" in advice(check)


def test_failed_verdict_check_names_the_run(
    judged: Settings, judge: SimulatedJudge, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    judge.plan_faults([{"fault": "refusal", "times": 1}])
    result = run(judged, instance, busy_hours[0])
    check = check_evaluations(instance, result.run_id)["no_failed_verdicts"]
    [(run_id,)] = query(
        str(judged.storage.database_url), "SELECT run_id FROM trajectory.verdicts WHERE verdict_status = 'failed'"
    )
    assert check.metadata["runs"].value == f"- `{run_id}`: refused"
    assert "trajectory-pipeline explain" in advice(check)


def test_result_of_a_check_that_is_planned_is_not_repeated(instance: dg.DagsterInstance) -> None:
    (key, *_) = (check.key for check in checks_of("terminal_runs"))
    run = instance.add_run(dg.DagsterRun("trajectory_job", status=dg.DagsterRunStatus.STARTED))
    planned = AssetCheckEvaluationPlanned(asset_key=key.asset_key, check_name=key.name)
    event = DagsterEvent(
        event_type_value=DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED.value,
        job_name=run.job_name,
        event_specific_data=planned,
    )
    instance.report_dagster_event(event, run.run_id)
    repeat_results(instance, [key.asset_key])
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.status == AssetCheckExecutionRecordStatus.PLANNED
