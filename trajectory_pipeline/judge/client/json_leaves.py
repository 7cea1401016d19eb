"""The scalar values of a JSON document of unknown shape, each with its key."""

import json
from collections.abc import Iterator
from typing import Any

_MAX_DEPTH = 12

Leaf = tuple[str, str | int | float]


def leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[Leaf]:
    """Yield each text and number with the key that it stands under, in order; JSON inside a text is read as well.

    A list's items stand under the list's key.
    """
    if depth > _MAX_DEPTH or value is None or isinstance(value, bool):
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, str(name), depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, key, depth + 1)
    elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            yield key, value
        else:
            yield from leaves(inner, key, depth + 1)
    elif isinstance(value, str | int | float):
        yield key, value
