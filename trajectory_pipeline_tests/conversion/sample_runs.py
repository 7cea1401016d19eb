"""The sample's terminal runs as rows of `terminal_runs`, made straight from the dump file: no database needed.

Nesting follows the data dictionary of `terminal_runs`; it shares no code with the reader, which needs a database.
"""

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.schema.raw import (
    AGENTS,
    MESSAGES,
    RUN_METRICS,
    RUNS,
    STEP_METRICS,
    STEPS,
    TERMINAL_STATUSES,
    SourceTable,
)
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.schema.types import Scalar
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE

Raw = dict[str, Any]


@functools.cache
def sample_runs(file: Path = SAMPLE_FILE) -> tuple[Raw, ...]:
    """Every terminal run of a sample, ordered by run id; callers must not change it."""
    blocks = dump.copy_blocks(dump.read(file))
    rows = {block.table.removeprefix("public."): list(block.records()) for block in blocks}
    runs = _read(rows["runs"], RUNS)
    steps = _read(rows["steps"], STEPS)
    messages = _read(rows["messages"], MESSAGES)
    run_metrics = {row["id"]: row for row in _read(rows["run_metrics"], RUN_METRICS)}
    step_metrics = {row["id"]: row for row in _read(rows["step_metrics"], STEP_METRICS)}
    agents = {row["id"]: row for row in _read(rows["agents"], AGENTS)}
    step_by_id = {step["id"]: step for step in steps}
    found = []
    for run in sorted(runs, key=lambda run: run["id"]):
        if run["status"] not in TERMINAL_STATUSES:
            continue
        own_messages = sorted(
            (message for message in messages if message["run_id"] == run["id"]), key=lambda row: row["sequence_id"]
        )
        own_steps = sorted((step for step in steps if step["run_id"] == run["id"]), key=lambda row: row["id"])
        own_ids = {step["id"] for step in own_steps}
        foreign_ids = {message["step_id"] for message in own_messages} - own_ids - {None}
        agent = agents.get(run["agent_id"])
        found.append(
            {
                "run_id": run["id"],
                "run": run,
                "run_metrics": run_metrics.get(run["id"]),
                "steps": own_steps,
                "foreign_steps": [step_by_id[step_id] for step_id in sorted(foreign_ids) if step_id in step_by_id],
                "asked_calls": _asked_calls([row for row in messages if row["run_id"] != run["id"]], foreign_ids),
                "step_metrics": [step_metrics[step["id"]] for step in own_steps if step["id"] in step_metrics],
                "messages": own_messages,
                "agent": agent,
                "agent_tags": sorted(
                    str(row["tag"]) for row in rows.get("agents_tags", ()) if row["agent_id"] == run["agent_id"]
                ),
                "context": agent and {"system_prompt": agent["system"], "tools": None, "source": "at_capture"},
                "deleted_at": None,
                "schema_version": SCHEMA_VERSION,
            }
        )
    return tuple(found)


def story_runs() -> tuple[Raw, ...]:
    """Every terminal run of the demonstration's sample, which has labels."""
    return sample_runs(STORY.file)


def _asked_calls(messages: list[Raw], step_ids: set[str]) -> list[Raw]:
    asked = [
        (message["step_id"], call["id"], call["function"]["name"])
        for message in sorted(messages, key=lambda row: (row["step_id"] or "", row["sequence_id"]))
        if message["step_id"] in step_ids
        for call in json.loads(message["tool_calls"] or "[]")
    ]
    return [dict(zip(("step_id", "id", "name"), call, strict=True)) for call in dict.fromkeys(asked)]


def partition_of(raw: Raw) -> str:
    """The key of the partition that a run belongs to, in the form of Dagster's hourly partitions."""
    ended = raw["run"]["completed_at"] or raw["run"]["created_at"].astimezone(UTC)
    return f"{ended:%Y-%m-%d-%H}:00"


def _read(records: list[dict[str, str | None]], table: SourceTable) -> list[Raw]:
    return [
        {column.name: _value(record.get(column.name), column.type) for column in table.columns} for record in records
    ]


def _value(text: str | None, kind: Scalar) -> Any:
    if text is None:
        return None
    if kind is Scalar.INT:
        return int(text)
    if kind is Scalar.BOOL:
        return text == "t"
    if kind is Scalar.TIMESTAMP:
        return datetime.fromisoformat(text).astimezone(UTC)
    if kind is Scalar.NAIVE_TIMESTAMP:
        return datetime.fromisoformat(text)
    return text
