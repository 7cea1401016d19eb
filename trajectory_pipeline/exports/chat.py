"""Chats as trainers read them: OpenAI's form, and TRL's with and without preferences.

Sources: OpenAI's fine-tuning guide (one chat a line, arguments as text), and TRL's dataset formats (arguments as an
object, ``prompt`` with ``completion`` and ``label``, or with ``chosen`` and ``rejected``).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Literal

from trajectory_pipeline.exports.source import (
    SPOKEN,
    ExportRun,
    JsonObject,
    NoPlace,
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
NO_ANSWER = NoPlace("the agent said nothing")
NO_QUESTION = NoPlace("no message of a user comes before the agent's first answer")
"""Such as a run that goes on after a person approved a call: what was asked is in the run before it."""
NO_LABEL = NoPlace("no success and no failure")
_MEMORY_METADATA = re.compile(r"<memory_metadata>.*?</memory_metadata>", re.DOTALL)
"""What Letta (0.16.8) writes at the end of a system prompt: the agent's id, when the prompt was last compiled, and how
many messages there were before. It differs between any two runs."""
_RETURN_TIME = re.compile(r'\A(\{\s*"status": .*),\s*"time": "[^"]*"\s*\}\s*\Z', re.DOTALL)
"""What a tool returned, as Letta (0.16.8) wraps it: with the time at which it did."""


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


def openai_record(run: ExportRun) -> JsonObject | NoPlace:
    """Return a line of OpenAI's fine-tuning file, or why the run has no place in it.

    OpenAI takes no chat that goes on after the agent's last message, none in which a message follows a call before all
    of its returns, and wants a definition of every tool that is called: for one that is not known, its name alone.
    """
    chat = _askable(chat_of(run, "text", with_images=True))
    if isinstance(chat, NoPlace):
        return chat
    chat = _with_returns_next_to_calls(run, chat)
    end = max(place for place, one in enumerate(chat) if one["role"] == "assistant") + 1
    run.losses["messages after the agent's last"] += len(chat) - end
    chat = chat[:end]
    defined = {tool["function"]["name"] for tool in run.tool_definitions}
    called = {call["function"]["name"] for one in chat for call in one.get("tool_calls") or ()}
    unknown = sorted(called - defined)
    run.losses["definitions of tools that were called"] += len(unknown)
    named: list[JsonObject] = [{"type": "function", "function": {"name": name}} for name in unknown]
    tools = [*run.tool_definitions, *named]
    return {"messages": chat, "tools": tools} if tools else {"messages": chat}


def _with_returns_next_to_calls(run: ExportRun, chat: Chat) -> Chat:
    """Return a chat without calls whose returns do not come next, except the last message's, and without such returns.

    Both are counted. A message that has neither text nor calls then is left out.
    """
    kept: Chat = []
    for place, one in enumerate(chat):
        if one["role"] == "tool":
            continue
        calls = one.get("tool_calls")
        if not calls:
            kept.append(one)
            continue
        returns = list(takewhile(lambda other: other["role"] == "tool", chat[place + 1 :]))
        is_last = place + 1 + len(returns) == len(chat) and not returns
        returned = {each["tool_call_id"] for each in returns}
        answered = calls if is_last else [call for call in calls if call["id"] in returned]
        run.losses["calls without a return"] += len(calls) - len(answered)
        others = {name: value for name, value in one.items() if name != "tool_calls"}
        if answered:
            kept.append({**one, "tool_calls": answered})
        elif one["content"]:
            kept.append(others)
        own = {call["id"] for call in answered}
        kept += [each for each in returns if each["tool_call_id"] in own]
    missing = sum(one["role"] == "tool" for one in chat) - sum(one["role"] == "tool" for one in kept)
    run.losses["tool returns that do not follow their call"] += missing
    return kept


def sft_record(run: ExportRun) -> JsonObject | NoPlace:
    """Return a row of a TRL dataset for supervised fine-tuning, or why the run has no place in it."""
    chat = _askable(chat_of(run, "object"))
    return chat if isinstance(chat, NoPlace) else _with_tools(run, {"messages": chat})


def kto_record(run: ExportRun) -> JsonObject | NoPlace:
    """Return a row of a TRL dataset with one label a run: whether it is a success; or why the run has no place in it.

    A partial success and an unknown outcome have none.
    """
    if run.outcome not in LABELS:
        return NO_LABEL
    chat = _askable(chat_of(run, "object"))
    if isinstance(chat, NoPlace):
        return chat
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
    asked = [[one["role"], one["content"]] for one in chat[: _first_answer(chat)]]
    if asked[0][0] == "system":
        asked[0][1] = "" if across_agents else _MEMORY_METADATA.sub("", asked[0][1])
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest(), LABELS[run.outcome], record


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


def _first_answer(chat: Sequence[JsonObject]) -> int:
    return next((place for place, one in enumerate(chat) if one["role"] == "assistant"), len(chat))


def _askable(chat: Chat) -> Chat | NoPlace:
    """Return a chat in which the agent answers a user, or why it is none."""
    first = _first_answer(chat)
    if first == len(chat):
        return NO_ANSWER
    return chat if any(one["role"] == "user" for one in chat[:first]) else NO_QUESTION


def _with_tools(run: ExportRun, record: JsonObject) -> JsonObject:
    tools = run.tool_definitions
    return {**record, "tools": tools} if tools else record
