"""Judging under a policy with a prompt and an answer schema of its own, over HTTP into both sinks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.judge.client.response_format import strict_schema
from trajectory_pipeline.judge.prompt_files import SCHEMA_FILE, load_prompt
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.schema.enums import ResponseFormatChoice
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]


def own_prompt(folder: Path) -> Path:
    schema = strict_schema(JudgeResponse)
    tone = {"tone": {"type": "string", "enum": ["friendly", "rude"]}}
    schema = {**schema, "properties": {**schema["properties"], **tone}, "required": [*schema["required"], "tone"]}
    (folder / SCHEMA_FILE).write_text(json.dumps(schema))
    (folder / "rubric.txt").write_text("tone: of the agent's last message.")
    return folder


@pytest.mark.parametrize("response_format", [ResponseFormatChoice.JSON_SCHEMA, ResponseFormatChoice.TOOL_CALL])
def test_answers_to_fields_of_its_own_are_stored(
    pipeline: Pipeline, judge: SimulatedJudge, tmp_path: Path, response_format: ResponseFormatChoice
) -> None:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    pipeline.refine(HOUR)
    usual = pipeline.policy
    own = tmp_path / "own"
    own.mkdir()
    pipeline.judge_settings = {"prompt": load_prompt(own_prompt(own)), "response_format": response_format}
    result = pipeline.refine(HOUR)
    assert (result.calls, pipeline.policy.policy_id != usual.policy_id) == (result.judged, True)
    published = [row for row in pipeline.parquet(REFINED_OUTCOMES, HOUR) if row["verdict_status"] == "judged"]
    assert published
    assert {row["extra_answers"] for row in published} == {'{"tone":"friendly"}'}
    shown = pipeline.ask("SELECT extra_answers FROM trajectory.outcomes WHERE verdict_status = 'judged'")
    assert all(row["extra_answers"] == {"tone": "friendly"} for row in shown)
    former = pipeline.ask("SELECT extra_answers FROM trajectory.verdicts WHERE policy_id = %s", usual.policy_id)
    assert {row["extra_answers"] for row in former} == {None}
    assert pipeline.refine(HOUR).calls == 0
    pipeline.judge_settings |= {"prompt": replace(pipeline.judge.prompt, whole="Judge the last run, strictly.")}
    assert pipeline.refine(HOUR).calls == result.calls
