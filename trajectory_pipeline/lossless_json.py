"""JSON text to values and back, without loss, and escaping of what the sinks cannot hold."""

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn, TypeVar

import orjson

MAX_DEPTH = 200
"""Levels of arrays and objects that are parsed; what is nested deeper comes as ``Verbatim``.

A fixed number, so that the same text gives the same value however deep the caller's own stack is.
"""

_MAX_INT_DIGITS = 4000
"""Python refuses to parse longer integers (``sys.get_int_max_str_digits``); they come as decimals."""

_Container = TypeVar("_Container", list[Any], dict[str, Any])

_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]|NaN|-?Infinity', re.DOTALL)


class ConversionError(Exception):
    """A raw row cannot be converted: which row and column (``messages[message-…].content``), and what is wrong."""

    def __init__(self, json_path: str, problem: str) -> None:
        super().__init__(f"{json_path}: {problem}")
        self.json_path = json_path
        self.problem = problem


@dataclass(frozen=True)
class Verbatim:
    """A JSON value as its text: nested too deeply to be parsed, or a number that no type holds."""

    text: str


def parse_json(text: str | None, json_path: str, escapes: list[str]) -> Any:
    r"""Return the value of JSON text; None where there is no text.

    Integers keep all their digits, and decimals that a double cannot hold come as ``Decimal``; what is nested more
    than ``MAX_DEPTH`` levels deep comes as ``Verbatim``. Of duplicate keys the last counts, as in ``jsonb``; the raw
    rows hold them all. NUL and lone surrogates, which neither Arrow strings nor ``jsonb`` can hold, become the literal
    text ``\u0000`` or ``\ud83d``, and their JSON paths are added to ``escapes``.

    Raises:
        ConversionError: it is no JSON.
    """
    if text is None:
        return None
    try:
        shallow, deep = _fold(text) if text.count("[") + text.count("{") > MAX_DEPTH else (text, [])
        if not deep and (value := _quickly(text)) is not None:
            return value
        in_order = iter(deep)
        value = json.loads(
            shallow,
            parse_float=_decimal,
            parse_int=_integer,
            parse_constant=lambda name: next(in_order, None) or _reject_number(name),
        )
    except (ValueError, RecursionError) as error:
        raise ConversionError(json_path, f"is not valid JSON: {error}") from None
    return storable_value(value, json_path, escapes)


def parse_array_of_objects(text: str | None, json_path: str, escapes: list[str]) -> list[dict[str, Any]]:
    """Return the objects of a JSON array; SQL NULL and JSON null are an empty one.

    Raises:
        ConversionError: it is something else.
    """
    value = _expected(parse_json(text, json_path, escapes), list, json_path, "an array")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise ConversionError(f"{json_path}[{index}]", f"is {_kind(item)}, expected an object")
    return value


def parse_object(text: str | None, json_path: str, escapes: list[str]) -> dict[str, Any]:
    """Return a JSON object; SQL NULL and JSON null are an empty one.

    Raises:
        ConversionError: it is something else.
    """
    return _expected(parse_json(text, json_path, escapes), dict, json_path, "an object")


def parse_strings(text: str | None, json_path: str, escapes: list[str]) -> list[str]:
    """Return the strings of a JSON array; SQL NULL and JSON null are an empty one.

    Raises:
        ConversionError: it is something else.
    """
    value = _expected(parse_json(text, json_path, escapes), list, json_path, "an array of strings")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise ConversionError(f"{json_path}[{index}]", f"is {_kind(item)}, expected a string")
    return value


def _expected(value: Any, kind: type[_Container], json_path: str, expected: str) -> _Container:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConversionError(json_path, f"is {_kind(value)}, expected {expected}")
    return value


def json_or_none(text: str) -> Any:
    """Return the value of JSON text as Python reads it, where a loss does not matter; None where it does not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def write_json(value: Any) -> str:
    """Return a value of ``parse_json`` as JSON text, compact, every number with all its digits."""
    try:
        return orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATACLASS).decode()
    except TypeError:  # deeper than orjson writes, a number of more than 64 bits, or verbatim
        return _write(value)


def exact_numbers(text: str | bytes) -> Any:
    """Return the value of JSON text, every number with all its digits; unlike ``parse_json``, nothing is escaped.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_float=_decimal, parse_int=_integer)


def as_text(value: Any) -> str:
    """Return a string as it is, and any other value as JSON text."""
    return value if isinstance(value, str) else write_json(value)


def object_or_empty(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_or_empty(value: Any) -> list[Any]:
    """Return the value if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def canonical_json(value: Any) -> str:
    """Return JSON text that is the same for equal values: keys sorted, nothing but ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_tagged)


def _tagged(number: Decimal | Verbatim) -> dict[str, str]:
    # No value of ``parse_json`` has a NUL in a key, so nothing else is written like this.
    return {"\0": number.text if isinstance(number, Verbatim) else str(number)}


def _quickly(text: str) -> Any:
    """Return the value, if writing it gives the very same text: no duplicate key, no rounded number; else None."""
    if "\\u0000" in text:
        return None
    try:
        value = orjson.loads(text)
        return value if json.dumps(value) == text or orjson.dumps(value).decode() == text else None
    except (ValueError, TypeError):
        return None


@dataclass
class _Level:
    """A container that is being read, ``MAX_DEPTH`` levels below the one before it.

    It begins at ``start``; ``pieces`` hold its text up to ``read``, with ``NaN`` in the place of containers below.
    """

    start: int
    read: int
    pieces: list[str] = field(default_factory=list)


def _fold(text: str) -> tuple[str, list[Verbatim]]:
    """Return JSON text with ``NaN`` in the place of what is nested too deeply, and that, in order.

    Raises:
        ValueError: what is nested too deeply is no JSON, or a container is never closed.
    """
    levels, deep, depth = [_Level(0, 0)], [], 0
    for token in _STRUCTURE.finditer(text):
        first = token[0][0]
        if first in "[{":
            if depth and depth % MAX_DEPTH == 0:
                levels.append(_Level(token.start(), token.start()))
            depth += 1
        elif first in "]}":
            depth -= 1
            if depth and depth % MAX_DEPTH == 0 and len(levels) > 1:
                level, end = levels.pop(), token.end()
                level.pieces.append(text[level.read : end])
                json.loads("".join(level.pieces), parse_int=str, parse_float=str)  # is it JSON at all?
                outer = levels[-1]
                outer.pieces.append(f"{text[outer.read : level.start]}NaN")
                outer.read = end
                if len(levels) == 1:
                    deep.append(Verbatim(text[level.start : end]))
        elif first != '"':
            _reject_number(token[0])
    if len(levels) > 1:
        raise ValueError("an array or object is never closed")
    levels[0].pieces.append(text[levels[0].read :])
    return "".join(levels[0].pieces), deep


def _reject_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ",".join([f"{json.dumps(key, ensure_ascii=False)}:{_write(item)}" for key, item in value.items()])
            + "}"
        )
    if isinstance(value, list):
        return f"[{','.join([_write(item) for item in value])}]"
    if isinstance(value, Decimal):
        return str(value)
    return value.text if isinstance(value, Verbatim) else json.dumps(value, ensure_ascii=False)


def _decimal(text: str) -> float | Decimal | Verbatim:
    try:
        exact = Decimal(text)
    except InvalidOperation:  # an exponent beyond 10**18
        return Verbatim(text)
    number = float(text)
    return number if abs(number) != float("inf") and Decimal(repr(number)) == exact else exact


def _integer(text: str) -> int | Decimal:
    return int(text) if len(text) <= _MAX_INT_DIGITS else Decimal(text)


def storable_value(value: Any, json_path: str = "", escapes: list[str] | None = None) -> Any:
    """Return a JSON value with ``storable_text`` applied to its strings and keys; add changed paths to ``escapes``."""
    if isinstance(value, str):
        safe = storable_text(value)
        if safe is not value and escapes is not None:
            escapes.append(json_path)
        return safe
    if isinstance(value, list):
        return [storable_value(item, f"{json_path}[{index}]", escapes) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            storable_value(key, f"{json_path} (key)", escapes): storable_value(
                item, f"{json_path}.{storable_text(key)}", escapes
            )
            for key, item in value.items()
        }
    return value


def storable_text(text: str) -> str:
    """Return text with NUL and lone surrogates as visible escapes; the same object where there are none."""
    if "\0" not in text:
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
    return "".join(f"\\u{ord(c):04x}" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
