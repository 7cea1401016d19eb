"""Spans and evaluation events, as a collector takes them over OTLP, and what becomes of a collector that does not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from openinference.semconv.trace import OpenInferenceSpanKindValues, SpanAttributes
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.endpoint import endpoint_url, headers_of
from trajectory_pipeline.exports.otel import telemetry_of
from trajectory_pipeline.exports.otlp import OtlpSender
from trajectory_pipeline.exports.source import ExportRun
from trajectory_pipeline.exports.writers import OtlpLines
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.raw_runs import call, message, raw_run, returned, step
from trajectory_pipeline_tests.exports.collector import (
    OK,
    Answer,
    Collector,
    attributes,
    partial_success,
    running_collector,
)
from trajectory_pipeline_tests.exports.content import IMAGE, export_runs

VERDICT = {
    "outcome": "success",
    "outcome_confidence": 0.75,
    "learning_value": 0.5,
    "summary": "It found the town.",
    "lesson": "Look first.",
}


def a_run(**changes: Any) -> ExportRun:
    """A question, a call, its return with an image, and an answer."""
    (run,) = export_runs(
        [
            raw_run(
                message(1, "user", "Where is it?"),
                message(
                    2, content=[{"type": "reasoning", "reasoning": "hm"}], tool_calls=[call("find", '{"town": "Oslo"}')]
                ),
                message(3, "tool", tool_returns=[returned(text=[{"type": "text", "text": "In Norway"}, IMAGE])]),
                message(4, reply="In Norway.", step_id="step-2"),
                steps=[step("step-1"), step("step-2")],
            )
        ]
    )
    return replace(run, **{"verdict": VERDICT, **changes})


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def send(
    collector: Collector, *runs: ExportRun, openinference: bool = False, waits: list[float] | None = None
) -> list[Any]:
    sender = OtlpSender(collector.url, {"authorization": "Bearer t"}, sleep=(waits if waits is not None else []).append)
    try:
        return [sender.write(telemetry_of(run, openinference=openinference), "train") for run in runs]  # type: ignore[arg-type]  # none is without a time
    finally:
        sender.close()


def test_run_is_a_trace_of_the_agent_its_model_calls_and_its_tools(collector: Collector) -> None:
    assert send(collector, a_run()) == [None]
    root, first, tool, second = collector.spans
    assert [span.name for span in collector.spans] == [
        "invoke_agent Ada",
        "chat gpt-4o-mini",
        "execute_tool find",
        "chat gpt-4o-mini",
    ]
    assert {span.trace_id for span in collector.spans} == {root.trace_id}
    assert {span.parent_span_id for span in (first, tool, second)} == {root.span_id}
    assert (len(root.trace_id), len(root.span_id), root.parent_span_id) == (16, 8, b"")
    assert (attributes(first)["gen_ai.usage.input_tokens"], attributes(first)["gen_ai.provider.name"]) == (
        100,
        "openai",
    )
    assert json.loads(attributes(tool)["gen_ai.tool.call.arguments"]) == {"town": "Oslo"}
    result = json.loads(attributes(tool)["gen_ai.tool.call.result"])
    assert [part["type"] for part in result] == ["text", "blob"]
    parts = json.loads(attributes(first)["gen_ai.output.messages"])[0]["parts"]
    assert [part["type"] for part in parts] == ["reasoning", "tool_call"]
    assert attributes(collector.resources[0])["trajectory_pipeline.split"] == "train"
    assert {headers["authorization"] for headers in collector.headers} == {"Bearer t"}


def test_evaluations_are_events_of_the_agents_span(collector: Collector) -> None:
    send(collector, a_run())
    outcome, learning = collector.records
    assert {record.event_name for record in collector.records} == {"gen_ai.evaluation.result"}
    assert (outcome.trace_id, outcome.span_id) == (collector.spans[0].trace_id, collector.spans[0].span_id)
    assert attributes(outcome) == {
        "gen_ai.evaluation.name": "outcome",
        "gen_ai.evaluation.score.label": "success",
        "gen_ai.evaluation.score.value": 0.75,
        "gen_ai.evaluation.explanation": "It found the town.",
    }
    assert attributes(learning)["gen_ai.evaluation.score.value"] == 0.5


def test_run_without_a_verdict_has_no_evaluation(collector: Collector) -> None:
    send(collector, a_run(verdict=None))
    assert (len(collector.spans), collector.records) == (4, [])
    assert attributes(collector.spans[0])["trajectory_pipeline.outcome_source"] == "heuristic"


def test_run_exported_twice_gives_the_same_spans(collector: Collector) -> None:
    run = a_run()
    send(collector, run, run)
    ids = [(span.trace_id, span.span_id) for span in collector.spans]
    assert ids[:4] == ids[4:]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("openinference", [False, True])
def test_any_run_has_its_own_spans_in_order_of_time(openinference: bool) -> None:
    for run in export_runs(made_runs()):
        telemetry = telemetry_of(run, openinference=openinference)
        if telemetry is not None:
            assert len({span["spanId"] for span in telemetry.spans}) == len(telemetry.spans)
            assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in telemetry.spans)


def test_names_of_attributes_are_those_of_the_conventions(collector: Collector) -> None:
    """A name that the conventions do not know, and that is not in our own namespace, is a spelling mistake."""
    known = {
        value
        for module in (gen_ai_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    }
    send(collector, a_run())
    used = {name for record in [*collector.spans, *collector.records] for name in attributes(record)}
    assert {name for name in used if not name.startswith("trajectory_pipeline.")} <= known
    assert used & known


def test_openinference_takes_the_place_of_genai(collector: Collector) -> None:
    send(collector, a_run(), openinference=True)
    spans = [attributes(span) for span in collector.spans]
    kinds = [span[SpanAttributes.OPENINFERENCE_SPAN_KIND] for span in spans]
    assert kinds == [getattr(OpenInferenceSpanKindValues, kind).value for kind in ("AGENT", "LLM", "TOOL", "LLM")]
    root, first, tool, _ = spans
    assert first["llm.input_messages.0.message.content"] == "Where is it?"
    assert first["llm.output_messages.0.message.tool_calls.0.tool_call.function.name"] == "find"
    assert tool["output.images.0.image.url"].startswith("data:image/png;base64,")
    assert root["evaluations.0.evaluation.label"] == "success"
    assert collector.records == []
    known = [value for name, value in vars(SpanAttributes).items() if name.isupper()]
    ours = {name for span in spans for name in span if not name.startswith(("trajectory_pipeline.", "error."))}
    assert [name for name in ours if not any(name == one or name.startswith(f"{one}.") for one in known)] == []
    assert not any(name.startswith("gen_ai.") for name in ours)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_collector_is_asked_again(collector: Collector, status: int) -> None:
    waits: list[float] = []
    collector.answers = [(status, {"Retry-After": "7"}, b""), (status, {}, b""), OK]
    assert send(collector, a_run(verdict=None), waits=waits) == [None]
    assert waits[0] == 7
    assert 1 < waits[1] <= 4
    assert len(collector.spans) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {}, b"\x08\x03\x12\x05no id"), "answers 400 (no id)"),
        ((401, {}, b""), "OTEL_EXPORTER_OTLP_HEADERS"),
        ((404, {}, b""), "does it take traces?"),
        ((413, {}, b""), "max_request_body_size"),
        ((301, {"Location": "/elsewhere"}, b""), "answers 301"),
        ((200, {}, b"<html>hello</html>"), "no answer of OTLP"),
    ],
)
def test_refusal_is_an_error_that_says_what_to_do(collector: Collector, answer: Answer, words: str) -> None:
    collector.answers = [answer]
    with pytest.raises(PipelineError) as caught:
        send(collector, a_run())
    assert words in str(caught.value)
    assert "Nothing is noted as exported." in str(caught.value)


def test_collector_without_logs_is_told_of(collector: Collector) -> None:
    collector.answers = [OK, (405, {}, b"")]
    with pytest.raises(PipelineError, match="Does the collector take logs"):
        send(collector, a_run())


def test_error_after_some_runs_says_how_many_were_taken(collector: Collector) -> None:
    collector.answers = [OK, OK, (500, {}, b"disk full")]
    with pytest.raises(PipelineError, match=r"answers 500 \(disk full\).*has taken 1 runs before"):
        send(collector, a_run(), a_run())


def test_collector_that_stays_busy_or_away_ends_the_export(collector: Collector) -> None:
    waits: list[float] = []
    collector.answers = [(503, {}, b"")] * 6
    with pytest.raises(PipelineError, match="answers 503, 6 times"):
        send(collector, a_run(), waits=waits)
    assert len(waits) == 5
    with running_collector() as gone:
        pass
    with pytest.raises(PipelineError, match="does not answer"):
        send(gone, a_run())


@pytest.mark.parametrize("path", ["traces", "logs"])
def test_run_of_which_a_part_was_rejected_is_not_taken(collector: Collector, path: str) -> None:
    """And is not sent again: OTLP forbids that."""
    first = [] if path == "traces" else [OK]
    collector.answers = [*first, partial_success(path, 1, "attribute too long"), OK, OK]
    rejected, taken = send(collector, a_run(), a_run())
    assert "attribute too long" in rejected
    assert taken is None


def test_warning_without_a_rejection_is_none(collector: Collector) -> None:
    collector.answers = [partial_success("traces", 0, "this port will go"), OK]
    assert send(collector, a_run()) == [None]


def test_files_hold_export_requests_of_otlp(tmp_path: Path) -> None:
    writer = OtlpLines(tmp_path)
    telemetry = telemetry_of(a_run(), openinference=False)
    assert telemetry is not None
    writer.write(telemetry, "train")
    writer.close()
    for name, kind, count in (("traces", ExportTraceServiceRequest, 4), ("logs", ExportLogsServiceRequest, 2)):
        (line,) = (tmp_path / f"train-{name}.jsonl").read_text().splitlines()
        request = Parse(line, kind())
        scopes = request.resource_spans[0].scope_spans if name == "traces" else request.resource_logs[0].scope_logs
        assert len(scopes[0].spans if name == "traces" else scopes[0].log_records) == count
    assert len(telemetry.spans[0]["traceId"]) == 32


@pytest.mark.parametrize(
    "url", ["collector:4318", "ftp://host", "http://", "http://user:pass@host:4318", "http://h/?a=b"]
)
def test_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(PipelineError) as caught:
        endpoint_url(url)
    assert "pass@" not in str(caught.value)


def test_headers_are_read_as_opentelemetry_writes_them() -> None:
    assert headers_of("authorization=Bearer%20t, x-a = b=c") == {"authorization": "Bearer t", "x-a": "b=c"}
    assert headers_of("") == {}
    with pytest.raises(PipelineError) as caught:
        headers_of("secret")
    assert "secret" not in str(caught.value)
