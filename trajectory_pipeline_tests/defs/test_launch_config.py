"""Launch configuration: it does what its description says, and wrong values are refused before anything starts."""

from datetime import datetime
from typing import Any

import dagster as dg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.defs.dagster_runs import (
    ASSETS,
    materializations,
    query,
    run,
    started_steps,
    step_failure,
)


def job() -> dg.JobDefinition:
    return build_defs(make_settings()).resolve_job_def("trajectory_job")


def config(**assets: dict[str, Any]) -> dict[str, Any]:
    return {"ops": {name: {"config": values} for name, values in assets.items()}}


def test_launch_configuration_has_types_defaults_and_descriptions() -> None:
    expected = {
        "terminal_runs": {"force", "accept_deletions"},
        "trajectories": {"force"},
        "refined_outcomes": {"limit", "mode", "order", "policy", "run_ids"},
    }
    for name, names in expected.items():
        fields = job().graph.node_named(name).definition.config_field.config_type.fields  # type: ignore[union-attr]  # the asset has a config
        assert set(fields) == names
        for field in fields.values():
            assert field.description
            assert not field.is_required


@pytest.mark.parametrize(
    "values",
    [
        config(refined_outcomes={"limit": "many"}),
        config(refined_outcomes={"order": "oldest"}),
        config(refined_outcomes={"limits": 3}),
        config(trajectories={"force": "yes"}),
        config(terminal_runs={"limit": 3}),
    ],
)
def test_wrong_type_or_name_is_refused_at_launch(values: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job(), values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (config(refined_outcomes={"limit": 0}), "refined_outcomes.limit is wrong: Input should be greater than"),
        (config(refined_outcomes={"policy": "mine"}), "refined_outcomes.policy is wrong: String should match pattern"),
    ],
)
def test_wrong_value_is_refused_before_the_source_is_read(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime], values: dict[str, Any], words: str
) -> None:
    result = run(judged, instance, busy_hours[0], config=values)
    assert not result.success
    description = str(step_failure(instance, result.run_id, "terminal_runs").description)
    assert description.startswith("The launch configuration is refused, and nothing was done: ")
    assert words in description
    assert started_steps(instance, result.run_id) == {"terminal_runs"}
    assert query(str(judged.storage.database_url), "SELECT count(*) FROM trajectory.partitions") == [(0,)]


def test_limit_judges_so_many_and_the_next_run_the_rest(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    first, last = busy_hours[0], busy_hours[1]
    values = config(refined_outcomes={"limit": 2, "order": "SIGNALS"})
    assert run(judged, instance, first, last, config=values).success
    url = str(judged.storage.database_url)
    assert query(url, "SELECT count(*) FROM trajectory.verdicts") == [(2,)]
    assert run(judged, instance, first, last, assets=ASSETS[2:]).success
    assert query(url, "SELECT count(*) FROM trajectory.verdicts") == query(
        url, "SELECT count(*) FROM trajectory.trajectories"
    )


def test_another_policy_than_expected_is_refused_without_a_call(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    result = run(judged, instance, busy_hours[0], config=config(refined_outcomes={"policy": "0" * 16}))
    assert not result.success
    description = str(step_failure(instance, result.run_id, "refined_outcomes").description)
    assert f"expects the policy {'0' * 16}, and the settings give " in description
    assert query(str(judged.storage.database_url), "SELECT count(*) FROM trajectory.verdict_attempts") == [(0,)]


def test_force_reads_and_converts_what_is_up_to_date(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    hour, both = busy_hours[0], {"terminal_runs": {"force": True}, "trajectories": {"force": True}}
    for values, up_to_date in (({}, False), ({}, True), (config(**both), False)):
        assert run(settings, instance, hour, assets=ASSETS[:2], config=values).success
        for asset in ASSETS[:2]:
            [metadata] = materializations(instance, asset).values()
            assert metadata["up_to_date"] is up_to_date
    assert metadata["postgres"].startswith("0 inserted, 0 updated")
