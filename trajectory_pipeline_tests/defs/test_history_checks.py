"""The checks over the last weeks, each with the fault that it is for, on a real database."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from trajectory_pipeline.defs.history_checks import build_history_checks, evaluate
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.mixes import Category
from trajectory_pipeline_tests.defs.dagster_runs import execute, query, resources_of

RECENT = partition_key((datetime.now(UTC) - timedelta(days=2)).replace(minute=0, second=0, microsecond=0))
EARLIER = partition_key((datetime.now(UTC) - timedelta(days=20)).replace(minute=0, second=0, microsecond=0))


def checked(settings: Settings) -> dict[str, dg.AssetCheckResult]:
    checks = build_history_checks()
    results = checks(storage=resources_of(settings)["storage"])
    return {str(result.check_name): result for result in results}


@pytest.fixture
def database(captured: Settings) -> str:
    """Sixty copies of a run with tool calls in each period, without tool errors."""
    url = str(captured.storage.database_url)
    columns = [
        name
        for (name,) in query(
            url,
            "SELECT attname FROM pg_attribute WHERE attrelid = 'trajectory.trajectories'::regclass AND attnum > 0"
            " AND NOT attisdropped AND attgenerated = ''",
        )
    ]
    changed = {
        "run_id": "'run-' || p || '-' || to_char(n, 'FM000')",
        "trajectory_id": "'trajectory-' || p || '-' || n",
        "partition_key": "p",
        "signals": """t.signals || '{"tool_calls": 3, "tool_errors": 0}'""",
    }
    values = ", ".join(changed.get(name, f"t.{name}") for name in columns)
    execute(
        url,
        "CREATE TEMP TABLE copied AS SELECT * FROM trajectory.trajectories ORDER BY run_id LIMIT 1;"
        " DELETE FROM trajectory.trajectories;"
        f" INSERT INTO trajectory.trajectories ({', '.join(columns)}) SELECT {values} FROM copied t,"
        f" unnest(ARRAY['{RECENT}', '{EARLIER}']) AS p, generate_series(1, 60) AS n",
    )
    return url


def test_history_checks_without_drift_pass(captured: Settings, database: str) -> None:
    results = checked(captured)
    assert all(result.passed for result in results.values())
    assert "0.0% of the runs changed" in str(results["tool_error_rate_is_stable"].description)
    assert "Too few runs" in str(results["outcome_mix_is_stable"].description)


def test_tool_error_check_with_errors_names_the_first_run(captured: Settings, database: str) -> None:
    execute(
        database,
        "UPDATE trajectory.trajectories SET signals = signals || '{\"tool_errors\": 1}'"
        f" WHERE partition_key = '{RECENT}' AND run_id <= 'run-{RECENT}-030'",
    )
    result = checked(captured)["tool_error_rate_is_stable"]
    assert not result.passed
    assert f"'with tool error', now 30 runs, first run-{RECENT}-001" in str(result.description)


def categories(measure: str, counts: dict[str, int], *, recent: bool = True) -> list[Category]:
    return [Category(measure, name, recent, runs, [f"{name}-1"]) for name, runs in counts.items()]


@pytest.mark.parametrize(("failed", "passed"), [(2, True), (30, False)])
def test_verdict_error_check_fails_by_its_interval(failed: int, *, passed: bool) -> None:
    found = categories("verdict", {"judged": 100, "failed": failed, "none": 500})
    result = check_results(found)["verdict_error_rate"]
    assert result.passed is passed
    assert str(result.description).startswith(f"{failed} of {100 + failed}, ")
    assert ("First failed-1: " in str(result.description)) is not passed
    assert result.metadata["coverage"].value == pytest.approx(100 / (600 + failed))


@pytest.mark.parametrize(("disagrees", "passed"), [(45, True), (90, False)])
def test_disagreement_check_fails_by_its_interval(disagrees: int, *, passed: bool) -> None:
    found = categories("agreement", {"agrees": 100 - disagrees, "disagrees": disagrees})
    result = check_results(found)["judge_agrees_with_heuristic"]
    assert result.passed is passed
    assert ("First disagrees-1: " in str(result.description)) is not passed


def test_outcome_check_with_more_failures_names_the_first_run() -> None:
    found = categories("outcome", {"success": 60, "failure": 60})
    found += categories("outcome", {"success": 400, "failure": 100}, recent=False)
    result = check_results(found)["outcome_mix_is_stable"]
    assert not result.passed
    assert "'failure', now 60 runs, first failure-1" in str(result.description)


def test_history_checks_with_few_runs_pass_and_say_so() -> None:
    results = check_results(categories("agreement", {"disagrees": 9}))
    assert all(result.passed for result in results.values())
    assert "Too few to say more: 50 are needed" in str(results["judge_agrees_with_heuristic"].description)


def check_results(found: list[Category]) -> dict[str, dg.AssetCheckResult]:
    return {str(result.check_name): result for result in evaluate(found)}
