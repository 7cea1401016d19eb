"""Prototypes: chains of runs composed of the sample's rows, with marks where the copies differ.

A mark is `@@` + its kind + its arguments + `@@`:

| mark | meaning |
|---|---|
| `@@iN@@` | random hex digits N of the copy, in the form of an id |
| `@@aUUID@@` | the id of a copy of the sample's agent (or conversation) UUID |
| `@@tN:OFFSETz@@` | a time: microseconds relative to the end of the chain's run N, with a zone (`z`) or without (`n`) |
| `@@nN:OFFSETz@@` | the same as nanoseconds since 1970 |
| `@@s@@` | the next sequence id |
| `@@xN:KIND:DEPTH@@` | text N of the copy, of a kind that has a length, escaped for its depth |
"""

import json
import random
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.letta_database.sampled import Loop, Row, Sample, SampledRun, call_ids, text

MARK = re.compile(r"@@([iatnsx])([^@]*)@@")

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEX24 = re.compile(r"[0-9a-f]{24}")
_JSON_COLUMNS = ("content", "tool_calls", "tool_returns", "approvals")
_MESSAGES_IN_A_LOOP = 2
# Between two steps of a run: what the model and the tool take.
_LOOP_MICROSECONDS = 3_000_000


@dataclass(frozen=True)
class Prototype:
    """A chain of runs, marked; every copy of it has the same kinds of rows.

    Attributes:
        rows: ``(table, row)``, messages in their order.
        terminal_runs: in it.
        runs: in it.
        messages: in it.
        agents: the sample's agents that it is about.
    """

    rows: tuple[tuple[str, Row], ...]
    terminal_runs: int
    runs: int
    messages: int
    agents: frozenset[str]


def compose(sample: Sample, chain: list[SampledRun], extra_messages: list[int], rng: random.Random) -> Prototype:
    """Make a prototype of a chain of the sample.

    Args:
        sample: whose loops lengthen the runs.
        chain: of it.
        extra_messages: how many messages more each run gets, as loops of two; a run without a person's message, or of
            an agent that never calls tools in the sample, stays as it is.
        rng: draws the loops.
    """
    lengthened = [
        _lengthened(sample, run, extra // _MESSAGES_IN_A_LOOP, rng)
        for run, extra in zip(chain, extra_messages, strict=True)
    ]
    rows = [marked for number, run in enumerate(lengthened) for marked in _marked_times(run, number)]
    marked = _marked_ids(_marked_texts(rows), sample)
    return Prototype(
        tuple(marked),
        terminal_runs=sum(run.terminal for run in lengthened),
        runs=len(lengthened),
        messages=sum(len(run.messages) for run in lengthened),
        agents=frozenset(text(run.run, "agent_id") for run in lengthened),
    )


def _lengthened(sample: Sample, run: SampledRun, loops: int, rng: random.Random) -> SampledRun:
    """Return a run with loops between the user's messages and the first step."""
    agent = next(agent for agent in sample.rows["agents"] if agent["id"] == run.run["agent_id"])
    donors = sample.loops.get(text(agent, "agent_type"), [])
    asked = next((place for place, m in enumerate(run.messages) if m["role"] != "user"), len(run.messages))
    if not (loops and donors and asked and run.steps):
        return run
    first = run.steps[0]
    begin = _time(text(first, "created_at"))
    earlier = timedelta(microseconds=-loops * _LOOP_MICROSECONDS)
    added = SampledRun(run.run)
    for number in range(loops):
        at = begin + earlier + timedelta(microseconds=number * _LOOP_MICROSECONDS)
        _append(added, rng.choice(donors), first, run.run, at - begin, rng)
    said = [
        {
            **_shifted(message, earlier),
            "step_id": added.steps[0]["id"] if message["step_id"] == first["id"] else message["step_id"],
        }
        for message in run.messages[:asked]
    ]
    metrics = run.metrics and {
        **run.metrics,
        "created_at": _later(text(run.metrics, "created_at"), earlier),
        "num_steps": str(len(run.steps) + loops),
        "run_start_ns": _plus(run.metrics["run_start_ns"], -loops * _LOOP_MICROSECONDS * 1000),
        "run_ns": _plus(run.metrics["run_ns"], loops * _LOOP_MICROSECONDS * 1000),
    }
    return replace(
        run,
        run={**run.run, "created_at": _later(text(run.run, "created_at"), earlier)},
        metrics=metrics,
        steps=added.steps + run.steps,
        step_metrics=added.step_metrics | run.step_metrics,
        messages=said + added.messages + run.messages[asked:],
    )


def _append(run: SampledRun, loop: Loop, like: Row, of: Row, shift: timedelta, rng: random.Random) -> None:
    """Add a copy of a loop with ids of its own, of the same model and agent as the run's own first step."""
    move = _time(text(like, "created_at")) + shift - _time(text(loop.step, "created_at"))
    renamed = {text(loop.step, "id"): _new_id(text(loop.step, "id"), rng)}
    for message in loop.messages:
        for name in (text(message, "id"), *sorted(call_ids(message))):
            if name not in renamed:
                renamed[name] = _new_id(name, rng)
    owned = {"run_id": of["id"], "agent_id": of["agent_id"], "organization_id": of["organization_id"]}
    same_model = {
        name: like[name]
        for name in ("model", "model_handle", "model_endpoint", "provider_name", "context_window_limit")
    }
    run.steps.append({**_renamed(_shifted(loop.step, move), renamed), **owned, **same_model})
    step_id = text(run.steps[-1], "id")
    if loop.metrics:
        run.step_metrics[step_id] = {**_renamed(_shifted(loop.metrics, move), renamed), **owned}
    for message in loop.messages:
        owned_message = {**owned, "conversation_id": of["conversation_id"], "model": like["model"], "otid": None}
        run.messages.append({**_renamed(_shifted(message, move), renamed), **owned_message})


def _marked_times(run: SampledRun, number: int) -> list[tuple[str, Row]]:
    end = _time(run.run["completed_at"] or text(run.run, "updated_at"))
    rows = [("runs", run.run)]
    if run.metrics:
        start = run.metrics["run_start_ns"]
        offset = start and int(start) // 1000 - int(end.timestamp() * 1_000_000)
        rows.append(
            ("run_metrics", {**run.metrics, "run_start_ns": None if offset is None else f"@@n{number}:{offset}z@@"})
        )
    rows += [("steps", step) for step in run.steps]
    rows += [("step_metrics", metrics) for metrics in run.step_metrics.values()]
    rows += [("messages", {**message, "sequence_id": "@@s@@"}) for message in run.messages]
    return [(table, _marked_row(row, end, number)) for table, row in rows]


def _marked_row(row: Row, end: datetime, number: int) -> Row:
    marked = dict(row)
    for name, value in row.items():
        if name.endswith("_at") and value:
            offset = round((_time(value) - end) / timedelta(microseconds=1))
            marked[name] = f"@@t{number}:{offset}{'z' if '+' in value else 'n'}@@"
    return marked


def _marked_ids(rows: list[tuple[str, Row]], sample: Sample) -> list[tuple[str, Row]]:
    own: set[str] = set()
    for table, row in rows:
        own.add(text(row, "id"))
        if table == "messages":
            own |= call_ids(row) | ({row["otid"]} if row["otid"] else set())
    marks: dict[str, str] = {}
    for name in sorted(own):
        digits = _digits(name)
        marks[digits] = f"@@i{len(marks)}{'u' if '-' in digits else 'h'}@@"
    for table in ("agents", "conversations"):
        for row in sample.rows[table]:
            digits = _digits(text(row, "id"))
            marks[digits] = f"@@a{digits}@@"
    anything = re.compile(rf"{_UUID.pattern}|{_HEX24.pattern}")
    return [
        (
            table,
            {
                name: value and anything.sub(lambda found: marks.get(found[0], found[0]), value)
                for name, value in row.items()
            },
        )
        for table, row in rows
    ]


def _marked_texts(rows: list[tuple[str, Row]]) -> list[tuple[str, Row]]:
    marked = []
    texts = 0
    for table, row in rows:
        if table == "messages":
            values = {name: json.loads(value) for name in _JSON_COLUMNS if (value := row[name])}
            texts = _put_text_marks(values, text(row, "role"), texts)
            row = {**row, **{name: json.dumps(value) for name, value in values.items()}}
        marked.append((table, row))
    return marked


def _put_text_marks(message: dict[str, Any], role: str, texts: int) -> int:
    """Mark the texts of a message in place; return the number of texts so far."""
    same: dict[str, str] = {}
    for returned in message.get("tool_returns") or []:
        original = returned.get("func_response")
        answer = _parsed(original)
        if isinstance(answer, dict) and isinstance(answer.get("message"), str):
            answer["message"] += f"@@x{texts}:tool_return:2@@"
            texts += 1
            same[original] = returned["func_response"] = json.dumps(answer, indent=2)
    for part in message.get("content") or []:
        if part.get("type") == "text" and part.get("text") in same:
            part["text"] = same[part["text"]]
        elif (
            part.get("type") == "text" and role in ("user", "assistant") and not isinstance(_parsed(part["text"]), dict)
        ):
            part["text"] += f" @@x{texts}:{role}:1@@"
            texts += 1
        elif part.get("type") == "reasoning":
            part["reasoning"] += f" @@x{texts}:reasoning:1@@"
            texts += 1
    for call in message.get("tool_calls") or []:
        arguments = _parsed(call["function"]["arguments"])
        name = (
            next((name for name, value in arguments.items() if isinstance(value, str)), None)
            if isinstance(arguments, dict)
            else None
        )
        if name is not None:
            arguments[name] += f" @@x{texts}:argument:2@@"
            texts += 1
            call["function"]["arguments"] = json.dumps(arguments)
    return texts


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return None


def _time(value: str) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _later(value: str, by: timedelta) -> str:
    return str(datetime.fromisoformat(value) + by)


def _shifted(row: Row, by: timedelta) -> Row:
    return {name: _later(value, by) if name.endswith("_at") and value else value for name, value in row.items()}


def _plus(value: str | None, more: int) -> str | None:
    return None if value is None else str(int(value) + more)


def _renamed(row: Row, names: dict[str, str]) -> Row:
    def rename(value: str) -> str:
        for old, new in names.items():
            value = value.replace(old, new)
        return value

    return {name: value and rename(value) for name, value in row.items()}


def _new_id(name: str, rng: random.Random) -> str:
    return name.replace(_digits(name), re.sub("[0-9a-f]", lambda _: f"{rng.randrange(16):x}", _digits(name)))


def _digits(name: str) -> str:
    found = _UUID.search(name) or _HEX24.search(name)
    if found is None:
        raise ValueError(f"{name} has no digits of a known form")
    return found[0]
