"""The content digest: when it is equal, a verdict still holds.

Belongs here: what is covered, and its canonical form. Does not belong here: our own columns: the digest is taken of
what the source says, so that a new column of ours makes no verdict stale.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from trajectory_pipeline.trajectories.json_text import canonical
from trajectory_pipeline.trajectories.messages import approval_of, part_of, tool_call_of, tool_return_of

Row = dict[str, Any]


def content_digest(row: Row, escaped: Sequence[str]) -> str:
    """Return the SHA-256 (hex) of what the agent saw, said and did, its errors and its ending.

    Not covered: durations, times, tokens, prices, feedback, signals, links between runs, agent attributes, deletion
    marks and our own versions: those may arrive late or change without making a verdict stale. Of another run's step
    only the messages of this run are covered: the rest is that run's content.

    Args:
        row: a trajectory, with the fields of ``schema.trajectory.TRAJECTORIES``.
        escaped: places in what is covered where text was escaped: the escape of a lone surrogate differs from the
            same words as text.
    """
    content = {
        "run_id": row["run_id"],
        "status": row["status"],
        "stop_reason": row["stop_reason"],
        "error": row["error"],
        "turns": [_turn(turn) for turn in row["turns"]],
        "escaped": list(escaped),
    }
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _turn(turn: Row) -> dict[str, Any]:
    messages = [_message(message) for message in turn["messages"]]
    own = turn["input_tokens"] is not None
    if not own:
        return {"messages": messages}
    return {
        "step_id": turn["step_id"],
        "stop_reason": turn["stop_reason"],
        "error": turn["error"] and [turn["error"]["type"], turn["error"]["message"], turn["error"]["detail"]],
        "messages": messages,
    }


def _message(message: Row) -> list[Any]:
    return [
        message["message_id"],
        message["role"],
        message["name"],
        [part_of(part) for part in message["content"]],
        [tool_call_of(call) for call in message["tool_calls"]],
        [tool_return_of(item) for item in message["tool_returns"]],
        [approval_of(entry) for entry in message["approvals"]],
    ]
