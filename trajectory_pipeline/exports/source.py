"""What an export is made of: a trajectory as Parquet holds it, and what the judge said of it."""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Generic, TypeVar

from trajectory_pipeline.partition_keys import LETTA

Row = Mapping[str, Any]
JsonObject = dict[str, Any]
_Call = TypeVar("_Call")

_KEPT = frozenset(
    {
        *("run_id", "trajectory_id", "agent_id", "organization_id", "conversation_id", "project_id", "message_id"),
        *("step_id", "step_run_id", "sender_id", "tool_call_id", "id", "role", "kind", "type", "status", "model"),
        *("model_handle", "provider", "content_digest", "partition_key"),
    }
)
"""Names of ids and closed lists, which redaction leaves as they are."""
UNREAD = frozenset(
    {
        *("signals", "assistant_text", "inner_thought", "sequence_id", "signature", "is_native", "media_type"),
        *("endpoint", "context_window_limit", "feedback", "tool_execution_ns", "escaped", "schema_version"),
        *("signals_version", "context_digest", "tools_requested", "tools_denied", "erased", "deleted_at"),
    }
)
"""Names of fields that no form takes anything from: an export does not read them."""
_REMEMBERED_CHARACTERS = 8_000_000
AUTOMATIC = ("heartbeat", "system_alert", "login")
"""Kinds of user messages that no person wrote."""
SPOKEN = ("user", "system", "summary")
"""Roles, beside the agent's, whose messages are text."""


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON text in UTF-8, the same for the same value."""
    import orjson

    try:
        return orjson.dumps(value)
    except TypeError:
        # A whole number beyond 64 bits.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class NoPlace:
    """Why a run has no place in a form."""

    reason: str


@dataclass(frozen=True)
class Image:
    """An image in a message or in what a tool returned.

    Attributes:
        media_type: such as ``image/png``.
        data: its content, base64.
    """

    media_type: str
    data: str

    @cached_property
    def content(self) -> bytes:
        """Its bytes."""
        return base64.b64decode(self.data)

    @property
    def data_uri(self) -> str:
        """Its media type and content as one URI."""
        return f"data:{self.media_type};base64,{self.data}"


Parts = list[str | Image]
"""Texts and images, in order."""


@dataclass(frozen=True)
class ExportRun:
    """One run to export.

    Attributes:
        trajectory: its row of ``TRAJECTORIES`` as Parquet holds it, redacted.
        verdict: columns of its verdict under the current policy; None where there is none.
        family_id: its task family; None where it has none.
        with_reasoning: whether reasoning of the model may be passed on.
        with_images: whether images may be passed on; redaction cannot look into them.
        losses: what the form cannot hold, counted as it is written.
    """

    trajectory: Row
    verdict: Row | None = None
    family_id: str | None = None
    with_reasoning: bool = False
    with_images: bool = False
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return str(self.trajectory["run_id"])

    @property
    def source(self) -> str:
        """Name of the source that it came from; rows of older versions, which lack it, are Letta's."""
        return str(self.trajectory["source"] or LETTA)

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

    def parts_of(self, message: Row) -> Parts:
        """Return the texts and images of a message, in order, for a form that holds images; the others are counted."""
        parts: Parts = []
        for part in message["content"] or ():
            if part["type"] == "text":
                parts.append(part["text"] or "")
            elif part["type"] == "image":
                parts += self._images(part["json"])
            elif part["type"] not in _ELSEWHERE and not part["reasoning"]:
                self.losses[f"content parts of type {part['type']}"] += 1
        return parts

    def returned_parts(self, one: Row) -> Parts:
        """Return what a tool returned as its text and images, for a form that holds images."""
        return [*([one["text"]] if one["text"] is not None else []), *self._images(one["json"])]

    def _images(self, text: str | None) -> list[str | Image]:
        found = list(images_in(text))
        if not self.with_images:
            self.losses["images, which are passed on only where asked"] += len(found)
            return []
        self.losses["images without their content"] += found.count(None)
        return [image for image in found if image is not None]

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
            return list(_tools(context["tools"]))
        except (ValueError, RecursionError):
            self.losses["tool definitions that are no JSON"] += 1
            return []


@lru_cache(maxsize=64)
def _tools(text: str) -> tuple[JsonObject, ...]:
    """Return the tools that JSON defines; remembered, since an agent has the same ones in all its runs."""
    tools = json.loads(text, parse_float=_exact_float, parse_constant=_refuse)
    json_bytes(tools)
    return tuple(filter(None, map(_tool_definition, tools if isinstance(tools, list) else ())))


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


def answers_to(messages: Sequence[Row]) -> list[list[Row | None]]:
    """Return, for each message of a run, what answers each of its calls: the first return of its id in a later message.

    Ids repeat in a run, where a provider counts calls anew in each answer. A call without an id has no answer that is
    known. The view ``tool_calls`` and ``reading.tool_calls`` go by the same rule.
    """
    later: dict[str, Row] = {}
    answers = []
    for message in reversed(messages):
        answers.append([later.get(call["id"]) for call in message["tool_calls"] or ()])
        for one in reversed(message["tool_returns"] or ()):
            if one["tool_call_id"] is not None:
                later[one["tool_call_id"]] = one
    return answers[::-1]


class LatestCalls(Generic[_Call]):
    """The last calls with each id while a run is read in order: to them belongs a return that comes next."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[_Call]] = {}

    def called(self, calls: Iterable[tuple[str | None, _Call]]) -> None:
        """Note the calls of a message, each with its id: they take the place of earlier ones with the same id."""
        of_message: dict[str, list[_Call]] = {}
        for call_id, call in calls:
            if call_id:
                of_message.setdefault(call_id, []).append(call)
        self._by_id |= of_message

    def returned(self, call_id: str | None) -> _Call | None:
        """Return the call of a return; where a message made several with one id, each once, then the last of them."""
        calls = self._by_id.get(call_id or "", [])
        return calls.pop(0) if len(calls) > 1 else next(iter(calls), None)


_MEDIA_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}")


def images_in(text: str | None) -> Iterator[Image | None]:
    """Yield the images in the verbatim JSON of a part or a return; None for one without its content or its type."""
    if text is None or '"image"' not in text:
        return
    try:
        open_values = [json.loads(text)]
    except (ValueError, RecursionError):
        # A number too long for Python, or nesting too deep: whatever image is there is not found.
        yield None
        return
    while open_values:
        value = open_values.pop()
        if isinstance(value, list):
            open_values.extend(reversed(value))
        elif isinstance(value, dict):
            if value.get("type") == "image":
                yield _image(value.get("source"))
            else:
                open_values.extend(reversed(value.values()))


def count_images(one: Row, losses: Counter[str]) -> int:
    """Count the images in what a tool returned, for a form that holds none, and return how many there are."""
    number = sum(1 for _ in images_in(one["json"]))
    losses["content parts of type image"] += number
    return number


def _image(source: Any) -> Image | None:
    data = source.get("data") if isinstance(source, dict) else None
    media_type = source.get("media_type") if isinstance(source, dict) else None
    if not isinstance(data, str) or not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        return None
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Image(media_type, data) if data else None


@dataclass(frozen=True)
class Arguments:
    """A tool call's arguments: ``value`` is the JSON object; None where they are none that JSON can give back."""

    text: str
    value: JsonObject | None


def parse_arguments(text: str | None) -> Arguments:
    """Return arguments as an object, where the object says the same as the text, to every reader.

    Not so for text that is no JSON object, a key that stands there twice, numbers that a float cannot hold, a half of
    a surrogate pair (no UTF-8 holds it), and objects in objects beyond the depth that readers take.
    """
    text = text or ""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_exact_float, parse_constant=_refuse)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return Arguments(text, None)
    brackets = text.count("{") + text.count("[")
    if not isinstance(value, dict) or (brackets > _MAX_DEPTH and _is_deeper(value, _MAX_DEPTH)):
        return Arguments(text, None)
    return Arguments(text, value)


_MAX_DEPTH = 60
"""A record holds arguments some levels down, and readers refuse what is nested deeper than about a hundred."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for each in layer
            if isinstance(each, list | dict)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return any(isinstance(each, list | dict) for each in layer)


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


def text_of(message: Row, losses: Counter[str], image_mark: str | None = None) -> str:
    """Return the texts of a message's parts, a line break between two; counts parts of other types.

    ``image_mark`` stands where an image was, in forms that have such a mark.
    """
    texts = []
    for part in message["content"] or ():
        if part["type"] == "text":
            texts.append(part["text"] or "")
        elif part["type"] not in _ELSEWHERE and not part["reasoning"]:
            losses[f"content parts of type {part['type']}"] += 1
            if part["type"] == "image" and image_mark is not None:
                texts.append(image_mark)
    return "\n".join(texts)


def has_only_text(message: Row) -> bool:
    """Whether a message of a tool, of an approval or of an unknown role holds text and nothing else."""
    if message["role"] in SPOKEN or message["role"] == "assistant":
        return False
    others = message["tool_calls"] or message["tool_returns"] or message["approvals"]
    return not others and any(part["text"] for part in message["content"] or ())


class FieldRedactor:
    """Redacts the texts of fields, but for ids and closed lists; ``schema.arrow.rows_of`` takes it.

    It remembers what it lately made of each text: runs of one agent have one system prompt and one list of tools, and
    what a tool returned stands in a run twice.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._redacted: dict[str, str] = {}
        self._characters = 0

    def __call__(self, field: str, texts: Sequence[str]) -> Sequence[str | None]:
        """Return a field's texts, redacted.

        Verbatim JSON is dropped but where it holds an image: no form takes anything else from it.
        """
        if field in _KEPT:
            return texts
        if field == "json":
            return [text if '"image"' in text else None for text in texts]
        return [self._redacted.get(text) or self._remembered(text) for text in texts]

    def redact_row(self, row: JsonObject) -> None:
        """Redact, in place, the texts and lists of texts of a row that nests nothing else."""
        for name, value in row.items():
            if isinstance(value, str):
                (row[name],) = self(name, [value])
            elif isinstance(value, list):
                row[name] = self(name, value)

    def _remembered(self, text: str) -> str:
        if self._characters > _REMEMBERED_CHARACTERS:
            self._redacted.clear()
            self._characters = 0
        redacted = self._redacted[text] = self._redact(text)
        self._characters += len(text)
        return redacted
