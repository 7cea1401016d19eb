"""Texts for agents: bounded, and marked as data that others wrote, so that no text of a run reads as an instruction."""

import re
import secrets
from collections.abc import Iterable
from typing import Any

import orjson

from trajectory_pipeline.serve.service import DATA_NOTICE

MOST_ITEMS = 50
"""Of a list within an answer."""
_IDS = ("run_id", "continues_run_id")
"""What a client sends back to read a run: half of it names none."""
# Bidirectional controls, what has no width, and the tags and selectors that spell out text which nobody sees.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff0-\ufffb\U000e0000-\U000e0fff]"
)


def bounded(value: Any, longest: int) -> Any:
    """Return a JSON value whose texts and lists are cut where they are too long, each with what is left out.

    Redact before: half of a secret is not recognized.
    """
    if isinstance(value, str):
        return shortened(value, longest)
    if isinstance(value, dict):
        return {key: item if key in _IDS else bounded(item, longest) for key, item in value.items()}
    if isinstance(value, list):
        kept = [bounded(item, longest) for item in value[:MOST_ITEMS]]
        return [*kept, f"[{len(value) - MOST_ITEMS} more items]"] if len(value) > MOST_ITEMS else kept
    return value


def shortened(text: str, longest: int) -> str:
    """Return a text, or its beginning with the number of characters that are left out."""
    return text if len(text) <= longest else f"{text[:longest]} [{len(text) - longest} more characters]"


def marked(value: Any, notes: Iterable[str] = ()) -> str:
    """Return a JSON value as text between two lines that no text of a run can hold, after a notice that it is data.

    Characters that cannot be seen are escaped, as JSON allows it.

    Args:
        value: what was found; texts in it are JSON strings, so that none can pass for a field.
        notes: our own sentences, which stand outside of the data: where it continues, what is missing.
    """
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    name = f"data-{secrets.token_hex(8)}"
    return "\n".join(
        [
            f"{DATA_NOTICE} They are the JSON between <{name}> and </{name}>.",
            f"<{name}>",
            _INVISIBLE.sub(_escape, text),
            f"</{name}>",
            *notes,
        ]
    )


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
