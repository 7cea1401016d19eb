"""10,000 rows with a damaged JSON column: none crashes its partition, each is a trajectory or in quarantine.

The damage is done to real columns of the sample, with one seed for ever: bytes, characters and structure.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from trajectory_pipeline.conversion.document import postgres_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.schema.raw import MESSAGES, RUNS, STEPS, SourceTable
from trajectory_pipeline.schema.types import Scalar
from trajectory_pipeline_tests.conversion.raw_runs import HOUR, Raw, batch_converted
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs

pytestmark = pytest.mark.heavy

ROWS = 10_000
A_BATCH = 250

WEDGES = [
    "",
    "\\u0000",
    "\\ud83d",
    '"',
    "\\",
    "NaN",
    "-Infinity",
    "1e999",
    "1e99999999999999999999",
    "9" * 5000,
    "null",
    "[]",
    "{}",
    "[" * 300,
    "]",
    ",",
    ":",
    "\u202e\u0301",
    '{"a":' * 250 + "0" + "}" * 250,
    '"type":"text",',
]
HUGE = [
    '{"a":' * 250 + "0" + "}" * 250,
    "[" * 2000 + "]" * 2000,
    "1e99999999999999999999",
    "-1e200000",
    "1e-20000",
    "9" * 140_000,
    '"\\ud83d"',
    '"' + "\\u0000" * 100 + '"',
    "[" * 10 + "[1,]" + "]" * 10,
]
VALUES: list[Any] = [None, True, 0, -1.5, 2**64, 10**400, "", "\0", "\ud83d", [], [[]], {}, [None], {"type": 5}, "text"]


def json_columns(table: SourceTable) -> list[str]:
    return [column.name for column in table.columns if column.type is Scalar.JSON]


def rows_of(raw: Raw) -> Iterator[tuple[Raw, str]]:
    for rows, table in (([raw["run"]], RUNS), (raw["steps"], STEPS), (raw["messages"], MESSAGES)):
        for row in rows:
            for column in json_columns(table):
                yield row, column


def damaged(raw: Raw, chance: random.Random) -> Raw:
    """A copy of a run in which one JSON column of one row is damaged."""
    copied = {
        **raw,
        "run": dict(raw["run"]),
        "steps": [dict(row) for row in raw["steps"]],
        "messages": [dict(row) for row in raw["messages"]],
    }
    cells = list(rows_of(copied))
    filled = [cell for cell in cells if cell[0][cell[1]] not in (None, "[]")]
    row, column = chance.choice(filled or cells)
    row[column] = chance.choice([damaged_bytes, damaged_text, damaged_value, damaged_structure])(
        row[column] or "null", chance
    )
    return copied


def damaged_bytes(text: str, chance: random.Random) -> str:
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.choice([0, 34, 92, 125, 0xC3, chance.randrange(256)])
    return bytes(data).decode(errors="replace")


def damaged_text(text: str, chance: random.Random) -> str:
    begin = chance.randrange(len(text) + 1)
    end = min(len(text), begin + chance.choice([0, 0, 1, 2, 20]))
    return text[:begin] + chance.choice(WEDGES) + text[end:]


def damaged_value(text: str, chance: random.Random) -> str:
    """One string or number in it becomes a value that is JSON, but more than the sinks can hold as it is."""
    found = list(re.finditer(r'(?<=: )("(?:[^"\\]|\\.)*"|-?\d+)', text))
    if not found:
        return text
    token = chance.choice(found)
    return text[: token.start()] + chance.choice(HUGE) + text[token.end() :]


def damaged_structure(text: str, chance: random.Random) -> str:
    value = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        value = somewhere_else(value, chance)
    return json.dumps(value)


def somewhere_else(value: Any, chance: random.Random) -> Any:
    """The value with something in it replaced, dropped, doubled or nested once more."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice([chance.choice(VALUES), [value], {"type": value}])
    made: Any = dict(value) if isinstance(value, dict) else list(value)
    key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
    what = chance.random()
    if what < 0.2:
        del made[key]
    elif what < 0.3 and isinstance(made, list):
        made.append(made[key])
    elif what < 0.4 and isinstance(made, dict):
        made[chance.choice(["type", "text", "tool_call_id", "error", "\0", "odd"])] = made[key]
    else:
        made[key] = somewhere_else(value[key], chance)
    return made


@pytest.mark.slow
def test_damaged_row_is_converted_or_quarantined_by_itself() -> None:
    chance = random.Random(20261122)
    small = [raw for raw in sample_runs() if len(raw["messages"]) <= 6 and len(raw["steps"]) <= 4]
    bystanders = small[:3]
    alone = [convert_run(raw, HOUR)["content_digest"] for raw in bystanders]
    became: Counter[str] = Counter()
    for _ in range(ROWS // A_BATCH):
        raws = [damaged(chance.choice(small), chance) for _ in range(A_BATCH)]
        conversion = batch_converted(*raws, *bystanders)
        assert conversion.trajectories.num_rows == len(conversion.rows)
        assert [row["content_digest"] for row in conversion.rows[-len(bystanders) :]] == alone
        trajectories = conversion.rows[: -len(bystanders)]
        assert Counter(row["run_id"] for row in trajectories) + Counter(
            item.run_id for item in conversion.quarantined
        ) == Counter(raw["run_id"] for raw in raws)
        for row in trajectories:
            text, reason = postgres_document(row)
            assert (text is None) == (reason is not None)
            became["without data" if text is None else "escaped" if row["escaped"] else "whole"] += 1
        for item in conversion.quarantined:
            assert "fault of trajectory-pipeline" not in item.error
            assert item.run_id in item.raw
            assert item.json_path.startswith(("runs[", "steps[", "messages["))
            assert item.error
            assert json.loads(item.raw)["run_id"] == item.run_id
        became["quarantined"] += len(conversion.quarantined)
    assert sum(became.values()) == ROWS
    assert min(became[what] for what in ("whole", "escaped", "without data", "quarantined")) > ROWS // 100, became


@pytest.mark.slow
def test_quarantine_names_row_and_column() -> None:
    for raw in sample_runs()[:40]:
        for row, column in rows_of(raw):
            before, row[column] = row[column], "[broken"
            try:
                (item,) = batch_converted(raw).quarantined
            finally:
                row[column] = before
            assert item.json_path.split("[")[1].startswith(row["id"])
            assert column in item.json_path
            assert item.error.startswith("is not valid JSON")
            assert (item.steps, item.messages) == (len(raw["steps"]), len(raw["messages"]))
            assert item.raw.count("[broken") == 1
