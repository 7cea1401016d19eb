"""The command ``policy``: what it compares, checks and writes."""

from dataclasses import replace
from pathlib import Path

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.schema.enums import Criterion, LabelSource
from trajectory_pipeline.schema.labels import Label
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.cli.test_maintenance import HOUR, captured


def test_policies_are_compared_on_labelled_runs(
    run_command: Command, databases: dict[str, str], judge: SimulatedJudge
) -> None:
    pipeline = replace(captured(databases), judge_url=judge.base_url, model=JUDGE_MODEL)
    pipeline.refine(HOUR)
    ids = [row["run_id"] for row in pipeline.ask("SELECT run_id FROM trajectory.verdicts WHERE outcome IS NOT NULL")]
    label = Label(run_id="", criterion=Criterion.OUTCOME, annotator="ann", source=LabelSource.CSV, value="success")
    write_labels(pipeline.database, [replace(label, run_id=run_id) for run_id in ids])
    alone = run_command("policy", "compare", **databases)
    assert (alone.exit_code, "Two policies are needed" in squeezed(alone)) == (2, True)
    other = replace(pipeline, model=SCRIPTED_MODEL)
    other.refine(HOUR)
    both = run_command("policy", "compare", JUDGE_MODEL, other.policy.policy_id[:10], **databases)
    assert both.exit_code == 0, both.output
    text = squeezed(both)
    assert "that each policy judged" in text
    assert f"compared with {JUDGE_MODEL} {pipeline.policy.policy_id[:8]}, run by run:" in text
    assert "usd_per_verdict" in text
    unknown = run_command("policy", "compare", "nobody", **databases)
    assert (unknown.exit_code, f"There are: {SCRIPTED_MODEL}" in squeezed(unknown)) == (2, True)


def test_file_of_a_panel_is_read_as_text_and_names_what_is_missing(
    run_command: Command, databases: dict[str, str], judge: SimulatedJudge, tmp_path: Path
) -> None:
    (tmp_path / "panel.txt").write_bytes(b"run-\x80\n")
    wrong = run_command("judge-panel", "--runs", "panel.txt", "--dry-run", **databases)
    assert (wrong.exit_code, "cannot be read as UTF-8 text" in squeezed(wrong)) == (2, True)
    (tmp_path / "panel.txt").write_text("\ufeffrun-nowhere\n", encoding="utf-8")
    variables = databases | {"OPENAI_BASE_URL": judge.base_url, "TRAJECTORY_JUDGE_MODEL": JUDGE_MODEL}
    estimated = run_command("judge-panel", "--runs", "panel.txt", "--dry-run", **variables)
    assert "1 run without a trajectory, or deleted at the source: run-nowhere" in squeezed(estimated)


def test_written_prompt_can_be_named_in_a_policy_file_and_checked(run_command: Command, tmp_path: Path) -> None:
    written = run_command("policy", "export", "strict")
    assert (written.exit_code, sorted(written.output.split())) == (
        0,
        sorted(str(Path("strict") / path.name) for path in (tmp_path / "strict").iterdir()),
    )
    (tmp_path / "strict" / "rubric.txt").write_text("Be strict.")
    (tmp_path / "policy.toml").write_text('[[judges]]\nmodel = "gpt-5-mini"\nprompt = "strict"\n')
    key = {"OPENAI_API_KEY": "sk-test-0123456789"}
    checked = run_command("policy", "check", "policy.toml", **key)
    assert checked.exit_code == 0, checked.output
    assert "gpt-5-mini" in checked.output
    (tmp_path / "strict" / "rubrik.txt").write_text("Be strict.")
    wrong = run_command("policy", "check", "policy.toml", **key)
    assert (wrong.exit_code, "rubrik.txt; its files are any of" in squeezed(wrong)) == (2, True)
    again = run_command("policy", "export", "strict")
    assert (again.exit_code, "cannot be written: File exists" in squeezed(again)) == (2, True)
