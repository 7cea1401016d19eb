"""Datasets of the demonstration's runs, opened by the tools that they are for."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import atif
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.exports.source import json_bytes
from trajectory_pipeline.exports.splits import SplitShares
from trajectory_pipeline.pipeline import export_encoder
from trajectory_pipeline.pipeline.export import (
    ExportOptions,
    ExportResult,
    NothingSelectedError,
    export_dataset,
    pairs_by_family,
)
from trajectory_pipeline.pipeline.export_encoder import Portion
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.storage.postgres.export_registry import exports_holding
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

ALL = ExportFilters()
SOME = ExportFilters(labels=("failure",))
ONE_SPLIT = SplitShares(1, 0, 0)


def export(
    story: Pipeline, target: Path, form: ExportFormat, filters: ExportFilters = ALL, **options: Any
) -> ExportResult:
    return export_dataset(
        story.storage, str(target), filters, ExportOptions(form, **options), lambda: "The gates: passed."
    )


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        if path.name != "runs.jsonl":
            yield from map(json.loads, path.read_text("utf-8").splitlines())


def test_atif_is_accepted_by_the_reference_models_and_comes_back_the_same(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "atif", ExportFormat.ATIF)
    files = sorted((tmp_path / "atif").glob("*/*.json"))
    assert len(files) == sum(result.records.values()) == result.selected - sum(result.left_out.values())
    for path in files:
        text = path.read_bytes()
        read = atif.Trajectory.model_validate_json(text)
        assert read.schema_version == "ATIF-v1.8"
        assert json_bytes(read.to_json_dict()) == text


def test_older_version_of_atif_is_written(story: Pipeline, tmp_path: Path) -> None:
    export(story, tmp_path / "atif", ExportFormat.ATIF, SOME, writer=WriterOptions("1.7"))
    versions = {json.loads(path.read_bytes())["schema_version"] for path in (tmp_path / "atif").glob("*/*.json")}
    assert versions == {"ATIF-v1.7"}


def test_every_message_of_a_run_is_in_its_atif(story: Pipeline, tmp_path: Path) -> None:
    export(story, tmp_path / "atif", ExportFormat.ATIF, redaction=RedactionMode.OFF)
    stored = {
        row["run_id"]: row
        for row in story.ask("SELECT run_id, message_count, data FROM trajectory.trajectories WHERE deleted_at IS NULL")
    }
    for path in (tmp_path / "atif").glob("*/*.json"):
        document = json.loads(path.read_bytes())
        run = stored[document["extra"]["run_id"]]["data"]
        texts = [
            part["text"]
            for turn in run["turns"]
            for message in turn["messages"]
            for part in message["content"]
            if part["type"] == "text" and message["role"] in ("user", "assistant", "system")
        ]
        said = "\n".join(step["message"] for step in document["steps"])
        assert all(text in said for text in texts)
        calls = Counter(
            call["id"]
            for turn in run["turns"]
            for message in turn["messages"]
            for call in message.get("tool_calls", ())
        )
        assert calls == Counter(
            call["tool_call_id"] for step in document["steps"] for call in step.get("tool_calls", ())
        )


def test_chats_are_read_by_datasets_without_filled_in_nulls(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    result = export(story, tmp_path / "sft", ExportFormat.SFT, ExportFilters(outcomes=("success",)))
    loaded = load_dataset(str(tmp_path / "sft"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == dict(result.records)
    written = [
        call["function"]
        for line in lines(tmp_path / "sft")
        for message in line["messages"]
        for call in message.get("tool_calls", ())
    ]
    read = [
        call["function"]
        for split in sorted(loaded)
        for row in loaded[split]
        for message in row["messages"]
        for call in message.get("tool_calls") or ()
    ]
    assert written
    assert [dict(one) for one in read] == written


def test_another_dataset_in_the_place_of_one_that_was_read_is_read_anew(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` keeps what it has read by the folder's name and the card's header, and looks at no file."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    for outcome in ("success", "failure"):
        result = export(story, tmp_path / "sft", ExportFormat.SFT, ExportFilters(outcomes=(outcome,)))
        loaded = load_dataset(str(tmp_path / "sft"), cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == dict(result.records)
        shutil.rmtree(tmp_path / "sft")


def test_runs_with_the_same_text_are_there_once(story: Pipeline, tmp_path: Path) -> None:
    """Ids of calls differ from run to run."""
    export(story, tmp_path / "openai", ExportFormat.OPENAI)
    said = [
        json.dumps(
            [[one.get("content"), [call["function"] for call in one.get("tool_calls", ())]] for one in line["messages"]]
        )
        for line in lines(tmp_path / "openai")
    ]
    assert len(said) == len(set(said))


def test_run_without_a_place_keeps_no_run_out_that_says_the_same(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(story, tmp_path / "before", ExportFormat.KTO)
    written = [json.loads(line) for line in (tmp_path / "before" / "runs.jsonl").read_text().splitlines()][-1]
    (unknown, *_) = story.ask(
        "SELECT o.run_id FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)"
        " WHERE coalesce(o.outcome, o.heuristic_outcome) = 'unknown' AND t.deleted_at IS NULL AND t.partition_key < %s"
        " ORDER BY 1",
        written["partition_key"],
    )
    digest = export_encoder.text_digest
    same = {written["run_id"], unknown["run_id"]}
    monkeypatch.setattr(export_encoder, "text_digest", lambda run: "ab" * 32 if run.run_id in same else digest(run))
    export(story, tmp_path / "after", ExportFormat.KTO)
    noted = {json.loads(line)["run_id"] for line in (tmp_path / "after" / "runs.jsonl").read_text().splitlines()}
    assert written["run_id"] in noted


def test_openai_chats_answer_only_calls_that_were_made(story: Pipeline, tmp_path: Path) -> None:
    export(story, tmp_path / "openai", ExportFormat.OPENAI)
    for line in lines(tmp_path / "openai"):
        called: set[str] = set()
        for message in line["messages"]:
            for call in message.get("tool_calls", ()):
                assert isinstance(call["function"]["arguments"], str)
                called.add(call["id"])
            if message["role"] == "tool":
                assert message["tool_call_id"] in called
            assert message["role"] in ("system", "user", "assistant", "tool")
        assert any(message["role"] == "assistant" for message in line["messages"])


def test_labels_follow_the_outcome_and_unknown_ones_are_left_out(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "kto", ExportFormat.KTO)
    outcomes = Counter(
        row["outcome"] for row in map(json.loads, (tmp_path / "kto" / "runs.jsonl").read_text().splitlines())
    )
    labels = Counter(line["label"] for line in lines(tmp_path / "kto"))
    assert labels == {True: outcomes["success"], False: outcomes["failure"]}
    assert outcomes.keys() == {"success", "failure"}
    assert result.left_out["no success and no failure"] > 0
    for line in lines(tmp_path / "kto"):
        assert line["completion"][0]["role"] == "assistant"
        assert not any(message["role"] == "assistant" for message in line["prompt"])


def test_pairs_share_a_prompt_and_part_at_a_decision_of_the_agent(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "dpo", ExportFormat.DPO)
    outcomes = {
        row["run_id"]: row["outcome"]
        for row in map(json.loads, (tmp_path / "dpo" / "runs.jsonl").read_text().splitlines())
    }
    pairs = list(lines(tmp_path / "dpo"))
    assert len(pairs) == sum(result.records.values()) > 0
    for pair in pairs:
        assert any(message["role"] == "user" for message in pair["prompt"])
        assert (outcomes[pair["chosen_run_id"]], outcomes[pair["rejected_run_id"]]) == ("success", "failure")
        assert pair["chosen"][0]["role"] == pair["rejected"][0]["role"] == "assistant"
        assert pair["chosen"][0] != pair["rejected"][0]


@pytest.mark.parametrize("form", [ExportFormat.CSV, ExportFormat.PARQUET])
def test_flat_tables_have_a_row_a_run(story: Pipeline, tmp_path: Path, form: ExportFormat) -> None:
    result = export(story, tmp_path / "flat", form)
    path = tmp_path / "flat" / f"runs.{form.value}"
    if form is ExportFormat.CSV:
        with path.open(newline="", encoding="utf-8") as file:
            runs = [row["run_id"] for row in csv.DictReader(file)]
    else:
        runs = pq.read_table(path).column("run_id").to_pylist()
    assert len(runs) == len(set(runs)) == sum(result.records.values())


def test_runs_that_belong_together_are_in_one_split(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "sft", ExportFormat.SFT, shares=SplitShares(0.5, 0.25, 0.25))
    assert set(result.records) == {"train", "validation", "test"}
    noted = {row["run_id"]: row for row in map(json.loads, (tmp_path / "sft" / "runs.jsonl").read_text().splitlines())}
    stored = story.ask("SELECT run_id, conversation_id, continues_run_id FROM trajectory.trajectories")
    splits: dict[str, set[str]] = {}
    for row in stored:
        for key in filter(None, (row["conversation_id"], row["continues_run_id"], row["run_id"])):
            if row["run_id"] in noted:
                splits.setdefault(key, set()).add(noted[row["run_id"]]["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_secrets_are_replaced_unless_that_is_turned_off(story: Pipeline, tmp_path: Path) -> None:
    export(story, tmp_path / "redacted", ExportFormat.OPENAI, shares=ONE_SPLIT)
    export(story, tmp_path / "whole", ExportFormat.OPENAI, shares=ONE_SPLIT, redaction=RedactionMode.OFF)
    redacted, whole = ((tmp_path / name / "train.jsonl").read_text("utf-8") for name in ("redacted", "whole"))
    assert redacted.count("[secret:") > whole.count("[secret:")


def test_reasoning_is_passed_on_only_where_asked(story: Pipeline, tmp_path: Path) -> None:
    kept = export(story, tmp_path / "kept", ExportFormat.SFT, SOME, with_reasoning=True)
    without = export(story, tmp_path / "without", ExportFormat.SFT, SOME)
    has = [
        any("reasoning_content" in one for line in lines(tmp_path / name) for one in line["messages"])
        for name in ("kept", "without")
    ]
    assert has == [True, False]
    assert (kept.losses["reasoning"], without.losses["reasoning"] > 0) == (0, True)


def test_deleted_runs_and_messages_are_in_no_dataset(story: Pipeline, tmp_path: Path) -> None:
    deleted = {
        row["run_id"] for row in story.ask("SELECT run_id FROM trajectory.trajectories WHERE deleted_at IS NOT NULL")
    }
    export(story, tmp_path / "atif", ExportFormat.ATIF)
    noted = {json.loads(line)["run_id"] for line in (tmp_path / "atif" / "runs.jsonl").read_text().splitlines()}
    assert not deleted & noted


def test_manifest_names_every_file_with_its_digest(story: Pipeline, tmp_path: Path) -> None:
    export(story, tmp_path / "sft", ExportFormat.SFT, ExportFilters(outcomes=("success",), min_confidence=0.5))
    manifest = json.loads((tmp_path / "sft" / "manifest.json").read_bytes())
    there = {str(path.relative_to(tmp_path / "sft")) for path in (tmp_path / "sft").rglob("*") if path.is_file()}
    assert there == {*manifest["files"], "manifest.json", "README.md"}
    assert manifest["filters"] == {"outcomes": ["success"], "min_confidence": 0.5}
    assert manifest["judge"]["simulated"]
    card = (tmp_path / "sft" / "README.md").read_text("utf-8")
    assert "simulated judge" in card
    assert "The gates: passed." in card


def test_same_export_gives_the_same_bytes(story: Pipeline, tmp_path: Path) -> None:
    for name in "ab":
        export(story, tmp_path / name, ExportFormat.SFT, SOME)
    for path in (tmp_path / "a").glob("*.jsonl"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_filters_that_select_nothing_write_nothing(story: Pipeline, tmp_path: Path) -> None:
    filters = ExportFilters(outcomes=("success",), agents=("nobody",), min_confidence=0)
    with pytest.raises(NothingSelectedError, match="No run passes the filters") as caught:
        export(story, tmp_path / "none", ExportFormat.SFT, filters)
    assert list(tmp_path.iterdir()) == []
    passing = caught.value.passing
    assert passing is not None
    everything = story.ask("SELECT outcome, outcome_confidence, heuristic_outcome FROM trajectory.outcomes")
    assert passing.runs == len(everything)
    assert passing.by_condition == {
        ("outcomes", "success"): sum((row["outcome"] or row["heuristic_outcome"]) == "success" for row in everything),
        ("min_confidence", 0): sum(row["outcome_confidence"] is not None for row in everything),
        ("agents", "nobody"): 0,
    }


def test_runs_without_a_place_in_the_form_write_nothing(story: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"none gives a record of kto: \d+ × no success and no failure"):
        export(story, tmp_path / "kto", ExportFormat.KTO, ExportFilters(outcomes=("unknown",)))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_of_temporary_files_is_named(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trajectory_pipeline.exports.formats.json_bytes", full)
    target = f"memory://{tmp_path.name}/sft"
    with pytest.raises(PipelineError, match=r"temporary files.*No space left on device\. Free some space"):
        export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))
    assert fsspec.filesystem("memory").find(f"/{tmp_path.name}") == []


def other_ending(story: Pipeline, target: str) -> ExportResult:
    """Have another export to the same place end while this one is writing; returns what that one wrote."""
    ended: list[ExportResult] = []

    def while_it_writes() -> str:
        if not ended:
            ended.append(export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT)))
        return ""

    with pytest.raises(PipelineError, match="is there already"):
        export_dataset(story.storage, target, ALL, ExportOptions(ExportFormat.KTO), while_it_writes)
    return ended[0]


@pytest.mark.parametrize("place", ["{folder}/sft", "memory://{folder}/sft"])
def test_of_two_exports_to_one_place_the_record_is_of_the_one_that_is_there(
    story: Pipeline, tmp_path: Path, place: str
) -> None:
    target = place.format(folder=tmp_path if place.startswith("{") else tmp_path.name)
    there = other_ending(story, target)
    filesystem, path = fsspec.core.url_to_fs(target)
    noted = {json.loads(line)["run_id"] for line in filesystem.cat_file(f"{path}/runs.jsonl").splitlines()}
    held = story.ask(
        f"SELECT r.run_id, e.format FROM trajectory.export_runs r JOIN trajectory.exports e USING (export_id)"
        f" WHERE e.location = '{there.location}'"
    )
    assert {row["run_id"] for row in held} == noted
    assert {row["format"] for row in held} == {"sft"}
    assert [name for name in filesystem.ls(path.rpartition("/")[0], detail=False) if ".partial-" in name] == []


def test_dataset_that_cannot_be_put_into_its_place_is_not_noted(story: Pipeline, tmp_path: Path) -> None:
    def in_the_way() -> str:
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "notes.txt").write_text("mine")
        return ""

    with pytest.raises(PipelineError, match="is there already"):
        export_dataset(story.storage, str(tmp_path / "sft"), SOME, ExportOptions(ExportFormat.SFT), in_the_way)
    noted = story.ask(f"SELECT FROM trajectory.exports WHERE location = '{tmp_path / 'sft'}'")
    assert noted == []
    assert [path.name for path in (tmp_path / "sft").iterdir()] == ["notes.txt"]


def test_failed_copy_is_not_noted(story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("AccessDenied")

    target = f"memory://{tmp_path.name}/refused"
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuse)
    with pytest.raises(PipelineError, match="AccessDenied"):
        export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))
    assert story.ask(f"SELECT FROM trajectory.exports WHERE location = '{target}'") == []


@pytest.mark.parametrize("target", ["", "  "])
def test_empty_target_is_refused(story: Pipeline, target: str) -> None:
    with pytest.raises(PipelineError, match="The target is empty: name a new folder"):
        export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))


def test_folder_that_is_there_is_not_touched(story: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(PipelineError, match="is there already"):
        export(story, tmp_path / "mine", ExportFormat.SFT)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_failure_leaves_no_half_written_dataset(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trajectory_pipeline.exports.formats.json_bytes", full)
    with pytest.raises(PipelineError, match="No space left on device"):
        export(story, tmp_path / "sft", ExportFormat.SFT)
    assert list(tmp_path.iterdir()) == []


def test_filters_narrow_by_verdict_agent_and_label(story: Pipeline, tmp_path: Path) -> None:
    agent = story.ask("SELECT agent_name, count(*) AS runs FROM trajectory.outcomes GROUP BY 1 ORDER BY 2 DESC")[0]
    of_agent = export(story, tmp_path / "agent", ExportFormat.PARQUET, ExportFilters(agents=(agent["agent_name"],)))
    assert of_agent.selected == agent["runs"]
    failures = export(story, tmp_path / "failed", ExportFormat.PARQUET, ExportFilters(labels=("failure",)))
    judged = replace(ALL, outcomes=("failure",), judged_only=True)
    assert failures.selected > 0
    assert export(story, tmp_path / "judged", ExportFormat.PARQUET, judged).selected > 0


def test_pairs_are_the_surest_of_a_task_and_name_where_they_part(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "dpo", ExportFormat.DPO)
    options = ExportOptions(ExportFormat.DPO, redaction_key=b"of these tests")
    families = pairs_by_family(story.storage, ALL, options, tmp_path)
    assert sum(family.pairs for family in families) == sum(result.records.values()) > 0
    for pair in lines(tmp_path / "dpo"):
        parted = pair["parted_at"]
        assert parted["message"] == len(pair["prompt"])
        for side in ("chosen", "rejected"):
            calls = [call["function"]["name"] for call in pair[side][0].get("tool_calls", ())]
            assert parted[side] == (f"calls {', '.join(calls)}" if calls else "answers")


@pytest.mark.heavy
def test_near_duplicates_are_left_out_counted_and_named(story: Pipeline, tmp_path: Path) -> None:
    every = export(story, tmp_path / "every", ExportFormat.SFT)
    fewer = export(story, tmp_path / "fewer", ExportFormat.SFT, near_duplicates=0.5)
    named = [json.loads(line) for line in (tmp_path / "fewer" / "near_duplicates.jsonl").read_text().splitlines()]
    left_out = fewer.left_out["almost the same text as an earlier run"]
    assert left_out == len(named) == sum(every.records.values()) - sum(fewer.records.values())
    assert left_out > 0
    kept = {json.loads(line)["run_id"] for line in (tmp_path / "fewer" / "runs.jsonl").read_text().splitlines()}
    assert all(one["like_run_id"] in kept and one["run_id"] not in kept for one in named)
    assert all(0.5 <= one["similarity"] <= 1 for one in named)


@pytest.mark.heavy
def test_several_processes_write_the_same_bytes(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    export(story, tmp_path / "one", ExportFormat.PARQUET)
    monkeypatch.setattr("trajectory_pipeline.pipeline.export_encoding.WORTH_PROCESSES", 1)
    export(story, tmp_path / "two", ExportFormat.PARQUET)
    for path in (tmp_path / "one").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert (tmp_path / "one" / "runs.jsonl").read_bytes() == (tmp_path / "two" / "runs.jsonl").read_bytes()


def test_a_portion_is_sent_without_the_rows_beside_it() -> None:
    batch = pa.record_batch({"run_id": ["a", "b"], "texts": [["x" * 100_000], ["y"]]})
    sent = pickle.dumps(Portion(batch.slice(1), {}, {}))
    assert len(sent) < 10_000
    assert pickle.loads(sent).rows.to_pylist() == [{"run_id": "b", "texts": ["y"]}]


def test_processes_that_encode_do_without_pandas() -> None:
    """Arrow would import it for the first time that it converts: memory in each of them."""
    code = """if True:
        import sys
        import pyarrow as pa
        from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
        from trajectory_pipeline.judge.redaction.redactor import Redactor
        from trajectory_pipeline.pipeline.export_encoder import Encoding, start_worker
        from trajectory_pipeline.schema.enums import RedactionMode
        redactor = Redactor(RedactionMode.OFF, b"key")
        start_worker(Encoding(ExportFormat.SFT, WriterOptions(), redactor, False, False, False))
        print(pa.scalar(0, pa.timestamp("us", "UTC")).as_py(), "pandas" in sys.modules)
    """
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "1970-01-01 00:00:00+00:00 False\n"


def test_dataset_is_written_to_a_url_and_known_by_its_runs(story: Pipeline, tmp_path: Path) -> None:
    target = f"memory://{tmp_path.name}/sft"
    result = export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))
    filesystem = fsspec.filesystem("memory")
    manifest = json.loads(filesystem.cat_file(f"/{tmp_path.name}/sft/manifest.json"))
    there = {path.removeprefix(f"/{tmp_path.name}/sft/") for path in filesystem.find(f"/{tmp_path.name}/sft")}
    assert there == {*manifest["files"], "manifest.json", "README.md"}
    run_ids = [json.loads(line)["run_id"] for line in filesystem.open(f"/{tmp_path.name}/sft/runs.jsonl")]
    held = {row["run_id"] for row in exports_holding(story.database, run_ids) if row["location"] == result.location}
    assert held == set(run_ids)
    with pytest.raises(PipelineError, match="is there already"):
        export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))


@pytest.mark.parametrize("failing", ["put_file", "pipe_file"])
def test_url_that_is_full_or_read_only_keeps_nothing(
    story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("AccessDenied")

    target = f"memory://{tmp_path.name}/sft"
    monkeypatch.setattr(f"fsspec.implementations.memory.MemoryFileSystem.{failing}", refuse)
    with pytest.raises(PipelineError, match=r"cannot be written: AccessDenied\. Nothing of it is left"):
        export_dataset(story.storage, target, SOME, ExportOptions(ExportFormat.SFT))
    assert fsspec.filesystem("memory").find(f"/{tmp_path.name}") == []


def test_folder_that_is_read_only_is_named(story: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PipelineError, match="cannot be written"):
        export(story, tmp_path / "file" / "sft", ExportFormat.SFT, SOME)
