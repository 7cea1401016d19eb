"""The contract of what Dagster loads: the graph of the design, one partitions definition, modest batches, no surprises.

Definitions are built fresh for given settings; once they are loaded as Dagster loads them, from ``workspace.yaml``.
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.test_utils import in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster_graphql.test.utils import execute_dagster_graphql

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Sink, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import setting_fields
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.marks import some_heavy

pytestmark = pytest.mark.process

PROJECT = Path(__file__).parents[1]
TABLES = {
    "terminal_runs": TERMINAL_RUNS,
    "trajectories": TRAJECTORIES,
    "refined_outcomes": REFINED_OUTCOMES,
    "trajectory_embeddings": TRAJECTORY_EMBEDDINGS,
}
SOURCES = {"letta/runs", "letta/steps", "letta/messages"}


@pytest.fixture
def graph() -> AssetGraph:
    return build_defs(make_settings()).resolve_asset_graph()


def names(keys: "set[dg.AssetKey]") -> set[str]:
    return {key.to_user_string() for key in keys}


def test_definitions_are_loadable() -> None:
    dg.Definitions.validate_loadable(build_defs(make_settings()))


def test_assets_depend_on_each_other_as_designed(graph: AssetGraph) -> None:
    parents = {node.key.to_user_string(): names(node.parent_keys) for node in graph.asset_nodes}
    assert parents == {
        **{name: set() for name in SOURCES},
        "terminal_runs": SOURCES,
        "trajectories": {"terminal_runs"},
        "refined_outcomes": {"trajectories"},
        "trajectory_embeddings": {"trajectories", "refined_outcomes"},
        "judge_quality": {"trajectories", "refined_outcomes"},
        "trajectory_report": {"trajectories", "refined_outcomes", "judge_quality"},
    }
    assert {node.key.to_user_string() for node in graph.asset_nodes if not node.is_materializable} == SOURCES


def test_exports_are_assets_only_where_a_setting_names_them(graph: AssetGraph) -> None:
    definitions = build_defs(make_settings(export__formats=("sft", "atif")))
    with_exports = definitions.resolve_asset_graph()
    added = names(with_exports.get_all_asset_keys()) - names(graph.get_all_asset_keys())
    assert added == {"exports/sft", "exports/atif"}
    node = with_exports.get(dg.AssetKey(["exports", "sft"]))
    assert names(node.parent_keys) == {"trajectories", "refined_outcomes", "trajectory_embeddings"}
    assert node.partitions_def is with_exports.get(dg.AssetKey("trajectories")).partitions_def
    checks = {key.name for key in with_exports.get_check_keys_for_assets({dg.AssetKey(["exports", "sft"])})}
    assert checks == {"files_match_manifest", "holds_nothing_erased"}
    assert definitions.resolve_job_def("export_job").asset_layer.executable_asset_keys == node_keys("sft", "atif")
    with pytest.raises(SettingsError, match=r"names 'yaml': name some of atif, "):
        build_defs(make_settings(export__formats=("yaml", "sft")))


def test_export_of_pairs_has_no_partitions_and_a_job_of_each_day() -> None:
    definitions = build_defs(make_settings(export__formats=("dpo",)))
    node = definitions.resolve_asset_graph().get(dg.AssetKey(["exports", "dpo"]))
    assert node.partitions_def is None
    assert names(node.parent_keys) == {"trajectories", "refined_outcomes", "trajectory_embeddings"}
    assert definitions.resolve_job_def("pair_export_job").asset_layer.executable_asset_keys == node_keys("dpo")
    assert definitions.resolve_schedule_def("daily_pair_export").cron_schedule == "45 4 * * *"
    jobs = {job.name for job in definitions.resolve_all_job_defs()}
    assert "export_job" not in jobs


def node_keys(*formats: str) -> "set[dg.AssetKey]":
    return {dg.AssetKey(["exports", name]) for name in formats}


def test_assets_share_one_partitions_definition(graph: AssetGraph) -> None:
    definitions = [graph.get(dg.AssetKey(name)).partitions_def for name in TABLES]
    assert all(definition is definitions[0] for definition in definitions)
    assert isinstance(definitions[0], dg.HourlyPartitionsDefinition)
    assert (definitions[0].end_offset, str(definitions[0].timezone)) == (1, "UTC")


def test_partitions_run_from_the_start_to_the_open_hour(graph: AssetGraph) -> None:
    partitions = graph.get(dg.AssetKey("trajectories")).partitions_def
    assert partitions is not None
    now = datetime.now(UTC)
    keys = partitions.get_partition_keys(current_time=now)
    assert keys[0] == "2025-01-01-00:00"
    assert keys[-1] == partition_key(now)
    assert len(keys) == (floor_to_hour(now) - datetime(2025, 1, 1, tzinfo=UTC)) / HOUR + 1


def test_first_partition_follows_the_setting() -> None:
    settings = make_settings(capture__start=datetime(2026, 11, 20, 5, tzinfo=UTC))
    partitions = build_defs(settings).resolve_asset_graph().get(dg.AssetKey("terminal_runs")).partitions_def
    assert partitions is not None
    assert partitions.get_first_partition_key() == "2026-11-20-05:00"


@pytest.mark.parametrize(("batch", "of_verdicts"), [(24, 6), (7, 1), (1, 1)])
def test_backfill_policies_judge_in_separate_runs(batch: int, of_verdicts: int) -> None:
    """Dagster puts assets of one policy into one run: there, a bad partition would keep all from being judged."""
    graph = build_defs(make_settings(dagster__backfill_batch=batch)).resolve_asset_graph()
    policies = {name: graph.get(dg.AssetKey(name)).backfill_policy for name in TABLES}
    assert policies == {
        "terminal_runs": dg.BackfillPolicy.multi_run(batch),
        "trajectories": dg.BackfillPolicy.multi_run(batch),
        "refined_outcomes": dg.BackfillPolicy.multi_run(of_verdicts),
        "trajectory_embeddings": dg.BackfillPolicy.multi_run(2 * batch),
    }


def test_jobs_execute_in_process() -> None:
    """The executor of the definitions is the one that backfills from the UI use."""
    definitions = build_defs(make_settings())
    assert definitions.executor is dg.in_process_executor
    for job in definitions.resolve_all_job_defs():
        assert job.executor_def is dg.in_process_executor, job.name


@pytest.mark.parametrize("enabled", [True, False])
def test_schedules_and_sensors_run_only_with_capture_enabled(*, enabled: bool) -> None:
    repository = build_defs(make_settings(capture__enabled=enabled)).get_repository_def()
    instigators = [*repository.schedule_defs, *repository.sensor_defs]
    assert sorted(each.name for each in instigators) == [
        "capture_sensor",
        "closed_hour",
        "daily_completeness",
        "daily_dagster_retention",
        "daily_history_checks",
        "daily_report",
        "daily_retention",
        "embedding_sensor",
        "empty_hour_sensor",
        "failure_notice_sensor",
        "judge_batch_sensor",
        "reconciliation_sensor",
        "refinement_sensor",
    ]
    # Deleting data and sending notices are opted into apart.
    apart = {"daily_retention", "failure_notice_sensor"}
    assert {each.default_status.value for each in instigators if each.name not in apart} == {
        "RUNNING" if enabled else "STOPPED"
    }
    assert {each.default_status.value for each in instigators if each.name in apart} == {"STOPPED"}


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("ages", [{}, {"retention__trajectory_days": 30}, {"retention__raw_days": 30}])
def test_retention_runs_only_with_age_and_capture(ages: dict[str, int], *, enabled: bool) -> None:
    repository = build_defs(make_settings(capture__enabled=enabled, **ages)).get_repository_def()
    schedule = repository.get_schedule_def("daily_retention")
    assert schedule.default_status.value == ("RUNNING" if enabled and ages else "STOPPED")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("ages", [{}, {"retention__dagster_days": 0}, {"retention__dagster_days": 7}])
def test_dagster_retention_runs_by_default_with_capture(ages: dict[str, int], *, enabled: bool) -> None:
    repository = build_defs(make_settings(capture__enabled=enabled, **ages)).get_repository_def()
    schedule = repository.get_schedule_def("daily_dagster_retention")
    days = ages.get("retention__dagster_days", 30)
    assert schedule.default_status.value == ("RUNNING" if enabled and days else "STOPPED")


@pytest.mark.parametrize(("name", "table"), TABLES.items())
def test_assets_show_every_column_with_type_and_description(
    graph: AssetGraph,
    name: str,
    table: Table,
) -> None:
    schema = graph.get(dg.AssetKey(name)).metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns] == [column.name for column in table.columns]
    for column in schema.columns:
        assert column.type
        assert column.description
    if Sink.POSTGRES in {sink for column in table.columns for sink in column.sinks}:
        assert "dagster/table_name" in graph.get(dg.AssetKey(name)).metadata


def test_assets_have_owners_tags_and_place() -> None:
    settings = make_settings(
        dagster__owners=("team:data", "me@example.com"), storage__parquet_uri="s3://key:hunter2@bucket/prefix"
    )
    graph = build_defs(settings).resolve_asset_graph()
    stages = {"terminal_runs": "capture", "trajectories": "convert", "refined_outcomes": "judge"}
    for name, stage in stages.items():
        node = graph.get(dg.AssetKey(name))
        assert node.owners == ("team:data", "me@example.com")
        assert node.tags["stage"] == stage
        assert node.metadata["dagster/uri"] == f"s3://bucket/prefix/{name}"
        assert graph.get(dg.AssetKey(name)).description
        assert str(node.code_version).startswith(
            {"capture": "capture ", "convert": "conversion ", "judge": "prompt "}[stage]
        )
    assert graph.get(dg.AssetKey("trajectory_report")).owners == ("team:data", "me@example.com")
    report = graph.get(dg.AssetKey("trajectory_report"))
    assert report.metadata["dagster/uri"] == "s3://bucket/prefix/trajectory_report/report.html"


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("judge", [{}, {"judge__model": "m", "judge__base_url": "http://127.0.0.1:1/v1"}])
def test_freshness_is_expected_only_of_what_is_requested(judge: dict[str, str], *, enabled: bool) -> None:
    graph = build_defs(make_settings(capture__enabled=enabled, **judge)).resolve_asset_graph()
    fresh = {node.key.to_user_string() for node in graph.asset_nodes if node.freshness_policy}
    expected = {"terminal_runs", "trajectories", "trajectory_report", *(["refined_outcomes"] if judge else [])}
    assert fresh == (expected if enabled else set())


def test_run_limits_leave_room_beside_a_backfill(graph: AssetGraph, tmp_path: Path) -> None:
    limits = yaml.safe_load((PROJECT / "dagster.yaml").read_text())["concurrency"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"concurrency": limits}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        config = instance.get_concurrency_config()
    [backfill] = config.run_queue_config.tag_concurrency_limits
    assert backfill["limit"] < config.pool_config.default_pool_limit < config.run_queue_config.max_concurrent_runs
    assert config.pool_config.pool_granularity.value == "run"
    pools = {name: graph.get(dg.AssetKey(name)).pools for name in TABLES}
    assert pools == {
        "terminal_runs": {"letta"},
        "trajectories": set(),
        "refined_outcomes": {"judge"},
        "trajectory_embeddings": {"embed"},
    }


def test_source_tables_show_the_columns_that_are_read(graph: AssetGraph) -> None:
    for name in SOURCES:
        schema = graph.get(dg.AssetKey.from_user_string(name)).metadata["dagster/column_schema"]
        assert {"id", "created_at"} <= {column.name for column in schema.columns}


def test_checks_block_only_where_a_fault_would_spread(graph: AssetGraph) -> None:
    found = {key.to_user_string(): graph.get_check_spec(key).blocking for key in graph.asset_check_keys}
    assert found == {
        "letta/runs:completeness": False,
        "terminal_runs:schema_is_as_declared": True,
        "terminal_runs:run_ids_are_unique": True,
        "trajectories:row_counts_match": True,
        "trajectories:no_quarantined_runs": False,
        "trajectories:schema_is_as_declared": True,
        "trajectories:run_ids_are_unique": False,
        "refined_outcomes:no_failed_verdicts": False,
        "refined_outcomes:no_abandoned_verdicts": False,
        "refined_outcomes:cost_is_under_cap": False,
        "refined_outcomes:schema_is_as_declared": False,
        "refined_outcomes:run_ids_are_unique": False,
        "trajectory_embeddings:no_failed_embeddings": False,
        "trajectory_report:outcome_mix_is_stable": False,
        "trajectory_report:tool_error_rate_is_stable": False,
        "trajectory_report:judge_agrees_with_heuristic": False,
        "trajectory_report:verdict_error_rate": False,
        "trajectory_report:policy_passes_gates": False,
        "trajectory_report:no_growing_failure_mode": False,
        "trajectory_report:run_ids_are_unique": False,
    }


def test_completeness_check_runs_in_its_own_job_only() -> None:
    """A check of an asset runs with each of its materializations; the completeness check is a job of its own."""
    jobs = {job.name: job for job in build_defs(make_settings()).resolve_all_job_defs()}
    checked = {name: {key.name for key in job.asset_layer.asset_graph.asset_check_keys} for name, job in jobs.items()}
    assert "completeness" not in checked["trajectory_job"]
    assert checked["completeness_job"] == {"completeness"}


def test_history_checks_run_in_a_job_without_the_report() -> None:
    """The report needs an extra; the checks do not."""
    jobs = {job.name: job for job in build_defs(make_settings()).resolve_all_job_defs()}
    checked = {name: {key.name for key in job.asset_layer.asset_graph.asset_check_keys} for name, job in jobs.items()}
    assert checked["report_job"] == set()
    assert jobs["history_checks_job"].asset_layer.executable_asset_keys == set()
    assert "outcome_mix_is_stable" not in checked["trajectory_job"]


def test_each_check_runs_in_one_job_that_is_scheduled(graph: AssetGraph) -> None:
    """A check that no job runs stays "not evaluated" for ever."""
    definitions = build_defs(make_settings())
    scheduled = {schedule.job_name for schedule in definitions.get_repository_def().schedule_defs}
    jobs = [job for job in definitions.resolve_all_job_defs() if job.name in scheduled]
    run = sorted(key for job in jobs for key in job.asset_layer.asset_graph.asset_check_keys)
    assert run == sorted(graph.asset_check_keys)


@pytest.mark.parametrize("page", ["reference.md", "runbook.md"])
def test_each_check_is_in_the_documentation(page: str, graph: AssetGraph) -> None:
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    assert [key for key in graph.asset_check_keys if f"`{key.name}`" not in text] == []


def test_refined_outcomes_without_judge_says_why_in_description(graph: AssetGraph) -> None:
    key = dg.AssetKey("refined_outcomes")
    assert "**Not requested automatically.** No judge is configured: set" in str(graph.get(key).description)
    judged = build_defs(make_settings(judge__model="m", judge__base_url="http://127.0.0.1:1/v1")).resolve_asset_graph()
    assert "Not requested" not in str(judged.get(key).description)


SECRETS = {
    "LETTA_PG_URI": "postgresql://letta:hunter2@db:5432/letta",
    "TRAJECTORY_DATABASE_URL": "postgresql://me:hunter2@db:5432/agents",
    "TRAJECTORY_STORAGE_URI": "s3://key:hunter2@bucket/prefix",
    "OPENAI_API_KEY": "sk-hunter2",
    "OPENAI_BASE_URL": "https://judge.example/v1?token=hunter2",
    "TRAJECTORY_REDACTION_KEY": "hunter2-hunter2-hunter2",
    "TRAJECTORY_EMBEDDING_BASE_URL": "https://embeddings.example/v1?token=hunter2",
    "TRAJECTORY_EMBEDDING_API_KEY": "sk-hunter2",
}


def test_resources_in_the_ui_show_secrets_by_variable_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "TRAJECTORY_JUDGE_MODEL": "a-model"}.items():
        monkeypatch.setenv(name, value)
    query = """{ repositoriesOrError { ... on RepositoryConnection { nodes {
        allTopLevelResourceDetails { name description configuredValues { key value type }
        configFields { name description defaultValueAsJson } } } } } }"""
    origin = LoadableTargetOrigin(executable_path=sys.executable, module_name="trajectory_pipeline.definitions")
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    with instance, in_process_test_workspace(instance, origin) as workspace:
        result = execute_dagster_graphql(workspace, query)
    assert "hunter2" not in json.dumps(result.data)
    [repository] = result.data["repositoriesOrError"]["nodes"]
    resources = {each["name"]: each["configuredValues"] for each in repository["allTopLevelResourceDetails"]}
    assert set(resources) == {"sources", "storage", "judge", "embedding", "budget"}
    values = [value for configured in resources.values() for value in configured]
    assert {value["value"] for value in values if value["type"] == "ENV_VAR"} == set(SECRETS)
    [shown] = [value["value"] for value in resources["judge"] if value["key"] == "settings"]
    assert json.loads(shown)["TRAJECTORY_JUDGE_MODEL"] == "a-model"


def test_workspace_is_valid_for_dagster(tmp_path: Path) -> None:
    ours = {*setting_fields(), "DAGSTER_HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(PROJECT / "workspace.yaml")],
        env={name: value for name, value in os.environ.items() if name not in ours},
        # Not where the project's dagster.yaml would be found: no storage is needed to load definitions.
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Validation successful for code location trajectory_pipeline" in output
    # The command itself is superseded by one of a package that is not needed here; nothing is warned of ours.
    warned = [line for line in output.splitlines() if "Warning: " in line]
    assert [line for line in warned if "definitions_validate_command" not in line] == []


def test_loading_with_wrong_setting_names_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(PROJECT / "workspace.yaml")],
        env={**os.environ, "TRAJECTORY_BACKFILL_BATCH": "many"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "SettingsError: TRAJECTORY_BACKFILL_BATCH is wrong" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "scheme",
    some_heavy(["postgresql", "postgres", "postgresql+psycopg", "postgresql+pg8000"], "postgresql+pg8000"),
)
def test_loading_with_another_dagster_driver_says_which(tmp_path: Path, scheme: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(PROJECT / "workspace.yaml")],
        env={**os.environ, "DAGSTER_PG_URL": f"{scheme}://me:geheim@host:5432/dagster"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "SettingsError: DAGSTER_PG_URL must begin with postgresql+psycopg2:// for Dagster's webserver" in output
    assert "geheim" not in output
