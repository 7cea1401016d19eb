"""What an export is made of: a trajectory as Parquet holds it, and what the judge said of it."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

Row = Mapping[str, Any]
JsonObject = dict[str, Any]

_KEPT = frozenset(
    {
        *("run_id", "trajectory_id", "agent_id", "organization_id", "conversation_id", "project_id", "message_id"),
        *("step_id", "step_run_id", "sender_id", "tool_call_id", "id", "role", "kind", "type", "status", "model"),
        *("model_handle", "provider", "content_digest", "partition_key"),
    }
)
"""Names of ids and closed lists, which redaction leaves as they are."""


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON text in UTF-8, the same for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class ExportRun:
    """One run to export.

    Attributes:
        trajectory: its row of ``TRAJECTORIES`` as Parquet holds it, redacted.
        verdict: columns of its verdict under the current policy; None where there is none.
        family_id: its task family; None where it has none.
        with_reasoning: whether reasoning of the model may be passed on.
        losses: what the form cannot hold, counted as it is written.
    """

    trajectory: Row
    verdict: Row | None = None
    family_id: str | None = None
    with_reasoning: bool = False
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return str(self.trajectory["run_id"])

    @property
    def outcome(self) -> str:
        """What the judge says, else the heuristic outcome."""
        judged = None if self.verdict is None else self.verdict["outcome"]
        return str(judged or self.trajectory["heuristic_outcome"])

    @property
    def outcome_source(self) -> str:
        """``judge`` or ``heuristic``: where ``outcome`` is from."""
        return "judge" if self.verdict is not None and self.verdict["outcome"] else "heuristic"

    def turns(self) -> Iterator[tuple[Row, list[Row]]]:
        """Yield each turn with its messages; those that are marked as deleted at the source are left out."""
        for turn in self.trajectory["turns"] or ():
            messages = []
            for message in turn["messages"] or ():
                if message["is_deleted"]:
                    self.losses["deleted messages"] += 1
                else:
                    messages.append(message)
            yield turn, messages

    def reasoning_of(self, message: Row) -> str | None:
        """Return the model's reasoning in a message where it may be passed on; else it counts as a loss."""
        texts = [part["reasoning"] for part in message["content"] or () if part["reasoning"]]
        if texts and not self.with_reasoning:
            self.losses["reasoning"] += 1
            return None
        return "\n".join(texts) or None

    @property
    def system_prompt(self) -> str | None:
        """What the agent was told; None where it is not known."""
        context = self.trajectory.get("context")
        return context["system_prompt"] if context else None

    @property
    def tool_definitions(self) -> list[JsonObject]:
        """The tools that the agent had, in OpenAI's chat form; empty where they are not known."""
        context = self.trajectory.get("context")
        if not context or not context["tools"]:
            return []
        try:
            tools = json.loads(context["tools"])
        except ValueError:
            self.losses["tool definitions that are no JSON"] += 1
            return []
        return [tool for tool in map(_tool_definition, tools) if tool is not None]


def _tool_definition(tool: Any) -> JsonObject | None:
    if not isinstance(tool, dict):
        return None
    inner = tool.get("function")
    function = inner if isinstance(inner, dict) else tool
    name = function.get("name")
    if not isinstance(name, str):
        return None
    parameters = function.get("parameters", function.get("input_schema"))
    described = {"name": name, "description": function.get("description"), "parameters": parameters}
    return {"type": "function", "function": {key: value for key, value in described.items() if value is not None}}


@dataclass(frozen=True)
class Arguments:
    """A tool call's arguments: ``value`` is the JSON object; None where they are none that JSON can give back."""

    text: str
    value: JsonObject | None


def parse_arguments(text: str | None) -> Arguments:
    """Return arguments as an object, where the object says the same as the text.

    Not so for text that is no JSON object, a key that stands there twice, and numbers that a float cannot hold.
    """
    try:
        value = json.loads(text or "", object_pairs_hook=_unique, parse_float=_exact_float, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Arguments(text or "", None)
    return Arguments(text or "", value if isinstance(value, dict) else None)


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _exact_float(text: str) -> float:
    value = float(text)
    if Decimal(text) != Decimal(repr(value)):
        raise ValueError("a number that a float cannot hold")
    return value


def _refuse(text: str) -> Any:
    raise ValueError(text)


_ELSEWHERE = ("tool_call", "tool_return", "reasoning", "redacted_reasoning", "omitted_reasoning")
"""Types of parts that are no text: calls and returns stand apart, and reasoning is passed on only where asked."""


def text_of(message: Row, losses: Counter[str]) -> str:
    """Return the texts of a message's parts, a line break between two; counts parts of other types."""
    texts = []
    for part in message["content"] or ():
        if part["type"] == "text":
            texts.append(part["text"] or "")
        elif part["type"] not in _ELSEWHERE and not part["reasoning"]:
            losses[f"content parts of type {part['type']}"] += 1
    return "\n".join(texts)


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """Return a value with every text in it redacted, but for ids and closed lists."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: part if name in _KEPT else redacted(part, redact) for name, part in value.items()}
    if isinstance(value, list):
        return [redacted(part, redact) for part in value]
    return value
