"""A run in another form, read back by that form's own reader, holds what the run holds."""

import inspect
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import atif
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trajectory
from hypothesis import HealthCheck, given, settings

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.card import dataset_card
from trajectory_pipeline.exports.flat import SCHEMAS, flat_rows
from trajectory_pipeline.exports.formats import FORMS, ExportFormat, WriterOptions
from trajectory_pipeline.exports.source import ExportRun, json_bytes
from trajectory_pipeline.exports.text_digest import text_digest
from trajectory_pipeline.exports.trajectory_v1 import trajectory_v1_records
from trajectory_pipeline.pipeline.export import DatasetFiles, ExportOptions
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.raw_runs import Raw, call, message, raw_run
from trajectory_pipeline_tests.conversion.raw_runs import returned as tool_return
from trajectory_pipeline_tests.conversion.strategies import raw_runs
from trajectory_pipeline_tests.exports.content import (
    IMAGE,
    IMAGE_BYTES,
    Fact,
    as_value,
    called,
    export_runs,
    returned,
    said,
)

any_run = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


# ---- ATIF, by its reference models ---------------------------------------------------------------------------------


@any_run
@given(raw_runs())
def test_atif_holds_the_run_and_comes_back_the_same(raw: Raw) -> None:
    for run in export_runs([raw]):
        document, _ = atif_trajectory(run, "1.8")
        text = json_bytes(document)
        read = atif.Trajectory.model_validate_json(text)
        assert json_bytes(read.to_json_dict()) == text
        steps = [step for step in read.steps if "context_source" not in (step.extra or {})]
        facts = [fact for step in steps for fact in _of_step(step)]
        assert [fact for fact in facts if fact[0] != "returned"] == said(run)
        assert sorted(fact for fact in facts if fact[0] == "returned") == returned(run)


def _of_step(step: atif.Step) -> Iterator[Fact]:
    extra = step.extra or {}
    # Decisions, returns without their call, and texts of roles that other forms know nothing of.
    if "approvals" not in extra and not (step.source == "system" and step.observation) and not _is_other(extra):
        if step.reasoning_content is not None:
            yield ("reasoned", step.reasoning_content)
        yield (step.source, _text(step.message))
    for one in step.tool_calls or ():
        text = (one.extra or {}).get("arguments_text")
        yield called(one.function_name, json.dumps(one.arguments) if text is None else text)
    for result in step.observation.results if step.observation else ():
        yield ("returned", result.source_call_id or "", _text(result.content or ""))


def _is_other(extra: dict[str, Any]) -> bool:
    return extra.get("kind") in ("tool", "approval", "oracle")


def _text(content: str | list[atif.ContentPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content if part.text is not None)


# ---- trajectory-v1, by the types that its package declares ---------------------------------------------------------


@any_run
@given(raw_runs())
def test_trajectory_v1_holds_the_run(raw: Raw) -> None:
    asked = message(-1, "user", "Hello?", step_id=None)
    answered = message(1000, reply="Hello.", step_id=None)
    for run in export_runs([{**raw, "messages": [asked, *raw["messages"], answered]}]):
        records = trajectory_v1_records(run)
        assert records is not None
        jsonschema.validate(json.loads(json_bytes(records)), _SCHEMA)
        facts = [fact for record in records[1:] for fact in _of_record(record)]
        if run.system_prompt is not None:
            assert facts.pop(0) == ("system", run.system_prompt)
        assert [fact for fact in facts if fact[0] != "returned"] == [
            fact if fact[0] != "called" or fact[1] != "unknown" else ("called", "unknown_tool", fact[2])
            for fact in said(run, "[image]")
            if fact[0] == "called" or fact[1].strip()
        ]
        called_ids = {call["id"] for record in records for call in record.get("tool_calls", ())}
        assert all(record["tool_call_id"] in called_ids for record in records if record["role"] == "tool")
        assert len(called_ids) == sum(len(record.get("tool_calls", ())) for record in records)


def _of_record(record: Any) -> Iterator[Fact]:
    if record["role"] == "tool":
        yield ("returned", record["tool_call_id"], record["content"])
    elif record["content"] is None:
        for one in record["tool_calls"]:
            value = json.loads(one["args"])
            yield (
                "called",
                one["name"],
                as_value(value["arguments_text"] if "arguments_text" in value else one["args"]),
            )
    else:
        yield ({"assistant": "agent", "reasoning": "reasoned"}.get(record["role"], record["role"]), record["content"])


def _schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type, of those that the package's contract consists of."""
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": "array", "items": _schema_of(get_args(kind)[0]), "minItems": 1}
    if inspect.isclass(kind) and issubclass(kind, dict):
        fields = get_type_hints(kind)
        return {
            "type": "object",
            "properties": {name: _schema_of(field) for name, field in fields.items()},
            "required": sorted(kind.__required_keys__),
            "additionalProperties": False,
        }
    if args := get_args(kind):
        return {"anyOf": [_schema_of(one) for one in args]}
    return {"type": {str: "string", bool: "boolean", type(None): "null"}[kind]}


_SCHEMA = _schema_of(list[trajectory.NormalizedRecord])


# ---- flat tables, by pyarrow ---------------------------------------------------------------------------------------


@any_run
@given(raw_runs())
def test_flat_tables_hold_the_run(raw: Raw) -> None:
    for run in export_runs([raw]):
        tables: dict[str, list[Any]] = {name: [] for name in SCHEMAS}
        for name, row in flat_rows(run):
            tables[name].append(row)
        read = {}
        for name, rows in tables.items():
            file = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), file)
            read[name] = pq.read_table(file).to_pylist()
        calls = [(row["tool"], row["arguments"]) for row in read["tool_calls"]]
        messages = [each for turn in run.trajectory["turns"] for each in turn["messages"] if not each["is_deleted"]]
        assert calls == [(one["name"], one["arguments"]) for each in messages for one in each["tool_calls"]]
        assert [row["message_id"] for row in read["messages"]] == [each["message_id"] for each in messages]
        assert [row["text"] for row in read["messages"]] == [
            "\n".join(part["text"] or "" for part in each["content"] if part["type"] == "text") for each in messages
        ]
        (row,) = read["runs"]
        for column in ("run_id", "start_time", "end_time", "heuristic_outcome", "input_tokens", "duration_ns"):
            assert row[column] == run.trajectory[column]


# ---- images, reasoning and bad input -------------------------------------------------------------------------------

ASKED = message(1, "user", content=[{"type": "text", "text": "What is it?"}, IMAGE])
SHOWN = message(3, "tool", tool_returns=[tool_return(text=[{"type": "text", "text": "a map"}, IMAGE])])
THOUGHT = message(2, content=[{"type": "reasoning", "reasoning": "a thought"}], tool_calls=[call("see", "no json")])
SINGLE = [form for form in ExportFormat if not form.form.pairs]


def encoded(form: ExportFormat, run: ExportRun) -> Any:
    return FORMS[form].encode(run, WriterOptions())


def test_images_are_files_beside_atif_by_their_digest() -> None:
    (run,) = export_runs([raw_run(ASKED, THOUGHT, SHOWN)])
    document, files = atif_trajectory(run, "1.8")
    read = atif.Trajectory.model_validate(document)
    assert read.has_multimodal_content()
    assert list(files.values()) == [IMAGE_BYTES]
    (path,) = files
    assert re.fullmatch(r"images/[0-9a-f]{64}\.png", path)
    contents = [step.message for step in read.steps]
    contents += [result.content for step in read.steps if step.observation for result in step.observation.results]
    shown = [part for content in contents if isinstance(content, list) for part in content if part.type == "image"]
    assert [part.source.path for part in shown if part.source] == [path, path]


@pytest.mark.parametrize("form", [ExportFormat.OPENAI, ExportFormat.SCOUT])
def test_images_are_data_uris_where_the_form_holds_them(form: ExportFormat) -> None:
    (run,) = export_runs([raw_run(ASKED, THOUGHT, SHOWN)])
    assert "data:image/png;base64,iVBORw0KGgo=" in _as_text(encoded(form, run))


@pytest.mark.parametrize("form", SINGLE)
def test_form_says_whether_it_has_a_place_for_images(form: ExportFormat) -> None:
    (run,) = export_runs([raw_run(ASKED, THOUGHT, SHOWN)])
    text = _as_text(encoded(form, run))
    assert (IMAGE["source"]["data"] in text or IMAGE_BYTES.decode(errors="replace") in text) is form.form.images


OTHER_IMAGES = [
    {**IMAGE, "source": {**IMAGE["source"], "data": "iVBORw0KGgs="}},
    {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}},
    {"type": "image", "source": {"type": "url", "url": "https://example.com/y.png"}},
]


def digests(*, with_images: bool) -> list[str]:
    """Return the digests of runs that differ in an image: asked with it, or shown it by a tool."""
    asked = [message(1, "user", content=[{"type": "text", "text": "What is it?"}, image]) for image in OTHER_IMAGES]
    shown = [
        message(3, "tool", tool_returns=[tool_return(text=[{"type": "text", "text": "a map"}, image])])
        for image in OTHER_IMAGES
    ]
    raws = [raw_run(one, THOUGHT, SHOWN) for one in (ASKED, *asked)] + [raw_run(ASKED, THOUGHT, one) for one in shown]
    return [text_digest(run) for raw in raws for run in export_runs([raw], with_images=with_images)]


def test_runs_that_differ_in_an_image_are_not_the_same_where_it_is_passed_on() -> None:
    found = digests(with_images=True)
    assert len(set(found)) == len(found) == 7
    assert found == digests(with_images=True)


def test_runs_that_differ_in_an_image_are_the_same_where_it_is_left_out() -> None:
    assert len(set(digests(with_images=False))) == 1


@pytest.mark.parametrize("form", [ExportFormat.SFT, ExportFormat.KTO, ExportFormat.DPO, ExportFormat.TRAJECTORY_V1])
def test_card_says_that_a_form_has_no_place_for_images(form: ExportFormat, tmp_path: Path) -> None:
    options = ExportOptions(form, with_images=True)
    with DatasetFiles(tmp_path) as files:
        manifest = files.manifest(ExportFilters(), options, 0, "")
    assert manifest["images"] is False
    card = dataset_card({**manifest, "created_at": "now"}, "digest")
    assert "Images are left out: the form has no place for them." in card


@pytest.mark.parametrize("form", SINGLE)
def test_images_and_reasoning_are_passed_on_only_where_asked_and_counted(form: ExportFormat) -> None:
    (run,) = export_runs([raw_run(ASKED, THOUGHT, SHOWN)], with_images=False, with_reasoning=False)
    text = _as_text(encoded(form, run))
    assert "iVBOR" not in text
    assert "a thought" not in text
    assert run.losses["reasoning"] > 0
    assert any("image" in reason and number for reason, number in run.losses.items())


@pytest.mark.parametrize(
    "source",
    [
        {"type": "url", "url": "https://example.com/x.png?token=1"},
        {"type": "letta", "file_id": "file-1", "media_type": "image/png"},
        {"type": "base64", "media_type": "image/png", "data": "not base64!"},
        {"type": "base64", "media_type": "text/html", "data": "AAEC"},
        "odd",
        None,
    ],
)
def test_image_without_its_content_is_counted(source: Any) -> None:
    (run,) = export_runs([raw_run(message(1, "user", content=[{"type": "image", "source": source}]), THOUGHT)])
    for form in (ExportFormat.ATIF, ExportFormat.SCOUT, ExportFormat.OPENAI, ExportFormat.OTEL):
        run.losses.clear()
        assert "example.com" not in _as_text(encoded(form, run))
        assert run.losses["images without their content"] == 1


def test_unknown_version_is_refused() -> None:
    (run,) = export_runs([raw_run(ASKED)])
    with pytest.raises(PipelineError, match="--version 9 of atif is not known"):
        FORMS[ExportFormat.ATIF].encode(run, WriterOptions("9"))


@pytest.mark.parametrize("form", SINGLE)
def test_loss_is_counted_once(form: ExportFormat) -> None:
    gone = message(5, "user", "gone", is_deleted=True)
    (run,) = export_runs([raw_run(ASKED, THOUGHT, SHOWN, gone)], with_images=False, with_reasoning=False)
    encoded(form, run)
    assert (run.losses["reasoning"], run.losses["deleted messages"]) == (1, 1)
    assert sum(number for reason, number in run.losses.items() if "image" in reason) == 2


@pytest.mark.parametrize("form", SINGLE)
def test_any_run_is_encoded(form: ExportFormat) -> None:
    """Empty messages, arguments that are no object, odd entries, no verdict, no message at all."""
    for run in export_runs(made_runs()):
        encoded(form, run)


@pytest.mark.parametrize("form", SINGLE)
def test_arguments_that_are_no_object_stay_as_they_are(form: ExportFormat) -> None:
    odd = '{"a": 1, "a": 2}'
    (run,) = export_runs([raw_run(message(1, "user", "Go"), message(2, tool_calls=[call("f", odd)]))])
    text = _as_text(encoded(form, run))
    assert odd in text or json.dumps(odd)[1:-1] in text or json.dumps(json.dumps(odd))[2:-2] in text


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return " ".join(map(_as_text, value.values()))
    if isinstance(value, list | tuple):
        return " ".join(map(_as_text, value))
    return str(value)
