"""ATIF, the Agent Trajectory Interchange Format, versions 1.7 and 1.8.

Source: RFC 0001 of harbor-framework/harbor, and its reference models (package ``atif`` 1.8.0). Keys stand in the order
of the reference models, and what is not there is left out: a file that they read and write again is the same.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from trajectory_pipeline.exports.source import (
    AUTOMATIC,
    SPOKEN,
    ExportRun,
    Image,
    JsonObject,
    LatestCalls,
    Parts,
    Row,
    has_only_text,
    parse_arguments,
)

_METADATA = (
    *("agent_id", "organization_id", "source", "conversation_id", "project_id", "tags", "status", "stop_reason"),
    *("run_type", "continues_run_id", "start_time", "end_time", "duration_ns", "execution_status", "execution_cause"),
    *("heuristic_outcome", "heuristic_confidence", "heuristic_reasoning", "content_digest"),
)
_VERDICT = (
    *("outcome", "outcome_confidence", "failure_owner", "failure_mode", "learning_value", "summary", "lesson"),
    *("tags", "task_category", "model", "simulated", "policy_id"),
)


Files = dict[str, bytes]
"""Content of files beside a trajectory, by the path that it names them by."""


def atif_trajectory(run: ExportRun, version: str) -> tuple[JsonObject, Files]:
    """Return a run as an ATIF trajectory: one step a message, returns as observations of the step that called.

    Arguments that are no JSON object stand as they are in ``extra.arguments_text`` of the call. Messages of another
    run's steps are marked as copied context. A person's decision on a call is a user step with ``extra.approvals``.
    Images are files beside the trajectory, named by their digest.
    """
    trajectory = run.trajectory
    files: Files = {}
    steps = [*_instructions(run), *_steps(run, files)]
    models = trajectory["models"] or []
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    agent = _present(
        name=trajectory["agent_name"] or trajectory["agent_id"] or "unknown",
        version=trajectory["agent_type"] or "unknown",
        model_name=models[0] if len(models) == 1 else None,
        tool_definitions=run.tool_definitions or None,
    )
    document = _present(
        schema_version=f"ATIF-v{version}",
        session_id=trajectory["conversation_id"] or trajectory["run_id"],
        trajectory_id=trajectory["trajectory_id"],
        agent=agent,
        steps=[_ordered(step) for step in steps],
        final_metrics=_final_metrics(trajectory, len(steps)),
        extra=_extra(run),
    )
    return document, files


def _instructions(run: ExportRun) -> Iterator[JsonObject]:
    prompt = run.system_prompt
    if prompt is not None:
        yield {"source": "system", "message": prompt, "extra": {"context_source": run.trajectory["context"]["source"]}}


def _steps(run: ExportRun, files: Files) -> Iterator[JsonObject]:
    calling = LatestCalls[JsonObject]()
    for turn, messages in run.turns():
        metrics = _metrics(turn)
        for message in messages:
            for step in _steps_of(run, message, calling, files):
                step["timestamp"] = _time(message["timestamp"])
                if turn["step_run_id"] is not None:
                    step["is_copied_context"] = True
                if step["source"] == "agent":
                    step["model_name"] = message["model"] or turn["model"]
                    step["metrics"], metrics = metrics, None
                yield step


def _steps_of(run: ExportRun, message: Row, calling: LatestCalls[JsonObject], files: Files) -> Iterator[JsonObject]:
    extra = {"message_id": message["message_id"]}
    calls = message["tool_calls"] or []
    if message["role"] == "assistant" or calls:
        step: JsonObject = {
            "source": "agent",
            "message": _content(run, run.parts_of(message), files),
            "reasoning_content": run.reasoning_of(message),
            "tool_calls": [_call(call, number) for number, call in enumerate(calls)] or None,
            "extra": extra,
        }
        # Not by the number that stands for an id: a return whose id is that text answers another call.
        calling.called((call["id"], step) for call in calls)
        yield step
    elif message["role"] in SPOKEN or has_only_text(message):
        kind = message["kind"]
        source = "user" if message["role"] == "user" and kind not in AUTOMATIC else "system"
        if kind != message["role"] or message["role"] not in SPOKEN:
            extra["kind"] = kind
        yield {"source": source, "message": _content(run, run.parts_of(message), files), "extra": extra}
    decisions = [
        _present(tool_call_id=one["tool_call_id"], approve=one["approve"], reason=one["reason"])
        for one in message["approvals"] or ()
        if one["approve"] is not None
    ]
    if decisions:
        yield {"source": "user", "message": "", "extra": {**extra, "approvals": decisions}}
    results = [_result(run, one, files) for one in message["tool_returns"] or ()]
    yield from _observations(results, calling, extra)


_IMAGE_TYPES = {"image/jpeg": "jpg", "image/png": "png", "image/gif": "gif", "image/webp": "webp"}
"""Those that the format knows, with the ending of their files."""


def _content(run: ExportRun, parts: Parts, files: Files) -> str | list[JsonObject]:
    """Return texts as one, a line break between two; with an image among them, each part for itself."""
    unknown = [part for part in parts if isinstance(part, Image) and part.media_type not in _IMAGE_TYPES]
    for image in unknown:
        run.losses[f"images of type {image.media_type}"] += 1
    kept = [part for part in parts if isinstance(part, str) or part.media_type in _IMAGE_TYPES]
    if all(isinstance(part, str) for part in kept):
        return "\n".join(part for part in kept if isinstance(part, str))
    return [_content_part(part, files) for part in kept]


def _content_part(part: str | Image, files: Files) -> JsonObject:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    path = f"images/{hashlib.sha256(part.content).hexdigest()}.{_IMAGE_TYPES[part.media_type]}"
    files[path] = part.content
    return {"type": "image", "source": {"media_type": part.media_type, "path": path}}


def _observations(
    results: Iterable[JsonObject], calling: LatestCalls[JsonObject], extra: JsonObject
) -> Iterator[JsonObject]:
    """Add each result to the step that called; those without one are the results of a system step."""
    others = []
    for result in results:
        step = calling.returned(result.get("source_call_id"))
        if step is None:
            others.append(result)
        else:
            step.setdefault("observation", {"results": []})["results"].append(result)
    if others:
        yield {"source": "system", "message": "", "observation": {"results": others}, "extra": extra}


def _result(run: ExportRun, one: Row, files: Files) -> JsonObject:
    return _present(
        source_call_id=one["tool_call_id"],
        content=_content(run, run.returned_parts(one), files),
        extra=_present(
            status=one["status"],
            denied=one["denied"] or None,
            stdout=one["stdout"] or None,
            stderr=one["stderr"] or None,
        )
        or None,
    )


def _call(call: Row, number: int) -> JsonObject:
    arguments = parse_arguments(call["arguments"])
    return _present(
        tool_call_id=call["id"] or f"call-{number}",
        function_name=call["name"] or "unknown",
        arguments={} if arguments.value is None else arguments.value,
        extra={"arguments_text": arguments.text} if arguments.value is None else None,
    )


_STEP_KEYS = (
    *("step_id", "timestamp", "source", "model_name", "message", "reasoning_content", "tool_calls", "observation"),
    *("metrics", "extra", "is_copied_context"),
)


def _ordered(step: JsonObject) -> JsonObject:
    return {name: step[name] for name in _STEP_KEYS if step.get(name) is not None}


def _metrics(turn: Row) -> JsonObject | None:
    if turn["step_run_id"] is not None:
        return None
    return (
        _present(
            prompt_tokens=turn["input_tokens"],
            completion_tokens=turn["output_tokens"],
            cached_tokens=turn["cached_input_tokens"],
            extra=_present(cache_write_tokens=turn["cache_write_tokens"], reasoning_tokens=turn["reasoning_tokens"])
            or None,
        )
        or None
    )


def _final_metrics(trajectory: Row, steps: int) -> JsonObject:
    reported = trajectory["usage_reported"]
    return _present(
        total_prompt_tokens=trajectory["input_tokens"] if reported else None,
        total_completion_tokens=trajectory["output_tokens"] if reported else None,
        total_cached_tokens=trajectory["cached_input_tokens"],
        total_cost_usd=None if trajectory["cost_usd"] is None else float(trajectory["cost_usd"]),
        total_steps=steps,
    )


def _extra(run: ExportRun) -> JsonObject:
    values = {name: _json_value(run.trajectory.get(name)) for name in _METADATA}
    verdict = None if run.verdict is None else {name: _json_value(run.verdict.get(name)) for name in _VERDICT}
    return {
        "run_id": run.run_id,
        **({"error": _present(**run.trajectory["error"])} if run.trajectory["error"] else {}),
        **{name: value for name, value in values.items() if value is not None},
        **({"verdict": {name: value for name, value in verdict.items() if value is not None}} if verdict else {}),
        **({"task_family": run.family_id} if run.family_id else {}),
    }


def _present(**fields: Any) -> JsonObject:
    return {name: value for name, value in fields.items() if value is not None}


def _time(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat() if hasattr(moment, "isoformat") else str(moment)


def _json_value(value: Any) -> Any:
    return _time(value) if hasattr(value, "isoformat") else value
