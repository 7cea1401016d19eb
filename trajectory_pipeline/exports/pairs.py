"""Pairs of a success and a failure of one task, in TRL's form for DPO.

Source: TRL's dataset formats (``prompt`` with ``chosen`` and ``rejected``).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trajectory_pipeline.exports.chat import LABELS, NO_LABEL, first_answer, sft_record
from trajectory_pipeline.exports.source import ExportRun, JsonObject, NoPlace

_MEMORY_METADATA = re.compile(r"<memory_metadata>.*?</memory_metadata>", re.DOTALL)
"""What Letta (0.16.8) writes at the end of a system prompt: the agent's id, when the prompt was last compiled, and how
many messages there were before. It differs between any two runs."""
_RETURN_TIME = re.compile(r'\A(\{\s*"status": .*),\s*"time": "[^"]*"\s*\}\s*\Z', re.DOTALL)
"""What a tool returned, as Letta (0.16.8) wraps it: with the time at which it did."""


def pair_side(run: ExportRun, *, across_agents: bool) -> tuple[str, bool, JsonObject] | NoPlace:
    """Return one side of a pair: the digest of what it was asked, whether it is a success, and its record.

    What it was asked is all before its agent first answered, without what Letta itself writes at the end of a system
    prompt; across agents, without the system prompt. Or why the run can be on neither side.
    """
    if run.outcome not in LABELS:
        return NO_LABEL
    record = sft_record(run)
    if isinstance(record, NoPlace):
        return record
    chat = record["messages"]
    asked = [[one["role"], one["content"]] for one in chat[: first_answer(chat)]]
    if asked[0][0] == "system":
        asked[:1] = [] if across_agents else [["system", _MEMORY_METADATA.sub("", asked[0][1])]]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest(), LABELS[run.outcome], record


@dataclass(frozen=True)
class Preference:
    """A success and a failure of the same task.

    Attributes:
        record: a row of a TRL dataset for DPO, with ``parted_at``: the message, from 0, at which they part, and what
            each does there.
        parted_at: the number of that message.
    """

    record: JsonObject
    parted_at: int


def preference(success: JsonObject, failure: JsonObject) -> Preference | None:
    """Return a pair for DPO of two records for supervised fine-tuning, cut where they first differ.

    None where that is no decision of the agent. Both were asked the same, and did the same, up to there. System prompts
    are not compared: the prompt has the success's.
    """
    chosen, rejected = success["messages"], failure["messages"]
    start = [1 if chat[0]["role"] == "system" else 0 for chat in (chosen, rejected)]
    same = _common(chosen[start[0] :], rejected[start[1] :])
    parts = start[0] + same, start[1] + same
    if parts[0] == len(chosen) or parts[1] == len(rejected):
        return None
    if chosen[parts[0]]["role"] != "assistant" or rejected[parts[1]]["role"] != "assistant":
        return None
    decisions = {"chosen": _decision(chosen[parts[0]]), "rejected": _decision(rejected[parts[1]])}
    record = {
        "prompt": chosen[: parts[0]],
        "chosen": chosen[parts[0] :],
        "rejected": rejected[parts[1] :],
        "parted_at": {"message": parts[0], **decisions},
    }
    return Preference({**record, "tools": success["tools"]} if "tools" in success else record, parts[0])


def _decision(message: JsonObject) -> str:
    """Return in a few words what an agent decided in a message."""
    names = ", ".join(call["function"]["name"] for call in message.get("tool_calls") or ())
    return f"calls {names}" if names else "answers"


def _common(first: Sequence[JsonObject], second: Sequence[JsonObject]) -> int:
    """Return how many messages are the same; ids of calls and times of returns differ from run to run."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if _comparable(one) != _comparable(other):
            return place
    return min(len(first), len(second))


def _comparable(message: JsonObject) -> JsonObject:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    one = {**{name: value for name, value in message.items() if name != "tool_call_id"}, "tool_calls": calls}
    if one["role"] == "tool":
        one["content"] = _RETURN_TIME.sub(r"\1", one["content"])
    return one
