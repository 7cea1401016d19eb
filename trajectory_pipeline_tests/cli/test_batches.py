"""The command ``batches``: what it lists, polls, cancels and gives up."""

from dataclasses import replace
from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.schema.enums import JudgeMode
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.cli.test_maintenance import HOUR, captured
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, only


@pytest.fixture
def submitted(databases: dict[str, str], judge: SimulatedJudge) -> Pipeline:
    judge.plan_batches({"seconds": 600})
    pipeline = replace(captured(databases), judge_url=judge.base_url)
    pipeline.refine(HOUR, mode=JudgeMode.BATCH)
    databases |= {
        "OPENAI_BASE_URL": judge.base_url,
        "TRAJECTORY_JUDGE_MODEL": pipeline.model,
        "TRAJECTORY_PRICES": str(Path(PRICE_TABLE)),
    }
    return pipeline


def test_batches_lists_what_runs(run_command: Command, databases: dict[str, str], submitted: Pipeline) -> None:
    row = only(submitted.ask("SELECT * FROM trajectory.judge_batches"))
    result = run_command("batches", "--poll", **databases)
    assert result.exit_code == 0, result.output
    assert f"{row['provider_batch_id']}: in_progress (0 of {row['lines']} answered, 0 failed)" in squeezed(result)
    assert f"{row['lines']} verdicts wait for a batch." in squeezed(result)


def test_batches_cancels_by_the_providers_id(
    run_command: Command, databases: dict[str, str], submitted: Pipeline
) -> None:
    row = only(submitted.ask("SELECT * FROM trajectory.judge_batches"))
    result = run_command("batches", "--cancel", row["provider_batch_id"], **databases)
    assert "is cancelling" in squeezed(result)
    assert "cancelled (0 of" in squeezed(run_command("batches", "--poll", **databases))
    unknown = run_command("batches", "--cancel", "batch_x", **databases)
    assert (unknown.exit_code, "There is no batch batch_x" in squeezed(unknown)) == (2, True)


def test_batches_forgets_and_lists_none_at_first(
    run_command: Command, databases: dict[str, str], judge: SimulatedJudge, submitted: Pipeline
) -> None:
    row = only(submitted.ask("SELECT * FROM trajectory.judge_batches"))
    judge.clear_batches()
    assert "No batch found with id" in squeezed(run_command("batches", "--poll", **databases))
    assert "is forgotten" in squeezed(run_command("batches", "--forget", row["batch_id"], **databases))
    again = run_command("batches", "--forget", row["batch_id"], **databases)
    assert "there is nothing to forget" in squeezed(again)
    assert "0 verdicts wait for a batch." in squeezed(run_command("batches", **databases))
