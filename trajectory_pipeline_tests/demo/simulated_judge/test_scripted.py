"""The scripted judge gives the labels of the demonstration's runs, over HTTP and through all checks of evidence."""

import pytest

from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_FOLDER, LETTA_CODE_LABELS, LETTA_CODE_NAME
from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, label_records
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.demo.simulated_judge.prices import SCRIPTED_MODEL
from trajectory_pipeline.demo.simulated_judge.scripted import SCRIPT_MARK, scripted_answer
from trajectory_pipeline.demo.simulated_judge.transcript import Transcript
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row

WITHOUT_MESSAGES = {"lr-down", "tp-pend-2", "rl-dominguez-b", "down-1", "hb-notool"}
"""There is nothing to judge in them."""
EVIDENCE_REFUSED = {"tp-mail-1", "tp-domain-1", "tp-pend-1", "tp-claim-1", "tp-margin-2", "tp-salt-2", "rl-petrov"}
"""The label rests on a call that waits for approval, on a denial or on an error, which show that nothing was done."""
NOTHING_TO_QUOTE = {"lr-empty"}
"""The agent's answer is empty."""


@pytest.fixture
def verdicts(story: Pipeline) -> dict[str, Row]:
    """The outcome of each run of the story by the label's key."""
    return {
        label_records(FIRST_ANNOTATOR)[row["run_id"]]["key"]: row
        for row in story.ask("SELECT * FROM trajectory.outcomes")
    }


def test_labels_cover_every_terminal_run_of_the_story() -> None:
    assert label_records(FIRST_ANNOTATOR).keys() == STORY.terminal_run_ids()


def test_scripted_verdicts_equal_the_labels(verdicts: dict[str, Row]) -> None:
    expected = {label["key"]: label for label in label_records(FIRST_ANNOTATOR).values()}
    withheld = WITHOUT_MESSAGES | EVIDENCE_REFUSED | NOTHING_TO_QUOTE
    differing = {key for key, row in verdicts.items() if (row["outcome"] or "unknown") != expected[key]["outcome"]}
    assert differing == withheld
    assert {verdicts[key]["outcome"] for key in withheld} <= {None, "unknown"}
    judged = {key: row for key, row in verdicts.items() if row["verdict_status"] == "judged"}
    assert {key for key, row in judged.items() if row["failure_owner"] != expected[key]["failure_owner"]} == set()
    assert {key for key, row in verdicts.items() if row["verdict_status"] == "not_eligible"} == WITHOUT_MESSAGES


def test_scripted_verdicts_say_that_they_are_scripted(verdicts: dict[str, Row]) -> None:
    answered = [row for row in verdicts.values() if row["verdict_status"] != "not_eligible"]
    assert all(row["summary"].endswith(SCRIPT_MARK) for row in answered)


def test_scripted_verdicts_of_letta_code_equal_its_labels(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    judged = Pipeline(pipeline.letta_url, pipeline.database_url, pipeline.folder, judge.base_url, SCRIPTED_MODEL)
    source = LettaCodeSource(LETTA_CODE_NAME, (LETTA_CODE_FOLDER,))
    with source.snapshot() as snapshot:
        (hour,) = snapshot.runs_by_hour()
    materialize_terminal_runs(hour, source, judged.storage)
    judged.convert(hour)
    judged.refine(hour)
    expected = label_records(FIRST_ANNOTATOR, LETTA_CODE_LABELS)
    rows = {row["run_id"]: row for row in judged.ask("SELECT * FROM trajectory.outcomes")}
    assert rows.keys() == expected.keys()
    for run_id, row in rows.items():
        assert row["verdict_status"] == "judged"
        assert row["summary"].endswith(SCRIPT_MARK)
        assert (row["outcome"], row["failure_owner"]) == (
            expected[run_id]["outcome"],
            expected[run_id]["failure_owner"],
        )


def test_scripted_answer_without_label_says_so() -> None:
    answer = JudgeResponse.model_validate(scripted_answer(Transcript()))
    assert [requirement.status for requirement in answer.requirements] == ["insufficient_evidence"]
    assert "No label is written" in answer.summary
