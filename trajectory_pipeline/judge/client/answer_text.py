"""Finds the answer in a completion, wherever its provider puts it: the text, or why there is none."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.schema.enums import ResponseFormat

_THOUGHT = re.compile(r"think|reason|thought")
"""Types of parts in which a model thinks: no part of its answer."""
_TEXTS = ("text", "output_text", "content", "parts", "value", "generated_text", "response", "output", "json", "input")
_WRAPPERS = ("result", "data", "body", "output")
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "max_completion_tokens", "model_length"})
_WITHHELD = frozenset(
    {"content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii", "sensitive", "blocked"}
)
_FAILED = frozenset(
    {"error", "abort", "cancelled", "network_error", "insufficient_system_resource", "malformed_function_call"}
)


@dataclass(frozen=True)
class FoundAnswer:
    """What a completion holds; ``finish_reason`` as the provider words it."""

    text: str | None
    refusal: str | None
    finish_reason: str | None

    @property
    def is_cut_off(self) -> bool:
        """Whether it ends where its tokens were used up."""
        return self._reason in _CUT_OFF

    @property
    def is_withheld(self) -> bool:
        """Whether a filter of the provider stopped it."""
        return self._reason in _WITHHELD

    @property
    def is_failed(self) -> bool:
        """Whether the server broke off while it answered."""
        return self._reason in _FAILED

    @property
    def _reason(self) -> str:
        return (self.finish_reason or "").lower().replace("-", "_")


def find_answer(completion: Mapping[str, Any], response_format: str) -> FoundAnswer | None:
    """Return what the first choice with an answer holds; None where the completion has no choice with a message."""
    found = [_read_choice(choice, response_format) for choice in _choices(completion)]
    return next((one for one in found if one.text or one.refusal), found[0] if found else None)


def is_completion(body: Mapping[str, Any]) -> bool:
    """Whether a response has a place for answers, empty or not."""
    return isinstance(body.get("choices"), list) or any(True for _ in _choices(body))


def unwrapped(body: dict[str, Any]) -> dict[str, Any]:
    """Return a completion that a gateway has put into an object of its own, with what stands beside it."""
    if is_completion({name: value for name, value in body.items() if name not in _WRAPPERS}):
        return body
    for name in _WRAPPERS:
        inner = body.get(name)
        if isinstance(inner, str):
            try:
                inner = json.loads(inner)
            except (ValueError, RecursionError):
                continue
        if isinstance(inner, dict) and (
            isinstance(inner.get("choices"), list)
            or isinstance(inner.get("message"), dict)
            or isinstance(inner.get("response"), str | dict)
        ):
            return {**{key: value for key, value in body.items() if key != name}, **inner}
    return body


def _choices(completion: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for name in ("choices", "candidates"):
        choices = completion.get(name)
        if isinstance(choices, dict):
            choices = [choices]
        if isinstance(choices, list):
            yield from (one for one in choices if isinstance(one, dict) and (_holds_message(one) or _reason(one)))
            return
    if _holds_message(completion):
        yield completion


def _holds_message(choice: Mapping[str, Any]) -> bool:
    if isinstance(choice.get("message"), dict) or isinstance(choice.get("delta"), dict):
        return True
    return any(isinstance(choice.get(name), str | list | dict) for name in _TEXTS)


def _read_choice(choice: Mapping[str, Any], response_format: str) -> FoundAnswer:
    held = next((choice[name] for name in ("message", "delta") if isinstance(choice.get(name), dict)), choice)
    calls = _calls_text(held)
    texts = [_text(held.get(name)) for name in ("content", "parsed")]
    texts += [_text(choice.get(name)) for name in _TEXTS] if held is choice else [_text(choice.get("text"))]
    ordered = [calls, *texts] if response_format == ResponseFormat.TOOL_CALL else [texts[0], calls, *texts[1:]]
    # A text of white space alone is the answer only where there is no other.
    text = next((one for one in ordered if one.strip()), next(filter(None, ordered), None))
    reason = _reason(choice)
    refusal = _refusal(held) or ("the model refused" if (reason or "").lower() == "refusal" else "")
    return FoundAnswer(text, refusal or None, reason)


def _reason(choice: Mapping[str, Any]) -> str | None:
    names = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
    details = choice.get("incomplete_details")
    reasons = [choice.get(name) for name in names] + [details.get("reason") if isinstance(details, dict) else None]
    return next((one for one in reasons if isinstance(one, str)), None)


def _calls_text(message: Mapping[str, Any]) -> str:
    """Return the arguments of the one tool call; of several, all of them as they are, which is no valid answer."""
    calls = message.get("tool_calls") or []
    if isinstance(calls, dict):
        calls = [calls]
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [{"function": message["function_call"]}]
    if not isinstance(calls, list) or not calls:
        return ""
    call = calls[0] if len(calls) == 1 and isinstance(calls[0], dict) else {}
    function = next((one for one in (call.get("function"), call.get("custom"), call) if isinstance(one, dict)), {})
    arguments = next((function[name] for name in ("arguments", "input", "parameters") if name in function), None)
    if isinstance(arguments, str):
        return _decoded_once(arguments)
    return json.dumps(arguments if isinstance(arguments, dict) else calls)


def _decoded_once(arguments: str) -> str:
    """Return arguments that are JSON in a JSON text without the outer one."""
    try:
        inner = json.loads(arguments) if arguments.lstrip().startswith('"') else None
    except (ValueError, RecursionError):
        return arguments
    return inner if isinstance(inner, str) else arguments


def _refusal(message: Mapping[str, Any]) -> str:
    output = message.get("output")
    texts = [message.get("refusal")]
    for held in [message, *(output if isinstance(output, list) else [])]:
        content = held.get("content") if isinstance(held, dict) else None
        if isinstance(content, list):
            texts += [part.get("refusal") for part in content if isinstance(part, dict)]
    return "".join(one for one in texts if isinstance(one, str))


def _text(value: Any) -> str:
    """Return the text of a content: a string, parts in order without the thoughts, or an object that is the answer."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if not isinstance(value, dict):
        return ""
    kind = str(value.get("type") or "")
    if _THOUGHT.search(kind) or value.get("thought") is True:
        return ""
    inner = next((value[name] for name in _TEXTS if value.get(name) is not None), None)
    if inner is None:
        return "" if kind else json.dumps(value)
    return json.dumps(inner) if isinstance(inner, dict) and kind not in ("text", "output_text") else _text(inner)
