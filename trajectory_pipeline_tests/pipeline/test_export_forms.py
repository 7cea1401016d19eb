"""Datasets of the demonstration in Scout's, Letta's and OpenTelemetry's forms, and spans sent to a collector."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline_tests.exports.collector import OK, Collector, attributes, partial_success, running_collector
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.pipeline.test_export import ONE_SPLIT, SOME, export


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def noted(folder: Path) -> list[str]:
    return [json.loads(line)["run_id"] for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_scout_has_the_verdict_as_its_score(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "scout", ExportFormat.SCOUT, SOME, shares=ONE_SPLIT)
    rows = pq.read_table(tmp_path / "scout" / "train.parquet").to_pylist()
    assert [row["run_id"] for row in rows] == noted(tmp_path / "scout")
    assert len(rows) == result.records["train"]
    judged = {row["run_id"]: row["outcome"] for row in story.ask("SELECT run_id, outcome FROM trajectory.outcomes")}
    assert [row["score"] for row in rows] == [judged[row["run_id"]] for row in rows]
    assert {row["split"] for row in rows} == {"train"}


def test_records_without_a_person_or_an_agent_are_left_out_with_the_reason(story: Pipeline, tmp_path: Path) -> None:
    result = export(story, tmp_path / "records", ExportFormat.TRAJECTORY_V1, shares=ONE_SPLIT)
    lines = (tmp_path / "records" / "train.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == result.records["train"] == len(noted(tmp_path / "records"))
    for line in lines:
        assert {"meta", "user", "assistant"} <= {record["role"] for record in json.loads(line)}
    assert result.left_out["no message of a person"] > 0


def test_spans_are_sent_and_what_was_taken_is_noted(story: Pipeline, tmp_path: Path, collector: Collector) -> None:
    export(story, tmp_path / "sent", ExportFormat.OTEL, SOME, writer=WriterOptions(endpoint=collector.url))
    roots = [span for span in collector.spans if not span.parent_span_id]
    assert [attributes(span)["trajectory_pipeline.run_id"] for span in roots] == noted(tmp_path / "sent")
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {"README.md", "manifest.json", "runs.jsonl"}
    manifest = json.loads((tmp_path / "sent" / "manifest.json").read_bytes())
    assert (manifest["endpoint"], manifest["conventions"]) == (collector.url, "genai")
    labels = [attributes(record).get("gen_ai.evaluation.score.label") for record in collector.records]
    assert {"success", "failure"} & set(labels)


def test_run_that_a_collector_rejects_is_not_noted(story: Pipeline, tmp_path: Path, collector: Collector) -> None:
    collector.answers = [partial_success("traces", 2, "too old")]
    result = export(story, tmp_path / "sent", ExportFormat.OTEL, SOME, writer=WriterOptions(endpoint=collector.url))
    first = next(attributes(span)["trajectory_pipeline.run_id"] for span in collector.spans if not span.parent_span_id)
    assert first not in noted(tmp_path / "sent")
    assert result.left_out["the collector rejected spans: too old"] == 1
    assert sum(result.records.values()) == len(noted(tmp_path / "sent"))


def test_collector_that_refuses_leaves_nothing_noted(story: Pipeline, tmp_path: Path, collector: Collector) -> None:
    collector.answers = [OK, OK, (403, {}, b"no")]
    with pytest.raises(PipelineError, match=r"answers 403 \(no\)"):
        export(story, tmp_path / "sent", ExportFormat.OTEL, SOME, writer=WriterOptions(endpoint=collector.url))
    assert list(tmp_path.iterdir()) == []


def test_images_are_passed_on_where_asked(story: Pipeline, tmp_path: Path) -> None:
    kept = export(story, tmp_path / "kept", ExportFormat.ATIF, shares=ONE_SPLIT, with_images=True)
    without = export(story, tmp_path / "without", ExportFormat.ATIF, shares=ONE_SPLIT)
    manifest: dict[str, Any] = json.loads((tmp_path / "kept" / "manifest.json").read_bytes())
    images = {name: file["sha256"] for name, file in manifest["files"].items() if "/images/" in name}
    assert images
    assert kept.losses["images without their content"] == 0
    assert without.losses["images, which are passed on only where asked"] == 2
    assert all(Path(name).stem == digest for name, digest in images.items())
    assert not list((tmp_path / "without").glob("*/images/*"))
