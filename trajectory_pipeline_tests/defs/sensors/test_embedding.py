"""The embedding sensor requests what the ledger shows as missing or stale, whatever its age, and nothing twice."""

from datetime import timedelta

import dagster as dg
from dagster._core.definitions.sensor_definition import SensorExecutionData

from trajectory_pipeline.defs.asset_keys import CAPTURE, EMBEDDING, REFINEMENT
from trajectory_pipeline.defs.sensors.embedding import build_embedding_sensor
from trajectory_pipeline.demo.simulated_judge import EMBEDDING_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.conftest import BUSY, NOW
from trajectory_pipeline_tests.defs.dagster_runs import (
    add_run,
    check_evaluations,
    execute,
    materializations,
    query,
    requested_hours,
    run,
    step_failure,
    tick_sensor,
)

ASSET = ["trajectory_embeddings"]


def tick(settings: Settings, instance: dg.DagsterInstance) -> SensorExecutionData:
    # Later than any materialization of this test.
    return tick_sensor(build_embedding_sensor(settings, lambda: NOW + timedelta(days=3650)), settings, instance)


def test_sensor_requests_what_has_no_text_or_no_embedding(captured: Settings, instance: dg.DagsterInstance) -> None:
    result = tick(captured, instance)
    assert requested_hours(result) == BUSY
    assert {tuple(request.asset_selection or ()) for request in result.run_requests} == {tuple(EMBEDDING)}
    assert run(captured, instance, BUSY[0], BUSY[-1], assets=ASSET).success
    metadata = materializations(instance, ASSET[0])[partition_key(BUSY[0])]
    assert "set TRAJECTORY_EMBEDDING_MODEL to `wordllama`" in metadata["no_embeddings_because"]
    assert (metadata["embedded"], metadata["model"]) == (0, "none")
    assert metadata["texts"] > 0
    done = tick(captured, instance)
    assert (done.run_requests, done.skip_message) == ([], "0 partitions with stale texts or embeddings.")
    # With a model, the same texts are embedded.
    settings = change_settings(captured, embedding__model="wordllama")
    assert requested_hours(tick(settings, instance)) == BUSY
    assert run(settings, instance, BUSY[0], BUSY[-1], assets=ASSET).success
    assert requested_hours(tick(settings, instance)) == []
    metadata = materializations(instance, ASSET[0])[partition_key(BUSY[0])]
    assert metadata["embedded"] == metadata["texts"]
    assert metadata["model"].startswith("wordllama@")
    url = str(settings.storage.database_url)
    forget = "DELETE FROM trajectory.partitions WHERE asset = 'trajectory_embeddings' AND partition_key ="
    execute(url, f"{forget} '{partition_key(BUSY[2])}'")
    assert requested_hours(tick(settings, instance)) == [BUSY[2]]
    for selection in (CAPTURE, REFINEMENT, EMBEDDING):
        with dg.DagsterInstance.ephemeral() as busy:
            add_run(busy, dg.DagsterRunStatus.STARTED, {"dagster/partition": partition_key(BUSY[2])}, selection)
            assert requested_hours(tick(settings, busy)) == []


def test_provider_that_is_down_fails_the_run_and_the_texts_stay(
    captured: Settings, judge: SimulatedJudge, instance: dg.DagsterInstance
) -> None:
    settings = change_settings(
        captured,
        embedding__model=EMBEDDING_MODEL,
        embedding__base_url=judge.base_url,
        budget__prices_file=PRICE_TABLE,
    )
    judge.plan_faults([{"fault": "unauthorized"}])
    result = run(settings, instance, BUSY[0], assets=ASSET)
    assert not result.success
    assert "embedding model" in str(step_failure(instance, result.run_id, ASSET[0]).description)
    url = str(settings.storage.database_url)
    assert query(url, "SELECT count(*) > 0 FROM trajectory.search_texts") == [(True,)]
    judge.clear_faults()
    judge.plan_faults([{"fault": "embedding_missing"}])
    result = run(settings, instance, BUSY[0], assets=ASSET)
    assert result.success
    check = check_evaluations(instance, result.run_id)["no_failed_embeddings"]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.WARN
    assert "what_to_do" in check.metadata
