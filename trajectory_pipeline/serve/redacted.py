"""Redaction of what is served: every text of a value, and values whose name says that they are secret."""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Struct, Type
from trajectory_pipeline.schema.verdicts import VERDICTS


def _names(columns: tuple[Column, ...]) -> Iterator[str]:
    for column in columns:
        yield column.name
        yield from _names(_fields(column.type))


def _fields(kind: Type) -> tuple[Column, ...]:
    match kind:
        case Struct(fields):
            return fields
        case ListOf(item):
            return _fields(item)
        case _:
            return ()


_DECLARED = frozenset(_names((*TRAJECTORIES.columns, *VERDICTS.columns)))
_REMEMBERED, _LONGEST_REMEMBERED = 8_192, 512
"""Texts whose redaction is remembered, and characters of such a text: some 4 MB in all."""
_ID_OR_TIME = re.compile(
    r"[a-z_]{2,20}-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)


def remembering(redact: Callable[[str], str]) -> Callable[[str], str]:
    """Return a redaction that remembers short texts, and leaves ids (``message-…``) and times as they are.

    Most texts of a document are names of fields, ids, times, and words of closed lists: it takes an eighth of the time.
    """
    of_short = lru_cache(_REMEMBERED)(redact)

    def remembered(text: str) -> str:
        if len(text) > _LONGEST_REMEMBERED:
            return redact(text)
        return text if _ID_OR_TIME.fullmatch(text) else of_short(text)

    return remembered


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """Return a JSON value with every text redacted.

    A text in a field that the schema does not declare is also looked at with its name, as in ``password=…``.
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redacted(item, redact) for item in value]
    if isinstance(value, dict):
        return {redact(key): _field(key, item, redact) for key, item in value.items()}
    return value


def _field(name: str, value: Any, redact: Callable[[str], str]) -> Any:
    if not isinstance(value, str) or name in _DECLARED:
        return redacted(value, redact)
    plain = redact(value)
    if plain != value:
        return plain
    named = redact(f"{name}={value}")
    return value if named == f"{name}={value}" else named.removeprefix(f"{name}=")
