"""ATIF, the Agent Trajectory Interchange Format, versions 1.7 and 1.8.

Source: RFC 0001 of harbor-framework/harbor, and its reference models (package ``atif`` 1.8.0). Keys stand in the order
of the reference models, and what is not there is left out: a file that they read and write again is the same.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from trajectory_pipeline.exports.source import ExportRun, JsonObject, Row, parse_arguments, text_of

_AUTOMATIC = ("heartbeat", "system_alert", "login")
_METADATA = (
    *("agent_id", "organization_id", "conversation_id", "project_id", "tags", "status", "stop_reason", "run_type"),
    *("continues_run_id", "start_time", "end_time", "duration_ns", "execution_status", "execution_cause"),
    *("heuristic_outcome", "heuristic_confidence", "heuristic_reasoning", "content_digest"),
)
_VERDICT = (
    *("outcome", "outcome_confidence", "failure_owner", "failure_mode", "learning_value", "summary", "lesson"),
    *("tags", "task_category", "model", "simulated", "policy_id"),
)


def atif_trajectory(run: ExportRun, version: str) -> JsonObject:
    """Return a run as an ATIF trajectory: one step a message, returns as observations of the step that called.

    Arguments that are no JSON object stand as they are in ``extra.arguments_text`` of the call. Messages of another
    run's steps are marked as copied context. A person's decision on a call is a user step with ``extra.approvals``.
    """
    trajectory = run.trajectory
    steps = [*_instructions(run), *_steps(run)]
    models = trajectory["models"] or []
    for number, step in enumerate(steps, 1):
        step["step_id"] = number
    agent = _present(
        name=trajectory["agent_name"] or trajectory["agent_id"] or "unknown",
        version=trajectory["agent_type"] or "unknown",
        model_name=models[0] if len(models) == 1 else None,
        tool_definitions=run.tool_definitions or None,
    )
    return _present(
        schema_version=f"ATIF-v{version}",
        session_id=trajectory["conversation_id"] or trajectory["run_id"],
        trajectory_id=trajectory["trajectory_id"],
        agent=agent,
        steps=[_ordered(step) for step in steps],
        final_metrics=_final_metrics(trajectory, len(steps)),
        extra=_extra(run),
    )


def _instructions(run: ExportRun) -> Iterator[JsonObject]:
    prompt = run.system_prompt
    if prompt is not None:
        yield {"source": "system", "message": prompt, "extra": {"context_source": run.trajectory["context"]["source"]}}


def _steps(run: ExportRun) -> Iterator[JsonObject]:
    calling: dict[str, JsonObject] = {}
    for turn, messages in run.turns():
        metrics = _metrics(turn)
        for message in messages:
            for step in _steps_of(run, message, calling):
                step["timestamp"] = _time(message["timestamp"])
                if turn["step_run_id"] is not None:
                    step["is_copied_context"] = True
                if step["source"] == "agent":
                    step["model_name"] = message["model"] or turn["model"]
                    step["metrics"], metrics = metrics, None
                yield step


def _steps_of(run: ExportRun, message: Row, calling: dict[str, JsonObject]) -> Iterator[JsonObject]:
    extra = {"message_id": message["message_id"]}
    calls = message["tool_calls"] or []
    if message["role"] == "assistant" or calls:
        step: JsonObject = {
            "source": "agent",
            "message": text_of(message, run.losses),
            "reasoning_content": run.reasoning_of(message),
            "tool_calls": [_call(call, number) for number, call in enumerate(calls)] or None,
            "extra": extra,
        }
        for call in step["tool_calls"] or ():
            calling[call["tool_call_id"]] = step
        yield step
    elif message["role"] in ("user", "system", "summary"):
        kind = message["kind"]
        source = "user" if message["role"] == "user" and kind not in _AUTOMATIC else "system"
        if kind != message["role"]:
            extra["kind"] = kind
        yield {"source": source, "message": text_of(message, run.losses), "extra": extra}
    decisions = [
        _present(tool_call_id=one["tool_call_id"], approve=one["approve"], reason=one["reason"])
        for one in message["approvals"] or ()
        if one["approve"] is not None
    ]
    if decisions:
        yield {"source": "user", "message": "", "extra": {**extra, "approvals": decisions}}
    yield from _observations(message["tool_returns"] or (), calling, extra)


def _observations(returns: Iterable[Row], calling: dict[str, JsonObject], extra: JsonObject) -> Iterator[JsonObject]:
    """Add each return to the step that called; those without one are the results of a system step."""
    others = []
    for one in returns:
        result = _present(
            source_call_id=one["tool_call_id"],
            content=one["text"] if one["text"] is not None else "",
            extra=_present(
                status=one["status"],
                denied=one["denied"] or None,
                stdout=one["stdout"] or None,
                stderr=one["stderr"] or None,
            )
            or None,
        )
        step = calling.get(one["tool_call_id"] or "")
        if step is None:
            others.append(result)
        else:
            step.setdefault("observation", {"results": []})["results"].append(result)
    if others:
        yield {"source": "system", "message": "", "observation": {"results": others}, "extra": extra}


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
        )
        or None
    )


def _final_metrics(trajectory: Row, steps: int) -> JsonObject:
    reported = trajectory["usage_reported"]
    return _present(
        total_prompt_tokens=trajectory["input_tokens"] if reported else None,
        total_completion_tokens=trajectory["output_tokens"] if reported else None,
        total_steps=steps,
    )


def _extra(run: ExportRun) -> JsonObject:
    values = {name: _json_value(run.trajectory.get(name)) for name in _METADATA}
    verdict = None if run.verdict is None else {name: _json_value(run.verdict.get(name)) for name in _VERDICT}
    return {
        "run_id": run.run_id,
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
