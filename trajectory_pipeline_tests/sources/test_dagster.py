"""Two sources in one Dagster: each materialized, checked and requested alone; all judged and found together."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import psycopg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.asset_keys import ASSETS
from trajectory_pipeline.defs.assets.exports import export_key
from trajectory_pipeline.defs.jobs.completeness import JOB_NAME, completeness_key
from trajectory_pipeline.defs.sensors.capture import build_capture_sensor
from trajectory_pipeline.defs.sensors.export import EXPORT_JOB, build_export_sensor
from trajectory_pipeline.defs.sensors.refinement import build_refinement_sensor
from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_NAME, LETTA_CODE_SOURCE
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.partition_keys import LETTA, at_source, name_at, partition_key
from trajectory_pipeline.serve.dagster_queue import DagsterQueue
from trajectory_pipeline.settings import Settings, SourceSettings
from trajectory_pipeline_tests.conftest import change_settings, with_judge
from trajectory_pipeline_tests.defs.dagster_runs import resources_of, run, run_job, tick_sensor
from trajectory_pipeline_tests.letta_sample import sample_partitions

HOUR = at_source(datetime(2026, 11, 29, 11, tzinfo=UTC), LETTA_CODE_NAME)
NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)


@pytest.fixture
def both(settings: Settings, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that name the demonstration's runs of Letta Code beside the sample, with a judge and an export."""
    monkeypatch.setenv("TRAJECTORY_SOURCES", LETTA_CODE_SOURCE)
    others = SourceSettings.model_validate({"TRAJECTORY_SOURCES": LETTA_CODE_SOURCE}).others
    start = datetime(2026, 11, 19, tzinfo=UTC)
    return with_judge(
        change_settings(settings, source__others=others, capture__start=start, export__formats=("csv",)), judge
    )


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_each_source_has_assets_sensors_and_partitions_of_its_own(both: Settings) -> None:
    definitions = build_defs(both)
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    for name in ASSETS:
        plain, other = graph.get(dg.AssetKey([name])), graph.get(dg.AssetKey([LETTA_CODE_NAME, name]))
        assert plain.partitions_def != other.partitions_def
        assert (plain.group_name, other.group_name) == ("trajectories", LETTA_CODE_NAME)
        assert {key.path[0] for key in other.parent_keys} == {LETTA_CODE_NAME}
    assert {f"capture_sensor{suffix}" for suffix in ("", f"_{LETTA_CODE_NAME}")} <= {
        sensor.name for sensor in definitions.sensors or ()
    }
    report = graph.get(dg.AssetKey("trajectory_report"))
    assert {key.path[0] for key in report.parent_keys} >= {"trajectories", LETTA_CODE_NAME}


def test_service_launches_what_the_definitions_of_a_source_have(
    both: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service names a job, assets and operations; each is there, by these names."""
    asked: list[dict[str, Any]] = []

    def answer(_: DagsterQueue, __: str, variables: dict[str, Any], ___: float = 0) -> dict[str, Any]:
        asked.append(variables["params"])
        return {"launchRun": {"__typename": "LaunchRunSuccess", "run": {"runId": "1", "status": "QUEUED"}}}

    monkeypatch.setattr(DagsterQueue, "_ask", answer)
    names = ["terminal_runs", "trajectories", "refined_outcomes"]
    config = {"refined_outcomes": {"run_ids": [f"{LETTA_CODE_NAME}:run"]}}
    DagsterQueue("http://dagster").launch(names, partition_key(HOUR), config, {})
    (params,) = asked
    job = build_defs(both, resources_of(both)).resolve_job_def(params["selector"]["jobName"])
    selected = {dg.AssetKey(one["path"]) for one in params["selector"]["assetSelection"]}
    assert selected == {dg.AssetKey([LETTA_CODE_NAME, name]) for name in names}
    assert selected <= set(job.asset_layer.executable_asset_keys)
    assert dg.validate_run_config(job, {"ops": params["runConfigData"]["ops"]})
    assert job.partitions_def is not None
    tags = {tag["key"]: tag["value"] for tag in params["executionMetadata"]["tags"]}
    assert tags["dagster/partition"] in job.partitions_def.get_partition_keys(current_time=NOW)


def test_source_is_captured_judged_and_checked_alone_and_searched_with_the_others(
    both: Settings, instance: dg.DagsterInstance
) -> None:
    sensor = build_capture_sensor(both, lambda: NOW, LETTA_CODE_NAME)
    requested = tick_sensor(sensor, both, instance).run_requests or []
    assert [request.partition_key for request in requested] == [partition_key(HOUR)]
    assert {key.path[0] for key in requested[0].asset_selection or ()} == {LETTA_CODE_NAME}
    definitions = build_defs(both, resources_of(both))
    result = definitions.resolve_job_def(f"trajectory_job_{LETTA_CODE_NAME}").execute_in_process(
        instance=instance, partition_key=partition_key(HOUR), raise_on_error=False
    )
    assert result.success
    checks = result.get_asset_check_evaluations()
    assert checks
    assert {check.asset_key.path[0] for check in checks} == {LETTA_CODE_NAME}
    assert [check.check_name for check in checks if not check.passed] == []
    for name in ASSETS:
        records = instance.fetch_materializations(dg.AssetKey([LETTA_CODE_NAME, name]), limit=5).records
        assert {str(record.partition_key) for record in records} == {partition_key(HOUR)}
        assert instance.get_materialized_partitions(dg.AssetKey([name])) == set()
    busy = max(sample_partitions().items(), key=lambda item: item[1])[0]
    assert run(both, instance, busy).success
    with psycopg.connect(str(both.storage.database_url)) as connection:
        rows = connection.execute(
            "SELECT source, count(*), count(*) FILTER (WHERE verdict_status = 'judged')"
            " FROM trajectory.outcomes GROUP BY 1"
        ).fetchall()
        searched = connection.execute(
            "SELECT split_part(run_id, ':', 1) FROM trajectory.search_texts WHERE partition_key LIKE '%%~%%'"
        ).fetchall()
    counts = {source: (runs, judged) for source, runs, judged in rows}
    assert counts[LETTA_CODE_NAME] == (3, 3)
    assert counts[LETTA][0] == sample_partitions()[busy]
    assert searched == [(LETTA_CODE_NAME,)] * 3
    # Each source's hours are exported by an asset of its own, into one dataset.
    for source, hour in ((LETTA_CODE_NAME, HOUR), (LETTA, busy)):
        export_sensor = build_export_sensor(both, lambda: NOW, source)
        (wanted,) = tick_sensor(export_sensor, both, instance).run_requests or []
        assert wanted.partition_key == partition_key(hour)
        assert wanted.asset_selection == [export_key(ExportFormat.CSV, source)]
        job = definitions.resolve_job_def(name_at(EXPORT_JOB, source))
        assert job.execute_in_process(instance=instance, partition_key=wanted.partition_key).success
        assert not tick_sensor(export_sensor, both, instance).run_requests
    with psycopg.connect(str(both.storage.database_url)) as connection:
        exported = connection.execute(
            "SELECT t.source, count(DISTINCT export_id), count(*) > 0 FROM trajectory.export_runs"
            " JOIN trajectory.trajectories t USING (run_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert exported == [(LETTA, 1, True), (LETTA_CODE_NAME, 1, True)]
    # Nothing is left to do for this source, and the other one's open work is not its.
    for build in (build_capture_sensor, build_refinement_sensor):
        assert not tick_sensor(build(both, lambda: NOW, LETTA_CODE_NAME), both, instance).run_requests
    assert run_job(both, instance, JOB_NAME).success
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([completeness_key(LETTA_CODE_NAME)])
    (record,) = latest.values()
    assert record.evaluation is not None
    assert record.evaluation.passed
