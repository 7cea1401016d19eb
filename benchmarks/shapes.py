"""Point 13: rows of every shape that a supported Letta release writes, against ordinary ones, a shape at a time."""

import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Any

import pyarrow as pa

from benchmarks.bench import FIRST_HOUR, Bench, one_partition
from benchmarks.measuring import Result
from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import HOUR, partition_key
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.raw import TERMINAL_RUNS

Raw = dict[str, Any]

_MOST_BATCHES = 1
_IMAGE = {"type": "image", "source": {"type": "letta", "media_type": "image/png", "data": "iVBORw0KGgo=" * 100}}
_DECISION = {"type": "approval", "tool_call_id": "call-none", "approve": False, "reason": "No."}


def measure(bench: Bench) -> Result:
    """Measure point 13."""
    result = Result("13", "Converting rows of every shape")
    with LettaSource(bench.letta(one_partition(bench.size.runs))).snapshot() as snapshot:
        batches = list(islice(snapshot.terminal_runs(FIRST_HOUR, FIRST_HOUR + HOUR), _MOST_BATCHES))
    rows = [batch.to_pylist() for batch in batches]
    messages = sum(len(raw["messages"]) for batch in rows for raw in batch)
    shapes = {"ordinary": rows, **{name: [[change(raw) for raw in batch] for batch in rows] for name, change in SHAPES}}
    taken: dict[str, list[float]] = {name: [] for name in shapes}
    references: dict[str, int] = {}
    made = {
        name: [pa.RecordBatch.from_pylist(batch, schema=arrow_schema(TERMINAL_RUNS)) for batch in changed]
        for name, changed in shapes.items()
    }
    for _ in range(bench.size.tries):
        # In turns, so that a busy minute does not count against one shape.
        for name, changed in made.items():
            before = time.process_time()
            done = [convert_batch(batch, partition_key(FIRST_HOUR), documents=True) for batch in changed]
            taken[name].append(time.process_time() - before)
            references[name] = sum(each.reference_path_count for each in done)
    ordinary = statistics.median(taken["ordinary"])
    result.add("ordinary rows, a message", 1e6 * ordinary / messages, "µs", note="processor time, document included")
    for name, seconds in taken.items():
        if name != "ordinary":
            note = f"{references[name]} runs by the reference path"
            result.add(name, statistics.median(seconds) / ordinary, "×", at_most=1.5, note=note)
    result.notes.append(f"{sum(map(len, rows)):,} runs with {messages:,} messages, each changed in the same way.")
    return result


def _with_messages(change: Callable[[list[Raw]], list[Raw]]) -> Callable[[Raw], Raw]:
    return lambda raw: {**raw, "messages": change([dict(message) for message in raw["messages"]])}


def _first_with(**values: Any) -> Callable[[Raw], Raw]:
    return _with_messages(lambda messages: [{**messages[0], **values}, *messages[1:]] if messages else messages)


def _equal_sequence(messages: list[Raw]) -> list[Raw]:
    for message, other in zip(messages[::2], messages[1::2], strict=False):
        other["sequence_id"] = message["sequence_id"]
    return messages


def _legacy_text(messages: list[Raw]) -> list[Raw]:
    for message in messages:
        if message["role"] == "user":
            message["text"] = " ".join(part.get("text") or "" for part in json.loads(message["content"] or "[]"))
            message["content"] = None
    return messages


def _equal_times(raw: Raw) -> Raw:
    first: datetime | None = min((step["created_at"] for step in raw["steps"]), default=None)
    return {**raw, "steps": [{**step, "created_at": first} for step in raw["steps"]]}


def _foreign_step(raw: Raw) -> Raw:
    own, foreign = raw["steps"][1:], [{**step, "run_id": "run-other"} for step in raw["steps"][:1]]
    return {**raw, "steps": own, "foreign_steps": foreign}


SHAPES: tuple[tuple[str, Callable[[Raw], Raw]], ...] = (
    ("a message without a step in each run", _first_with(step_id=None)),
    ("a message whose step is gone", _first_with(step_id="step-gone")),
    ("equal sequence numbers", _with_messages(_equal_sequence)),
    ("rows out of order", _with_messages(lambda messages: messages[::-1])),
    ("steps of equal times", _equal_times),
    ("steps of other runs", _foreign_step),
    ("text in the column of older releases", _with_messages(_legacy_text)),
    ("decisions in the columns of older releases", _first_with(approve=False, denial_reason="No.")),
    ("decisions on approvals", _first_with(approvals=json.dumps([_DECISION]))),
    ("images", _first_with(content=json.dumps([_IMAGE, {"type": "text", "text": "What is it?"}]))),
    ("deleted runs", lambda raw: {**raw, "run": {**raw["run"], "is_deleted": True}}),
)
"""What is changed in each run, by name."""
