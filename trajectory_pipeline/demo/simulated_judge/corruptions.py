"""The faults of an answer: each function turns a valid answer into the invalid one that a fault asks for."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault

Json = Any

FABRICATED_QUOTE = "This simulated quote stands in no message of the transcript."
UNKNOWN_MESSAGE_ID = "message-00000000-0000-4000-8000-00000000dead"
REFUSAL_TEXT = "[simulated judge] I'm sorry, but I can't assist with that request."
WRONG_LABEL = "simulated_label_that_is_not_listed"


def corrupt_data(chosen: ChosenFault, answer: Json, schema: Json, true_citation: Mapping[str, str]) -> Json:
    """Damage an answer before it is written as JSON; faults of other kinds leave it as it is.

    ``schema`` is the JSON schema that the answer is valid by.
    ``true_citation`` is what a citation is made from where the answer holds none that could be damaged.
    """
    change = _DATA_CORRUPTIONS.get(chosen.name)
    if change is None and chosen.name not in _CITATION_CORRUPTIONS:
        return answer
    answer = json.loads(json.dumps(answer))  # rules may share parts of an answer; damage must strike one place only
    if change is None:
        return _corrupt_citations(answer, _CITATION_CORRUPTIONS[chosen.name], true_citation)
    return change(answer, schema, chosen)


def write_json(answer: Json) -> str:
    """Write an answer as JSON text; NaN is written as some models write it, though JSON has no such number."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"), allow_nan=True)


def corrupt_text(chosen: ChosenFault, text: str) -> str:
    """Damage the written answer; faults of other kinds leave it as it is."""
    if chosen.name in ("truncated", "content_filter_answer"):
        return text[: max(1, int(len(text) * chosen.number("share")))]
    if chosen.name == "invalid_json":
        return text[:-1].replace('":', '" ', 1) + ",]"
    if chosen.name == "fenced_json":
        return f"Here is the simulated answer:\n\n```json\n{text}\n```\n"
    if chosen.name == "fenced_whole":
        return f"```json\n{text}\n```"
    if chosen.name == "thinking":
        return f"<think>\nA simulated thought with {{braces}}.\n</think>\n\n{text}"
    if chosen.name == "empty_content":
        return ""
    return text


def _missing_field(answer: Json, _schema: Json, chosen: ChosenFault) -> Json:
    if isinstance(answer, dict) and answer:
        named = chosen.text("field")
        answer.pop(named if named in answer else next(iter(answer)))
        return answer
    return {}


def _extra_field(answer: Json, _schema: Json, chosen: ChosenFault) -> Json:
    name = chosen.text("field")
    return {**answer, name: "simulated"} if isinstance(answer, dict) else {name: "simulated"}


def _wrong_enum(answer: Json, schema: Json, _chosen: ChosenFault) -> Json:
    def suits(part: Mapping[str, Any], _name: object, _value: Json) -> bool:
        return "enum" in part

    return _put(answer, schema, WRONG_LABEL, suits)


def _nan_number(answer: Json, schema: Json, _chosen: ChosenFault) -> Json:
    return _put(answer, schema, math.nan, _is_number)


def _number_out_of_range(answer: Json, schema: Json, _chosen: ChosenFault) -> Json:
    for place in _slots(answer, schema):
        if "enum" in place.schema or not _is_number(place.schema, place.name, place.value):
            continue
        for keyword, beyond in (("maximum", 1), ("exclusiveMaximum", 0), ("minimum", -1), ("exclusiveMinimum", 0)):
            limit = place.schema.get(keyword)
            if isinstance(limit, int | float) and not isinstance(limit, bool):
                place.put(limit + beyond)
                return answer
    return _put(answer, schema, 10**9, _is_number)


def _wrong_item_count(answer: Json, schema: Json, _chosen: ChosenFault) -> Json:
    places = [place for place in _slots(answer, schema) if isinstance(place.value, list)]
    for place in places:
        most = place.schema.get("maxItems")
        if isinstance(most, int) and place.value:
            place.put((place.value * (most + 1))[: most + 1])
            return answer
    for place in places:
        if place.schema.get("minItems"):
            place.put([])
            return answer
    for place in places:
        if place.value:
            place.put(place.value * 100)
            return answer
    return answer


_Corruption = Callable[[Json, Json, ChosenFault], Json]

_DATA_CORRUPTIONS: Mapping[str, _Corruption] = {
    "missing_field": _missing_field,
    "extra_field": _extra_field,
    "wrong_enum": _wrong_enum,
    "nan_number": _nan_number,
    "number_out_of_range": _number_out_of_range,
    "wrong_item_count": _wrong_item_count,
}

_CITATION_CORRUPTIONS: Mapping[str, Mapping[str, str]] = {
    "fabricated_quote": {"quote": FABRICATED_QUOTE},
    "unknown_message": {"message_id": UNKNOWN_MESSAGE_ID},
}


class _Slot:
    """One value within an answer, with the schema that it was written by."""

    def __init__(self, container: Json, name: Any, schema: Mapping[str, Any]) -> None:
        self._container, self.name, self.schema = container, name, schema

    @property
    def value(self) -> Json:
        return self._container[self.name]

    def put(self, value: Json) -> None:
        self._container[self.name] = value


def _slots(answer: Json, document: Json) -> Iterator[_Slot]:
    """Walk through an answer from the top down, in the order in which it is written."""
    holder = [answer]

    def walk(container: Json, name: Any, schema: Json) -> Iterator[_Slot]:
        value = container[name]
        exact = _exact_schema(document, schema, value)
        if container is not holder:
            yield _Slot(container, name, exact)
        if isinstance(value, dict):
            for key in list(value):
                yield from walk(value, key, (exact.get("properties") or {}).get(key, {}))
        elif isinstance(value, list):
            for at in range(len(value)):
                yield from walk(value, at, exact.get("items", {}))

    yield from walk(holder, 0, document)


def _exact_schema(document: Json, schema: Json, value: Json) -> Mapping[str, Any]:
    """Follow references, and of "this or null" take the branch that a value was written by."""
    while "$ref" in schema:
        schema = document["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    for branch in schema.get("anyOf", ()):
        if (branch.get("type") == "null") == (value is None):
            return _exact_schema(document, branch, value)
    return schema  # type: ignore[no-any-return]


def _is_number(_part: Mapping[str, Any], _name: object, value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _put(answer: Json, schema: Json, value: Json, suits: Callable[[Mapping[str, Any], object, Json], bool]) -> Json:
    """Put a value in the first place that suits, else in the first place of all, else instead of the answer."""
    places = list(_slots(answer, schema))
    chosen = next((p for p in places if suits(p.schema, p.name, p.value)), places[0] if places else None)
    if chosen is None:
        return value
    chosen.put(value)
    return answer


def _corrupt_citations(answer: Json, lie: Mapping[str, str], true_citation: Mapping[str, str]) -> Json:
    """Put a lie into every citation; where there is none, into a new one at the first place for evidence."""
    citations = [place for place in _slots(answer, {}) if _is_citation(place.value)]
    for place in citations:
        place.put({**place.value, **lie})
    if not citations:
        for place in _slots(answer, {}):
            if place.name == "evidence" and place.value == []:
                place.put([{**true_citation, **lie}])
                break
    return answer


def _is_citation(value: Json) -> bool:
    return isinstance(value, dict) and {"message_id", "quote"} <= set(value)
