"""The contract of failing judges over a part of the sample; ``make fault-scenarios`` runs it over the whole.

One test shows that the contract reports violations.
"""

from collections.abc import Callable, Iterator

import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.simulated_judge import FAULTS, FaultStage, SimulatedJudge
from trajectory_pipeline_tests.fault_scenarios import contract
from trajectory_pipeline_tests.fault_scenarios.scenarios import ALWAYS, SOMETIMES, Scenario, all_scenarios, scenario
from trajectory_pipeline_tests.fault_scenarios.sweep import Sweep, capture
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.server_databases import drop_database

HOURS = sorted(sample_partitions(), key=lambda hour: sample_partitions()[hour])[-3:]


@pytest.fixture(scope="module")
def sweep(
    postgres_server: EmbeddedServer, running_judge: SimulatedJudge, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sweep]:
    sweep = capture(postgres_server, running_judge, tmp_path_factory.mktemp("scenarios"), HOURS)
    result = sweep.run(scenario(None))
    assert (result.violations, result.days) == ([], 0)
    yield sweep
    running_judge.clear_faults()
    for name in ("scenarios_letta", "scenarios_captured"):
        drop_database(postgres_server, name)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "given",
    [
        scenario("rate_limit", SOMETIMES),
        scenario("truncated", ALWAYS),
        scenario("usage_missing"),
        scenario("connection_dropped"),
    ],
    ids=str,
)
def test_scenario_meets_the_contract_and_recovers(sweep: Sweep, given: Scenario) -> None:
    """Nothing is invented, lost or paid for twice, and a healthy judge gives every run a final verdict."""
    result = sweep.run(given)
    assert result.violations == []
    assert set(result.after) <= {"judged", "insufficient_evidence", "not_eligible"}
    assert sum(result.after.values()) == sum(result.before.values()) == sum(sample_partitions()[hour] for hour in HOURS)


def test_all_scenarios_include_every_fault() -> None:
    """Those of other endpoints are in ``pipeline/test_decisions.py`` and ``pipeline/test_remote_embedder.py``."""
    others = (FaultStage.DECISION, FaultStage.EMBEDDING)
    of_chat = {name for name, fault in FAULTS.items() if fault.stage not in others}
    assert {given.fault for given in all_scenarios()} == {None, *of_chat}


VIOLATIONS: dict[str, tuple[str, Callable[[Pipeline, SimulatedJudge], list[str]]]] = {
    "a call that is not recorded": (
        "DELETE FROM trajectory.verdict_attempts WHERE attempt_id = (SELECT min(attempt_id) FROM"
        " trajectory.verdict_attempts)",
        lambda pipeline, judge: list(contract.costs_agree(pipeline, judge.calls(10_000))),
    ),
    "a cent too much": (
        "UPDATE trajectory.verdict_attempts SET cost_usd = cost_usd + 0.01 WHERE attempt_id = (SELECT min(attempt_id)"
        " FROM trajectory.verdict_attempts)",
        lambda pipeline, judge: list(contract.costs_agree(pipeline, judge.calls(10_000))),
    ),
    "a spend total that was not updated": (
        "UPDATE trajectory.spend_totals SET spent_usd = spent_usd - 0.0001 WHERE scope = 'day'",
        lambda pipeline, judge: list(contract.costs_agree(pipeline, judge.calls(10_000))),
    ),
    "an invented score": (
        "UPDATE trajectory.verdicts SET learning_value = 0.3 WHERE verdict_status <> 'judged'",
        lambda pipeline, _: list(contract.no_value_is_invented(pipeline, None)),
    ),
    "a run without a verdict": (
        "DELETE FROM trajectory.verdicts WHERE run_id = (SELECT min(run_id) FROM trajectory.verdicts)",
        lambda pipeline, _: list(contract.each_run_has_one_status(pipeline, down=0)),
    ),
    "a verdict that failed": (
        "UPDATE trajectory.verdicts SET verdict_status = 'failed' WHERE run_id = (SELECT min(run_id) FROM"
        " trajectory.verdicts)",
        lambda pipeline, _: list(contract.all_verdicts_are_final(pipeline)),
    ),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_contract_reports_a_planted_violation(pipeline: Pipeline, judge: SimulatedJudge, violation: str) -> None:
    statement, check = VIOLATIONS[violation]
    pipeline.capture(HOURS[0])
    pipeline.refine(HOURS[0])
    assert check(pipeline, judge) == []
    pipeline.do(statement)
    assert check(pipeline, judge)
