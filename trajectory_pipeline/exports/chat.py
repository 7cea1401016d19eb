"""Chats as trainers read them: OpenAI's form, and TRL's with and without preferences.

Sources: OpenAI's fine-tuning guide (one chat a line, arguments as text), and TRL's dataset formats (arguments as an
object, ``prompt`` with ``completion`` and ``label``, or with ``chosen`` and ``rejected``).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trajectory_pipeline.exports.source import (
    SPOKEN,
    ExportRun,
    JsonObject,
    Row,
    count_images,
    has_only_text,
    images_in,
    parse_arguments,
    text_of,
)

ArgumentsAs = Literal["text", "object"]
Chat = list[JsonObject]
LABELS = {"success": True, "failure": False}


def chat_of(run: ExportRun, arguments: ArgumentsAs, *, with_images: bool = False) -> Chat:
    """Return the messages of a run as its model saw and wrote them; of images, those in messages to the model.

    A return whose call is not in the chat, and a person's decision on a call, have no place there: they are counted.
    Arguments that are no JSON object are text in OpenAI's form; as an object they are ``{"arguments_text": …}``.
    """
    chat: Chat = []
    if run.system_prompt is not None:
        chat.append({"role": "system", "content": run.system_prompt})
    called: set[str] = set()
    for _, messages in run.turns():
        for message in messages:
            chat += _messages(run, message, called, arguments, with_images)
    return chat


def _messages(run: ExportRun, message: Row, called: set[str], arguments: ArgumentsAs, with_images: bool) -> Chat:
    calls = message["tool_calls"] or []
    said: Chat = []
    if message["role"] == "assistant" or calls:
        text = text_of(message, run.losses)
        one: JsonObject = {"role": "assistant", "content": text or None if calls else text}
        reasoning = run.reasoning_of(message)
        if reasoning is not None:
            one["reasoning_content"] = reasoning
        if calls:
            one["tool_calls"] = [_call(run, call, arguments) for call in calls]
            called |= {call["id"] for call in calls if call["id"]}
        said.append(one)
    elif message["role"] in SPOKEN:
        role = "system" if message["role"] == "system" else "user"
        said.append({"role": role, "content": _content(run, message) if with_images else text_of(message, run.losses)})
    elif has_only_text(message):
        run.losses[f"texts of role {message['role']}"] += 1
    run.losses["decisions on approvals"] += sum(one["approve"] is not None for one in message["approvals"] or ())
    for one in message["tool_returns"] or ():
        count_images(one, run.losses)
        if one["tool_call_id"] in called:
            said.append({"role": "tool", "tool_call_id": one["tool_call_id"], "content": one["text"] or ""})
        else:
            run.losses["tool returns without their call"] += 1
    return said


def _content(run: ExportRun, message: Row) -> str | list[JsonObject]:
    """Return texts as one; with an image among them, each part for itself."""
    parts = run.parts_of(message)
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return "\n".join(texts)
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": part.data_uri}}
        for part in parts
    ]


def _call(run: ExportRun, call: Row, arguments: ArgumentsAs) -> JsonObject:
    parsed = parse_arguments(call["arguments"])
    value: str | JsonObject = parsed.text
    if arguments == "object":
        value = {"arguments_text": parsed.text} if parsed.value is None else parsed.value
    if parsed.value is None:
        run.losses["arguments that are no JSON object"] += 1
    function = {"name": call["name"] or "unknown", "arguments": value}
    return {"id": call["id"] or "", "type": "function", "function": function}


def openai_record(run: ExportRun) -> JsonObject | None:
    """Return a line of OpenAI's fine-tuning file; None where the agent said nothing."""
    return _with_tools(run, {"messages": chat_of(run, "text", with_images=True)}) if _agent_spoke(run) else None


def sft_record(run: ExportRun) -> JsonObject | None:
    """Return a row of a TRL dataset for supervised fine-tuning; None where the agent said nothing."""
    return _with_tools(run, {"messages": chat_of(run, "object")}) if _agent_spoke(run) else None


def kto_record(run: ExportRun) -> JsonObject | None:
    """Return a row of a TRL dataset with one label a run: whether it is a success.

    None where the agent said nothing, and for a partial success or an unknown outcome.
    """
    if run.outcome not in LABELS or not _agent_spoke(run):
        return None
    chat = chat_of(run, "object")
    first = _first_answer(chat)
    return _with_tools(run, {"prompt": chat[:first], "completion": chat[first:], "label": LABELS[run.outcome]})


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

    None where that is no decision of the agent. Both were asked the same, and did the same, up to there.
    """
    chosen, rejected = success["messages"], failure["messages"]
    same = _common(chosen, rejected)
    if same in (len(chosen), len(rejected)):
        return None
    if chosen[same]["role"] != "assistant" or rejected[same]["role"] != "assistant":
        return None
    parted = {"message": same, "chosen": _decision(chosen[same]), "rejected": _decision(rejected[same])}
    record = {"prompt": chosen[:same], "chosen": chosen[same:], "rejected": rejected[same:], "parted_at": parted}
    return Preference({**record, "tools": success["tools"]} if "tools" in success else record, same)


def _decision(message: JsonObject) -> str:
    """Return in a few words what an agent decided in a message."""
    names = ", ".join(call["function"]["name"] for call in message.get("tool_calls") or ())
    return f"calls {names}" if names else "answers"


def said_in(run: ExportRun) -> Iterator[str]:
    """Yield what the messages of a run say, each after what kind of text it is; ids are no part of it."""
    quiet = replace(run, losses=Counter())
    for _, messages in quiet.turns():
        for message in messages:
            yield f"{message['role']}: {text_of(message, quiet.losses)}"
            for call in message["tool_calls"] or ():
                yield f"call {call['name']}: {call['arguments']}"
            for one in message["tool_returns"] or ():
                yield f"return: {one['text']}"


def _shown_in(run: ExportRun) -> Iterator[str]:
    """Yield the images of a run, each after the number of its message; one without its content as Letta stored it."""
    messages = (message for _, messages in replace(run, losses=Counter()).turns() for message in messages)
    for number, message in enumerate(messages):
        for part in (*(message["content"] or ()), *(message["tool_returns"] or ())):
            for image in images_in(part.get("json")):
                yield f"image {number}: {part['json'] if image is None else image.data_uri}"


def text_digest(run: ExportRun) -> str:
    """Return the SHA-256 (hex) of what a run was told and of what its messages say: equal for equal texts.

    Images are part of it where they are passed on: without them, runs that differ in nothing else give equal records.
    """
    digest = hashlib.sha256()
    for text in (f"told: {run.system_prompt}", *said_in(run), *(_shown_in(run) if run.with_images else ())):
        encoded = text.encode(errors="surrogatepass")
        digest.update(b"%d " % len(encoded) + encoded)
    return digest.hexdigest()


def pair_side(run: ExportRun) -> tuple[str, bool, JsonObject] | None:
    """Return one side of a pair: the digest of what it was asked, whether it is a success, and its record.

    What it was asked is all before its agent first answered. None for a run that can be on neither side.
    """
    record = sft_record(run) if run.outcome in LABELS else None
    if record is None:
        return None
    chat = record["messages"]
    asked = json.dumps([[one["role"], one["content"]] for one in chat[: _first_answer(chat)]])
    return hashlib.sha256(asked.encode()).hexdigest(), LABELS[run.outcome], record


def _common(first: Sequence[JsonObject], second: Sequence[JsonObject]) -> int:
    """Return how many messages are the same; ids of calls differ from run to run."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if _without_ids(one) != _without_ids(other):
            return place
    return min(len(first), len(second))


def _without_ids(message: JsonObject) -> JsonObject:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return {**{name: value for name, value in message.items() if name != "tool_call_id"}, "tool_calls": calls}


def _first_answer(chat: Sequence[JsonObject]) -> int:
    return next((place for place, one in enumerate(chat) if one["role"] == "assistant"), len(chat))


def _agent_spoke(run: ExportRun) -> bool:
    return any(
        message["role"] == "assistant" or message["tool_calls"]
        for turn in run.trajectory["turns"] or ()
        for message in turn["messages"] or ()
        if not message["is_deleted"]
    )


def _with_tools(run: ExportRun, record: JsonObject) -> JsonObject:
    tools = run.tool_definitions
    return {**record, "tools": tools} if tools else record
