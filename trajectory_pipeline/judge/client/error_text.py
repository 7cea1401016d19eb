"""The words of an error, from a body of any shape: objects, lists, JSON inside a text, HTML, plain text."""

import html
import json
import re
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.judge.client.json_leaves import Leaf, leaves

_MAX_CHARACTERS = 20_000
_TAG = re.compile(r"<[^<>]*>")
_WORDS = (
    "",
    "message",
    "msg",
    "detail",
    "details",
    "error",
    "errors",
    "description",
    "error_description",
    "title",
    "raw",
)
"""Keys of words: what stands under another one is shown with its key."""
_GENERATED = ("failed_generation", "failed_output")


@dataclass(frozen=True)
class ErrorText:
    """What an error says.

    Attributes:
        words: for a person.
        fields: of its body, in order; empty where that is no JSON.
        generated: a text of the model that the provider itself could not use.
    """

    words: str
    fields: tuple[Leaf, ...] = ()
    generated: str | None = None


def read_error(body: bytes) -> ErrorText:
    """Return the words of an error's body."""
    text = body.decode("utf-8-sig", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        plain = _TAG.sub(" ", text[:_MAX_CHARACTERS]) if "<" in text else text[:_MAX_CHARACTERS]
        return ErrorText(" ".join(html.unescape(plain).split()))
    return describe_error(value)


def describe_error(value: Any) -> ErrorText:
    """Return the words of an error that is read from JSON."""
    generated = next((_find(value, name) for name in _GENERATED if _find(value, name)), None)
    fields = tuple(leaf for leaf in leaves(value) if leaf[0] not in _GENERATED)
    phrases = (str(item) if name in _WORDS and isinstance(item, str) else f"{name}: {item}" for name, item in fields)
    words = "; ".join(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))
    return ErrorText(words[:_MAX_CHARACTERS], fields, generated)


def _find(value: Any, name: str) -> str | None:
    """Return the text under a name, also in an object inside: as it is, though it may be JSON itself."""
    if not isinstance(value, dict):
        return next((found for one in value if (found := _find(one, name))), None) if isinstance(value, list) else None
    if name in value:
        return value[name] if isinstance(value[name], str) else json.dumps(value[name])
    return next((found for one in value.values() if (found := _find(one, name))), None)
