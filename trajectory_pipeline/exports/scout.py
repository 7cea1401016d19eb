"""Transcripts as Inspect Scout reads them: a row of Parquet a run, its messages as JSON.

Source: ``transcripts_db_schema`` of ``inspect_scout`` 0.6 and the chat messages of ``inspect_ai``. A column that the
schema does not name is metadata of the transcript.
"""

import pyarrow as pa

from trajectory_pipeline.exports.source import (
    SPOKEN,
    ExportRun,
    Image,
    JsonObject,
    LatestCalls,
    Parts,
    Row,
    has_only_text,
    json_bytes,
    parse_arguments,
)

_TEXT, _WHOLE, _REAL, _YES = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_COLUMNS: list[tuple[str, pa.DataType]] = [
    *((name, _TEXT) for name in ("transcript_id", "source_type", "source_id", "date", "task_set", "task_id")),
    *((name, _TEXT) for name in ("agent", "model", "score", "score_explanation")),
    ("success", _YES),
    ("message_count", _WHOLE),
    ("total_time", _REAL),
    ("total_tokens", _WHOLE),
    *((name, _TEXT) for name in ("error", "limit")),
    ("trust_content", _YES),
    ("messages", pa.large_string()),
    # Metadata.
    *((name, _TEXT) for name in ("split", "run_id", "agent_id", "agent_type", "conversation_id", "project_id")),
    *((name, _TEXT) for name in ("continues_run_id", "tags", "models", "tools", "content_digest", "status")),
    *((name, _TEXT) for name in ("stop_reason", "execution_status", "execution_cause", "heuristic_outcome")),
    ("heuristic_confidence", _REAL),
    ("outcome_confidence", _REAL),
    ("learning_value", _REAL),
    *((name, _TEXT) for name in ("failure_owner", "failure_mode", "lesson", "judge_model", "policy_id")),
    ("simulated", _YES),
]
SCHEMA = pa.schema(_COLUMNS)
"""Columns of the table."""
_LIMITS = ("step_limit", "token_limit", "context_limit")
_SUCCESS = {"success": True, "failure": False}
_COPIED = (
    *("run_id", "agent_id", "agent_type", "conversation_id", "project_id", "continues_run_id", "content_digest"),
    *("status", "stop_reason", "execution_status", "execution_cause", "heuristic_outcome", "heuristic_confidence"),
)
_JUDGED = ("outcome_confidence", "learning_value", "failure_owner", "failure_mode", "lesson", "policy_id", "simulated")


def scout_row(run: ExportRun) -> JsonObject:
    """Return a run as a row of ``SCHEMA``; its split is added where it is written.

    The score is the verdict's outcome, and null where there is no verdict: a heuristic outcome is metadata.
    """
    row, verdict = run.trajectory, run.verdict or {}
    messages = _messages(run)
    started, duration, models = row["start_time"], row["duration_ns"], row["models"] or []
    return {
        **{name: row[name] for name in _COPIED},
        **{name: verdict.get(name) for name in _JUDGED},
        "transcript_id": row["trajectory_id"],
        "source_type": run.source,
        "source_id": row["organization_id"],
        "date": started.isoformat() if hasattr(started, "isoformat") else None,
        "task_set": run.family_id,
        "task_id": run.run_id,
        "agent": row["agent_name"],
        "model": models[0] if models else None,
        "score": verdict.get("outcome"),
        "score_explanation": verdict.get("summary"),
        "success": _SUCCESS.get(verdict.get("outcome", "")),
        "message_count": len(messages),
        "total_time": None if duration is None else duration / 1e9,
        "total_tokens": row["total_tokens"] if row["usage_reported"] else None,
        "error": (row["error"] or {}).get("message"),
        "limit": row["execution_cause"] if row["execution_cause"] in _LIMITS else None,
        # What agents and tools wrote may hold markup.
        "trust_content": False,
        "messages": json_bytes(messages),
        "tags": json_bytes(list(row["tags"] or [])).decode(),
        "models": json_bytes(list(models)).decode(),
        "tools": json_bytes(run.tool_definitions).decode(),
        "judge_model": verdict.get("model"),
    }


def _messages(run: ExportRun) -> list[JsonObject]:
    messages: list[JsonObject] = []
    if run.system_prompt is not None:
        messages.append({"id": f"{run.run_id}-instructions", "role": "system", "content": run.system_prompt})
    called = LatestCalls[str | None]()
    for turn, in_turn in run.turns():
        for message in in_turn:
            metadata = _present(
                kind=message["kind"],
                timestamp=message["timestamp"].isoformat() if hasattr(message["timestamp"], "isoformat") else None,
                step_id=turn["step_id"],
                step_run_id=turn["step_run_id"],
            )
            for number, one in enumerate(_messages_of(run, message, turn, called)):
                message_id = message["message_id"]
                messages.append({"id": f"{message_id}-{number}" if number else message_id, **one, "metadata": metadata})
    return messages


def _messages_of(run: ExportRun, message: Row, turn: Row, called: LatestCalls[str | None]) -> list[JsonObject]:
    said: list[JsonObject] = []
    calls = message["tool_calls"] or []
    if message["role"] == "assistant" or calls:
        content = _content(run.parts_of(message))
        reasoning = run.reasoning_of(message)
        if reasoning is not None:
            texts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            content = [{"type": "reasoning", "reasoning": reasoning}, *texts]
        called.called((call["id"], call["name"]) for call in calls)
        said.append(
            _present(
                role="assistant",
                content=content,
                source="generate",
                model=message["model"] or turn["model"],
                tool_calls=[_call(run, call, number) for number, call in enumerate(calls)] or None,
            )
        )
    elif message["role"] in SPOKEN:
        role = "system" if message["role"] == "system" else "user"
        said.append({"role": role, "content": _content(run.parts_of(message)), "source": "input"})
    elif has_only_text(message):
        run.losses[f"texts of role {message['role']}"] += 1
    run.losses["decisions on approvals"] += sum(one["approve"] is not None for one in message["approvals"] or ())
    for one in message["tool_returns"] or ():
        said.append(
            _present(
                role="tool",
                content=_content(run.returned_parts(one)),
                tool_call_id=one["tool_call_id"],
                function=called.returned(one["tool_call_id"]),
                error=_error(one),
            )
        )
    return said


def _error(one: Row) -> JsonObject | None:
    if one["denied"]:
        return {"type": "approval", "message": "A person denied the call."}
    return {"type": "unknown", "message": one["text"] or ""} if one["status"] == "error" else None


def _content(parts: Parts) -> str | list[JsonObject]:
    if not any(isinstance(part, Image) for part in parts):
        return "\n".join(part for part in parts if isinstance(part, str))
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part.data_uri}
        for part in parts
    ]


def _call(run: ExportRun, call: Row, number: int) -> JsonObject:
    arguments = parse_arguments(call["arguments"])
    if arguments.value is None:
        run.losses["arguments that are no JSON object"] += 1
    return _present(
        id=call["id"] or f"call-{number}",
        function=call["name"] or "unknown",
        arguments={"arguments_text": arguments.text} if arguments.value is None else arguments.value,
        parse_error="no JSON object, or one that says something else" if arguments.value is None else None,
        type="function",
    )


def _present(**fields: object) -> JsonObject:
    return {name: value for name, value in fields.items() if value is not None}
