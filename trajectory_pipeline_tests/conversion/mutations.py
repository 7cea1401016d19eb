"""Real and made runs in which some values are replaced: at any position in any JSON column, and in any other column."""

import copy
import functools
import json
import random
from collections.abc import Iterator
from typing import Any

from trajectory_pipeline.schema.raw import AGENTS, MESSAGES, RUN_METRICS, RUNS, STEP_METRICS, STEPS, SourceTable
from trajectory_pipeline.schema.types import Scalar
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.raw_runs import NOON, STOP_REASONS, Raw
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs

CANARY = "xylophone-canary"
_HERE = "\x1f here \x1f"
_IMAGE = '{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}'
_TEXT = f'{{"type": "text", "text": "{CANARY}"}}'

JSON_TEXTS = [
    *("null", "true", "false", "0", "-0", "-1", "1.10", "1e5", "-0.0"),
    *(
        "1e-999999",
        "1e400",
        "-1.5e300",
        "1e5000",
        "1e99999999999999999999",
        "9" * 4300,
        "9" * 4301,
        "-" + "9" * 140_000,
    ),
    *(str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64)),
    *('""', '"\\u0000"', '"\\ud83d"', '"\\ude00\\ud83d"', f'"{CANARY}"', '"\\u001b[31m"', '"</tool>"'),
    *("[]", "{}", "[[]]", "[null]", "[[[[1]]]]", '{"a": 1, "a": 2}', '{"\\u0000": "\\ud83d"}', '["a", 5, null]'),
    *(_IMAGE, f"[{_IMAGE}]", f"[{_TEXT}, {_IMAGE}, {_TEXT}]", f'{{"type": {{"a": 1}}, "text": "{CANARY}"}}'),
    *(f'{{"type": "text", "text": {_TEXT}}}', f'{{"type": [], "tool_call_id": {{}}, "x": "{CANARY}"}}'),
    *('{"a": ' * 250 + "0" + "}" * 250, "[" * 3000 + "]" * 3000),
]
"""JSON, valid wherever it is put."""
NOT_JSON = [
    "",
    "[",
    "[" * 3000,
    '{"a": ' * 3000,
    "]" * 3000,
    "NaN",
    "-Infinity",
    '"',
    "nul",
    "[1,]",
    "\ufeff[]",
    "[] []",
]

_EXACT_TIMES = [None, NOON, -62_135_596_800_000_000, 253_402_300_799_999_999]
_BEYOND_PYTHON = [-62_135_596_800_000_001, 253_402_300_800_000_000, 2**63 - 1, -(2**62)]
_OTHER: dict[Scalar, list[Any]] = {
    Scalar.INT: [None, 0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63)],
    Scalar.BOOL: [None, True, False],
    Scalar.TIMESTAMP: [*_EXACT_TIMES, *_BEYOND_PYTHON],
    Scalar.NAIVE_TIMESTAMP: [None, -62_135_596_800_000_000, 253_402_300_799_999_999, *_BEYOND_PYTHON],
    Scalar.STRING: [None, "", " ", "\0", "a\tb\n\\N", "'; --", "é\u0301\u202e", "x" * 9000, "error", *STOP_REASONS],
}

_TABLES: list[tuple[str, SourceTable]] = [
    ("run", RUNS),
    ("run_metrics", RUN_METRICS),
    ("steps", STEPS),
    ("foreign_steps", STEPS),
    ("step_metrics", STEP_METRICS),
    ("messages", MESSAGES),
    ("messages", MESSAGES),
    ("agent", AGENTS),
]
_IDENTITY = frozenset({("run", "id"), ("run_metrics", "id"), ("agent", "id")})


@functools.cache
def small_runs() -> tuple[Raw, ...]:
    """Runs with few rows, real and made."""
    small = [raw for raw in sample_runs() if len(raw["messages"]) <= 6 and len(raw["steps"]) <= 4]
    return (*small, *made_runs())


def mutated(run_id: str, chance: random.Random) -> Raw:
    """A run under this id, in which up to five values are replaced."""
    raw: Raw = copy.deepcopy(chance.choice(small_runs()))
    raw["run_id"] = raw["run"]["id"] = run_id
    cells = list(_cells(raw))
    in_json = [cell for cell in cells if cell[2] is Scalar.JSON and cell[0][cell[1]] not in (None, "[]")]
    for _ in range(chance.randint(1, 5)):
        row, column, kind = chance.choice(in_json if in_json and chance.random() < 0.8 else cells)
        row[column] = _json(row[column], chance) if kind is Scalar.JSON else chance.choice(_OTHER[kind])
    return raw


def _cells(raw: Raw) -> Iterator[tuple[Raw, str, Scalar]]:
    for name, table in _TABLES:
        rows = raw[name] if isinstance(raw[name], list) else filter(None, [raw[name]])
        for row in rows:
            for column in table.columns:
                if (name, column.name) not in _IDENTITY:
                    yield row, column.name, column.type


def _json(text: str | None, chance: random.Random) -> str | None:
    if chance.random() < 0.05:
        return chance.choice([None, *NOT_JSON])
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        value = None
    return json.dumps(_replaced(value, chance)).replace(json.dumps(_HERE), chance.choice(JSON_TEXTS))


def _replaced(value: Any, chance: random.Random) -> Any:
    """The value with a mark somewhere in it: in the place of a value, under a new key, or as one more item."""
    if not isinstance(value, dict | list) or chance.random() < 0.1:
        return _HERE
    changed: Any = copy.copy(value)
    if not value or chance.random() < 0.15:
        if isinstance(changed, dict):
            changed[chance.choice(["type", "text", "id", "error", "summary", "source", "denied", "odd", "\0"])] = _HERE
        else:
            changed.insert(chance.randint(0, len(changed)), _HERE)
        return changed
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    if chance.random() < 0.1:
        del changed[key]
    else:
        changed[key] = _replaced(value[key], chance)
    return changed
