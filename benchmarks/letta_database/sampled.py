"""The sample's rows in groups: chains of runs, and loops of a tool call and its return."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline.schema.raw import TERMINAL_STATUSES
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE

Row = dict[str, str | None]


@dataclass
class SampledRun:
    """A run with the rows that are its own, messages by ``sequence_id``."""

    run: Row
    metrics: Row | None = None
    steps: list[Row] = field(default_factory=list)
    step_metrics: dict[str, Row] = field(default_factory=dict)
    messages: list[Row] = field(default_factory=list)

    @property
    def terminal(self) -> bool:
        """Whether it ended."""
        return self.run["status"] in TERMINAL_STATUSES


@dataclass(frozen=True)
class Loop:
    """One step that calls a tool, and the tool's return: what long runs consist of."""

    step: Row
    metrics: Row | None
    messages: tuple[Row, ...]


@dataclass(frozen=True)
class Sample:
    """The sample, taken apart.

    Attributes:
        statements_before: DDL before the rows: types, sequences, tables.
        statements_after: DDL after them: keys, indexes, foreign keys.
        columns: column names by table, as the rows have them.
        rows: by table.
    """

    statements_before: tuple[str, ...]
    statements_after: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    rows: dict[str, list[Row]]

    @cached_property
    def chains(self) -> list[list[SampledRun]]:
        """Runs that share steps (an approval's answer belongs to the asking run's step), in order of time."""
        runs = {text(row, "id"): SampledRun(row) for row in self.rows["runs"]}
        owner = {text(step, "id"): step["run_id"] for step in self.rows["steps"]}
        chain_of = {run_id: run_id for run_id in runs}
        for step in self.rows["steps"]:
            if step["run_id"]:
                runs[step["run_id"]].steps.append(step)
        for metrics in self.rows["step_metrics"]:
            run_id = owner.get(text(metrics, "id"))
            if run_id:
                runs[run_id].step_metrics[text(metrics, "id")] = metrics
        for metrics in self.rows["run_metrics"]:
            runs[text(metrics, "id")].metrics = metrics
        for message in sorted(self.rows["messages"], key=lambda row: int(text(row, "sequence_id"))):
            if not message["run_id"]:
                continue
            runs[message["run_id"]].messages.append(message)
            asking = owner.get(message["step_id"] or "")
            if asking and asking != message["run_id"]:
                _join(chain_of, message["run_id"], asking)
        grouped: dict[str, list[SampledRun]] = defaultdict(list)
        for run_id, run in runs.items():
            run.steps.sort(key=lambda step: (text(step, "created_at"), text(step, "id")))
            grouped[_root(chain_of, run_id)].append(run)
        return [sorted(chain, key=lambda run: text(run.run, "created_at")) for _, chain in sorted(grouped.items())]

    @cached_property
    def loops(self) -> dict[str, list[Loop]]:
        """Loops by the type of the agent: steps in the midst of a run with one call and its return."""
        kinds = {text(agent, "id"): text(agent, "agent_type") for agent in self.rows["agents"]}
        found: dict[str, list[Loop]] = defaultdict(list)
        for run in (run for chain in self.chains for run in chain):
            for step in run.steps:
                messages = tuple(m for m in run.messages if m["step_id"] == step["id"] and m["role"] != "user")
                if step["stop_reason"] is None and [m["role"] for m in messages] == ["assistant", "tool"]:
                    metrics = run.step_metrics.get(text(step, "id"))
                    found[kinds[text(run.run, "agent_id")]].append(Loop(step, metrics, messages))
        return found


def read_sample() -> Sample:
    """Take the sample apart."""
    parts = dump.read(SAMPLE_FILE)
    first_rows = next(place for place, part in enumerate(parts) if isinstance(part, dump.CopyBlock))
    blocks = {block.table.removeprefix("public."): block for block in dump.copy_blocks(parts)}
    return Sample(
        tuple(_statements(parts[:first_rows])),
        tuple(_statements(parts[first_rows:])),
        {table: block.columns for table, block in blocks.items()},
        {table: list(block.records()) for table, block in blocks.items()},
    )


def call_ids(message: Row) -> set[str]:
    """Return the ids of tool calls that a message makes, answers or decides on."""
    ids = {call.get("id") for call in _entries(message, "tool_calls")}
    ids |= {
        entry.get("tool_call_id") for column in ("tool_returns", "approvals") for entry in _entries(message, column)
    }
    return {name for name in (*ids, message["tool_call_id"]) if name}


def text(row: Row, column: str) -> str:
    """Return a value that is there in every row."""
    value = row[column]
    if value is None:
        raise ValueError(f"{column} is NULL in the sample's row {row.get('id')}")
    return value


def _entries(message: Row, column: str) -> list[dict[str, str]]:
    return json.loads(message[column] or "[]") or []


def _statements(parts: Iterable[dump.Part]) -> list[str]:
    # setval is about the sample's own sequence ids.
    return [part.text for part in parts if isinstance(part, dump.Statement) and "setval" not in part.text]


def _root(chain_of: dict[str, str], run_id: str) -> str:
    while chain_of[run_id] != run_id:
        run_id = chain_of[run_id]
    return run_id


def _join(chain_of: dict[str, str], one: str, other: str) -> None:
    chain_of[_root(chain_of, one)] = _root(chain_of, other)
