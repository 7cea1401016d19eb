"""Small trajectory documents, and those of the whole sample."""

import functools
from pathlib import Path
from typing import Any

from trajectory_pipeline.conversion.document import trajectory_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline_tests.conversion.sample_runs import partition_of, sample_runs
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE

Document = dict[str, Any]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def message(message_id: str, role: str, *content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"message_id": message_id, "role": role, "kind": role, "timestamp": None, "content": list(content), **more}


def call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_return(call_id: str, output: str | None, status: str | None = "success", **more: Any) -> dict[str, Any]:
    return {"tool_call_id": call_id, "status": status, "text": output, "stdout": None, "stderr": None, **more}


def turn(step_id: str | None, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"step_id": step_id, "step_run_id": None, "messages": list(messages), **more}


def document(run_id: str, *turns: dict[str, Any], **metadata: Any) -> Document:
    defaults = {"status": "completed", "error": None, "continues_run_id": None, "models": ["gpt-secret"]}
    outcome = {"type": "success", "confidence": 0.8, "reasoning": ["because"]}
    return {"run_id": run_id, "metadata": {**defaults, **metadata}, "turns": list(turns), "outcome": outcome}


@functools.cache
def sample_documents(file: Path = SAMPLE_FILE) -> tuple[Document, ...]:
    """The documents of a sample's runs. They are cached: do not change them."""
    return tuple(trajectory_document(convert_run(raw, partition_of(raw))) for raw in sample_runs(file))


ORDER = document(
    "run-1",
    turn(
        "step-1",
        message("message-a", "user", text("Please find order 4711.")),
        message("message-b", "assistant", text("I look."), tool_calls=[call("call-1", "find", '{"order": "4711"}')]),
        message("message-c", "tool", tool_returns=[tool_return("call-1", "It arrives\non 4 March.")]),
    ),
    turn("step-2", message("message-d", "assistant", text("On 4 March."))),
)
