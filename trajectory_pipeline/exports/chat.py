"""Chats as trainers read them: OpenAI's form, and TRL's for supervised fine-tuning and for KTO.

Sources: OpenAI's fine-tuning guide (one chat a line, arguments as text), and TRL's dataset formats (arguments as an
object, ``prompt`` with ``completion`` and ``label``, or with ``chosen`` and ``rejected``).
"""

from collections.abc import Sequence
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
    chat = _askable(_with_returns_next_to_calls(run, chat_of(run, "text", with_images=True)))
    if isinstance(chat, NoPlace):
        return chat
    end = max(place for place, one in enumerate(chat) if one["role"] == "assistant") + 1
    run.losses["messages after the agent's last"] += len(chat) - end
    chat = chat[:end]
    unknown = _undefined_tools(run, chat)
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
    first = first_answer(chat)
    return _with_tools(run, {"prompt": chat[:first], "completion": chat[first:], "label": LABELS[run.outcome]})


def first_answer(chat: Sequence[JsonObject]) -> int:
    """Return the place of the agent's first message; the length of the chat where there is none."""
    return next((place for place, one in enumerate(chat) if one["role"] == "assistant"), len(chat))


def _askable(chat: Chat) -> Chat | NoPlace:
    """Return a chat in which the agent answers a user, or why it is none."""
    first = first_answer(chat)
    if first == len(chat):
        return NO_ANSWER
    return chat if any(one["role"] == "user" for one in chat[:first]) else NO_QUESTION


def _with_tools(run: ExportRun, record: JsonObject) -> JsonObject:
    _undefined_tools(run, [*record.get("prompt", ()), *record.get("completion", ()), *record.get("messages", ())])
    tools = run.tool_definitions
    return {**record, "tools": tools} if tools else record


def _undefined_tools(run: ExportRun, chat: Chat) -> list[str]:
    """Return the tools that are called and whose definition is not known, and count them."""
    defined = {tool["function"]["name"] for tool in run.tool_definitions}
    called = {call["function"]["name"] for one in chat for call in one.get("tool_calls") or ()}
    unknown = sorted(called - defined)
    run.losses["definitions of tools that were called"] += len(unknown)
    return unknown
