"""JSON as a test reads it: exact numbers, naive escapes, and where two values differ."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any


def read(text: str | None) -> Any:
    """A JSON value; of duplicate keys the last; every number a decimal."""
    return None if text is None else json.loads(text, parse_int=Decimal, parse_float=Decimal)


def escaped(value: Any, path: str, paths: list[str]) -> Any:
    """The value with NUL and lone surrogates as visible text; adds the path of every string in which there was one."""
    if isinstance(value, list):
        return [escaped(item, f"{path}[{number}]", paths) for number, item in enumerate(value)]
    if isinstance(value, dict):
        made = {}
        for key, item in value.items():
            name = escaped(key, f"{path} (key)", paths)
            made[name] = escaped(item, f"{path}.{name}", paths)
        return made
    if not isinstance(value, str):
        return value
    text = "".join(f"\\u{ord(c):04x}" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in value)
    if text != value:
        paths.append(path)
    return text


def equal(one: Any, other: Any) -> bool:
    return not list(differences(one, other))


def differences(one: Any, other: Any, path: str = "document") -> Iterator[str]:
    """Where two JSON values differ; numbers by value, keys in any order."""
    if _is_number(one) and _is_number(other):
        if _exact(one) != _exact(other):
            yield f"{path}: {one!r} is not {other!r}"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other:
                yield f"{path}.{key}: only in one of them"
            else:
                yield from differences(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{path}: {len(one)} items are not {len(other)}"
        for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{path}[{number}]")
    elif type(one) is not type(other) or one != other:
        yield f"{path}: {one!r} is not {other!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _exact(number: Any) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
