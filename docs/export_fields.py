"""What each export form holds of a run, field by field: found by changing one field and looking what changes.

A form holds a field if what is written changes with it. The run below has every kind of message; reasoning and images
are passed on, since the question is what a form can hold.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from trajectory_pipeline.exports.formats import FORMS, ExportFormat, WriterOptions
from trajectory_pipeline.exports.otel import Telemetry
from trajectory_pipeline.exports.source import ExportRun, NoPlace
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Struct, Type
from trajectory_pipeline.schema.verdicts import VERDICTS

COLUMNS: dict[str, tuple[ExportFormat, ...]] = {
    "atif": (ExportFormat.ATIF,),
    "trajectory-v1": (ExportFormat.TRAJECTORY_V1,),
    "scout": (ExportFormat.SCOUT,),
    "otel": (ExportFormat.OTEL,),
    "openai, sft, dpo, kto": (ExportFormat.OPENAI, ExportFormat.KTO),
    "csv, parquet": (ExportFormat.PARQUET,),
}
"""Forms by the column of the table that they share."""

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
_OTHER = {
    "role": {"user": "system"},
    "kind": {"user": "heartbeat"},
    "type": {"image": "other", "function": "other", "approval": "other"},
    "status": {"success": "error", "SUCCESS": "FAILED"},
    "execution_status": {"failed": "completed"},
    "heuristic_outcome": {"failure": "success"},
    "outcome": {"failure": "success"},
}
"""Another value of a closed list; of several elements one such value is changed."""
_ONE = ("role", "kind", "type", "is_deleted")
"""Fields that are changed in one element only: a run in which no person says anything is another matter."""
_LEFT = frozenset({"assistant", "tool", "approval", "text", "reasoning"})
"""Roles, kinds and types that stay as they are while another is changed."""
_SHORTEST = 2
"""Places that a cell names."""


def _part(kind: str, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("text", "reasoning", "signature", "is_native", "media_type", "json"))
    return {"type": kind, **empty, **values}


def _message(number: int, role: str, **values: Any) -> dict[str, Any]:
    return {
        "message_id": f"message-{number}",
        "role": role,
        "kind": role,
        "timestamp": _NOON + timedelta(seconds=number),
        "sequence_id": number,
        "name": "a name",
        "model": "a model" if role == "assistant" else None,
        "sender_id": "agent-2",
        "is_deleted": False,
        "assistant_text": "a reply",
        "inner_thought": "a thought",
        "tool_call_id": "call-1",
        "content": [],
        "tool_calls": [],
        "tool_returns": [],
        "approvals": [],
        **values,
    }


def _filled(columns: tuple[Column, ...]) -> dict[str, Any]:
    return {column.name: _value(column.type, column.name) for column in columns}


def _value(kind: Type, name: str) -> Any:
    if isinstance(kind, ListOf):
        return [_value(kind.item, name)]
    if isinstance(kind, Struct):
        return _filled(kind.fields)
    values: dict[Scalar, Any] = {
        Scalar.STRING: f"a {name}",
        Scalar.INT: 7,
        Scalar.FLOAT: 0.5,
        Scalar.BOOL: False,
        Scalar.TIMESTAMP: _NOON,
        Scalar.MONEY: Decimal("0.5"),
        Scalar.JSON: "[]",
    }
    return values[kind]


def _rich_run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a row of ``TRAJECTORIES`` and one of ``VERDICTS``, with a value in every field."""
    row = _filled(TRAJECTORIES.in_sink(Sink.PARQUET))
    turn = row["turns"][0]
    call = {"id": "call-1", "type": "function", "name": "look", "arguments": '{"at": "it"}', "json": "{}"}
    answer = {
        "tool_call_id": "call-1",
        "status": "success",
        "denied": False,
        "text": "seen",
        "stdout": ["out"],
        "stderr": ["err"],
        "json": json.dumps({"func_response": [_IMAGE]}),
    }
    turn |= {"step_run_id": None, "status": "SUCCESS", "stop_reason": "end_turn", "error": None, "timestamp": _NOON}
    turn["messages"] = [
        _message(1, "user", content=[_part("text", text="a question"), _part("image", json=json.dumps(_IMAGE))]),
        # Chats need a question, also where the first one's role is changed.
        _message(1, "user", content=[_part("text", text="another question")]),
        _message(
            2,
            "assistant",
            content=[
                _part("reasoning", reasoning="because", signature="signed", is_native=True),
                _part("text", text="an answer", media_type="image/png", json="{}"),
            ],
            tool_calls=[call],
        ),
        _message(3, "tool", tool_returns=[answer]),
        _message(
            4,
            "approval",
            approvals=[{"type": "approval", "tool_call_id": "call-1", "approve": False, "reason": "no", "json": "{}"}],
        ),
        _message(5, "user", content=[_part("text", text="thanks")]),
        _message(6, "assistant", model=None, content=[_part("text", text="gladly")]),
    ]
    row |= {
        "usage_reported": True,
        "execution_status": "failed",
        "execution_cause": "token_limit",
        "heuristic_outcome": "failure",
        "models": ["a model"],
        "start_time": _NOON,
        "end_time": _NOON + timedelta(minutes=1),
        "context": {
            **row["context"],
            "system_prompt": "be kind",
            "tools": '[{"name": "look", "description": "looks", "parameters": {}}]',
        },
    }
    return row, {**_filled(VERDICTS.columns), "outcome": "failure"}


def _leaves(columns: tuple[Column, ...], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for column in columns:
        kind = column.type.item if isinstance(column.type, ListOf) else column.type
        if isinstance(kind, Struct):
            yield from _leaves(kind.fields, (*path, column.name))
        else:
            yield (*path, column.name)


def _changed(value: Any, path: tuple[str, ...]) -> bool:
    """Change one field in place, wherever it is not null; returns whether there was such a place."""
    if isinstance(value, list):
        done = (_changed(item, path) for item in value)
        return any(done) if path[-1] in _ONE else any(list(done))
    if not isinstance(value, dict) or path[0] not in value:
        return False
    name, *rest = path
    if rest:
        if name == "error" and value[name] is None:
            value[name] = {"type": "an error", "message": "odd", "detail": None}
            return True
        return _changed(value[name], tuple(rest))
    if value[name] is None and name == "step_run_id":
        value[name] = "run-0"
        return True
    other = _another(name, value[name])
    if other is None:
        return False
    value[name] = other
    return True


def _another(name: str, value: Any) -> Any:
    if name in _OTHER and isinstance(value, str):
        return _OTHER[name].get(value, None if value in _LEFT else f"{value}x")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2
    if isinstance(value, Decimal):
        return value + 1
    if isinstance(value, datetime):
        return value + timedelta(seconds=7)
    if isinstance(value, list):
        return [*value, "another"]
    if isinstance(value, str):
        return value.replace("iVBORw0KGgo=", "AAEC").replace("looks", "sees").replace('"it"', '"that"') + (
            "" if value[:1] in "[{" else "x"
        )
    return None


def _written(form: ExportFormat, row: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a form writes of a run, each value by the place where it stands."""
    run = ExportRun(row, verdict, "family-1", with_reasoning=True, with_images=True)
    encoded = FORMS[form].encode(run, WriterOptions())
    if isinstance(encoded, NoPlace):
        raise TypeError(f"the run that is tried has no place in {form}")
    if form is ExportFormat.OTEL:
        return _of_spans(encoded)
    if form is ExportFormat.ATIF:
        document, *images = encoded.values()
        return {**_places(json.loads(document)), "images/": images}
    return _places(_opened(encoded))


def _of_spans(telemetry: Telemetry) -> dict[str, list[Any]]:
    """Return the values of each attribute, and of the spans themselves, over all spans."""
    found: dict[str, list[Any]] = {"gen_ai.evaluation.*": telemetry.events}
    for span in telemetry.spans:
        for name in ("name", "startTimeUnixNano", "endTimeUnixNano", "status"):
            found.setdefault(name, []).append(span.get(name))
        found.setdefault("spanId, traceId", []).append([span["spanId"], span["traceId"], span.get("links")])
        for pair in span["attributes"]:
            found.setdefault(pair["key"], []).append(pair["value"])
    return found


def _opened(value: Any) -> Any:
    """Return values with JSON in them read."""
    if isinstance(value, bytes | str):
        text = value.decode() if isinstance(value, bytes) else value
        return json.loads(text) if text[:1] in ("{", "[") else text
    if isinstance(value, dict):
        return {name: _opened(item) for name, item in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return {table: [row for name, row in value if name == table] for table, _ in value}
    return value


def _places(value: Any) -> dict[str, list[Any]]:
    """Return the values at each place; elements of lists share one."""
    found: dict[str, list[Any]] = {}

    def look(inner: Any, at: str) -> None:
        if isinstance(inner, dict) and inner:
            for name, item in inner.items():
                look(item, f"{at}.{name}" if at else name)
        elif isinstance(inner, list) and inner:
            for item in inner:
                look(item, f"{at}[]")
        else:
            found.setdefault(at, []).append(inner)

    look(value, "")
    return found


def held_fields() -> dict[tuple[str, ...], dict[str, list[str]]]:
    """Return, by the path of each field, where each column of forms has it."""
    row, verdict = _rich_run()
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    paths = [(path, False) for path in _leaves(TRAJECTORIES.in_sink(Sink.PARQUET))]
    paths += [(path, True) for path in _leaves(VERDICTS.columns)]
    for path, of_verdict in paths:
        changed_row, changed_verdict = copy.deepcopy(row), copy.deepcopy(verdict)
        if not _changed(changed_verdict if of_verdict else changed_row, path):
            raise ValueError(f"{'.'.join(path)} is null everywhere in the run that is tried: give it a value")
        # Where there is a verdict, no form but the tables looks at the heuristic outcome.
        given = verdict if of_verdict else None
        found[("verdict", *path) if of_verdict else path] = {
            column: _differences(path[-1], forms, (row, given), (changed_row, changed_verdict if of_verdict else None))
            for column, forms in COLUMNS.items()
        }
    return found


_Source = tuple[Any, Any]
"""A trajectory and its verdict."""


def _differences(name: str, forms: tuple[ExportFormat, ...], before: _Source, after: _Source) -> list[str]:
    places: set[str] = set()
    for form in forms:
        one, other = _written(form, *before), _written(form, *after)
        places |= {place for place in one.keys() | other.keys() if one.get(place) != other.get(place)}
    return sorted(places, key=lambda place: (name not in place, len(place), place))


_INTRODUCTION = f"""# What exports hold

Each field of a trajectory, and where each form has it; – where it has not.
Found by changing the field and looking what changes in what is written, with `--reasoning` and `--images`.
Where several places change, up to {_SHORTEST} are named. See [exports](exports.md).

`sft`, `dpo` and `kto` hold no images. `dpo` has `prompt`, `chosen` and `rejected` of the same messages, `kto` has
`prompt` and `completion`. `otel` names attributes of spans; with `--openinference` they have other names."""


def page(markdown_table: Callable[[list[str], list[list[str]]], str], header: str) -> str:
    """Return the page of the documentation."""
    rows = [
        [f"`{'.'.join(path)}`", *(_cell(path[-1], places) for places in held.values())]
        for path, held in held_fields().items()
    ]
    return "\n\n".join([header, _INTRODUCTION, markdown_table(["field", *COLUMNS], rows)]) + "\n"


def _cell(name: str, places: list[str]) -> str:
    if name == "is_deleted" and places:
        return "left out where true"
    return ", ".join(f"`{place or 'the record'}`" for place in places[:_SHORTEST]) or "–"
