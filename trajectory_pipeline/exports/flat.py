"""Flat tables for spreadsheets and notebooks: a row a run, a row a message, a row a tool call."""

from collections.abc import Iterator

import pyarrow as pa

from trajectory_pipeline.exports.source import ExportRun, JsonObject, answers_to, count_images, text_of

_TEXT, _WHOLE, _REAL, _YES = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")

_FIELDS: dict[str, list[tuple[str, pa.DataType]]] = {
    "runs": [
        *((name, _TEXT) for name in ("run_id", "source", "split", "agent_id", "agent_name", "organization_id")),
        *((name, _TEXT) for name in ("conversation_id", "continues_run_id", "task_family", "execution_status")),
        *((name, _TIME) for name in ("start_time", "end_time")),
        *((name, _WHOLE) for name in ("duration_ns", "step_count", "message_count", "input_tokens")),
        ("output_tokens", _WHOLE),
        *((name, _TEXT) for name in ("models", "tools_used", "heuristic_outcome")),
        ("heuristic_confidence", _REAL),
        ("judged_outcome", _TEXT),
        *((name, _REAL) for name in ("outcome_confidence", "learning_value")),
        *((name, _TEXT) for name in ("failure_owner", "failure_mode", "summary", "lesson", "error_message")),
    ],
    "messages": [
        *((name, _TEXT) for name in ("run_id", "message_id", "step_id", "role", "kind")),
        ("timestamp", _TIME),
        *((name, _TEXT) for name in ("text", "reasoning")),
        *((name, _WHOLE) for name in ("tool_calls", "tool_returns")),
    ],
    "tool_calls": [
        *((name, _TEXT) for name in ("run_id", "message_id", "step_id", "tool_call_id", "tool", "arguments")),
        *((name, _TEXT) for name in ("status", "result")),
        ("denied", _YES),
    ],
}
SCHEMAS = {name: pa.schema(fields) for name, fields in _FIELDS.items()}
"""Columns of each table, by its name. Lists are texts, with a comma between two."""


def flat_rows(run: ExportRun) -> Iterator[tuple[str, JsonObject]]:
    """Yield the rows of a run, each with the name of its table; its split is added where it is written."""
    row, verdict = run.trajectory, run.verdict or {}
    yield (
        "runs",
        {
            **{name: row.get(name) for name in SCHEMAS["runs"].names},
            "source": run.source,
            "task_family": run.family_id,
            "models": ", ".join(row["models"] or ()),
            "tools_used": ", ".join(row["tools_used"] or ()),
            "judged_outcome": verdict.get("outcome"),
            **{
                name: verdict.get(name)
                for name in ("outcome_confidence", "learning_value", "failure_owner", "failure_mode", "summary")
            },
            "lesson": verdict.get("lesson"),
            "error_message": (row.get("error") or {}).get("message"),
        },
    )
    turns = list(run.turns())
    answers = iter(answers_to([message for _, messages in turns for message in messages]))
    for turn, messages in turns:
        for message in messages:
            yield (
                "messages",
                {
                    **{name: message[name] for name in ("message_id", "role", "kind", "timestamp")},
                    "run_id": run.run_id,
                    "step_id": turn["step_id"],
                    "text": text_of(message, run.losses),
                    "reasoning": run.reasoning_of(message),
                    "tool_calls": len(message["tool_calls"] or ()),
                    "tool_returns": len(message["tool_returns"] or ()),
                },
            )
            for one in message["tool_returns"] or ():
                count_images(one, run.losses)
            for call, found in zip(message["tool_calls"] or (), next(answers), strict=True):
                answer = found or {}
                yield (
                    "tool_calls",
                    {
                        "run_id": run.run_id,
                        "message_id": message["message_id"],
                        "step_id": turn["step_id"],
                        "tool_call_id": call["id"],
                        "tool": call["name"],
                        "arguments": call["arguments"],
                        "status": answer.get("status"),
                        "result": answer.get("text"),
                        "denied": answer.get("denied"),
                    },
                )
