"""Instances of a JSON schema: an answer fitted into it field by field, and the least that is valid where none is known.

Belongs here: the JSON schema keywords that pydantic and OpenAI's strict mode write. Does not belong here: what an
answer says (``rules``), and answers that are wrong on purpose (``damage``).

Whatever value is offered, the result is valid: a number is moved into its range, a list cut or filled up, a label that
the schema does not list replaced by one that it does. So an answer survives a change of the schema that it is asked
for in, which is all that a server can know of its client.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

Json = Any
Schema = Any  # a mapping, or true

FILLER_TEXT = "simulated"

_STRICT_FORBIDS = ("allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties")
_FORMATS: Mapping[str, str] = {
    "date-time": "2025-01-01T00:00:00Z",
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "simulated@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/simulated",
}
_PATTERN_CANDIDATES = (
    *(FILLER_TEXT, "Simulated", "SIMULATED", "a", "A", "aa", "0", "1", "00", "a1", "A1", "a-a", ""),
    *_FORMATS.values(),
)


class SchemaUnsupportedError(ValueError):
    """No instance can be made: the schema contradicts itself or uses what is not supported; the text says which."""


class _Absent:
    """Stands for "no value is known", which null cannot."""


_ABSENT: Final = _Absent()


def fit(schema: Schema, value: Json) -> Json:
    """Fit a value into a schema; raises SchemaUnsupportedError where no instance can be made."""
    return _Fitting(schema).fit_whole(value)


def minimal_instance(schema: Schema) -> Json:
    """Give the least that a schema allows: null, empty, the first label, the lowest number."""
    return _Fitting(schema).fit(schema, _ABSENT)


def schema_of(document: Schema, schema: Schema, value: Json) -> Mapping[str, Any]:
    """Give the schema that a value was written by: references followed, and of a choice the branch that suits."""
    return _Fitting(document).schema_of(schema, value)


def strict_violation(schema: Schema, at: str = "") -> str | None:
    """Say why OpenAI's strict mode would refuse a schema, or give None; the wording follows the API's."""
    if not isinstance(schema, Mapping):
        return None
    where = f"In context=({at}), " if at else ""
    for keyword in _STRICT_FORBIDS:
        if keyword in schema:
            return f"{where}'{keyword}' is not permitted."
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            return f"{where}'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required")
        missing = [name for name in properties or {} if name not in (required or [])]
        if missing or required is None:
            return (
                f"{where}'required' is required to be supplied and to be an array including every key in properties."
                + (f" Missing '{missing[0]}'." if missing else "")
            )
    for keyword in ("properties", "$defs", "definitions"):
        for name, part in (schema.get(keyword) or {}).items():
            if (found := strict_violation(part, f"{at}/{keyword}/{name}".lstrip("/"))) is not None:
                return found
    if (found := strict_violation(schema.get("items"), f"{at}/items".lstrip("/"))) is not None:
        return found
    for number, part in enumerate(schema.get("anyOf") or ()):
        if (found := strict_violation(part, f"{at}/anyOf/{number}".lstrip("/"))) is not None:
            return found
    return None


class _Fitting:
    """One schema document, whose ``$ref`` are looked up in it."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._open: list[str] = []
        self._whole: Json = _ABSENT

    def schema_of(self, schema: Schema, value: Json) -> Mapping[str, Any]:
        resolved = self._resolved(schema)
        if "allOf" in resolved:
            resolved = self._merged(resolved)
        for keyword in ("anyOf", "oneOf"):
            if resolved.get(keyword):
                branches = [self._resolved(branch) for branch in resolved[keyword]]
                return self.schema_of(max(branches, key=lambda branch: _affinity(branch, value)), value)
        return resolved

    def fit_whole(self, value: Json) -> Json:
        self._whole = value
        return self.fit(self._document, value)

    def fit(self, schema: Schema, value: Json) -> Json:
        if schema is True or schema == {}:
            return FILLER_TEXT if value is _ABSENT else value
        if not isinstance(schema, Mapping):
            raise SchemaUnsupportedError(f"{schema!r} is not a schema that has an instance")
        if "$ref" in schema:
            return self._fit_reference(schema, value)
        if "allOf" in schema:
            return self.fit(self._merged(schema), value)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return _label(schema["enum"], value)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._fit_choice(schema, keyword, value)
        kind = _kind(schema, value)
        if kind == "object":
            return self._fit_object(schema, value)
        if kind == "array":
            return self._fit_array(schema, value)
        if kind == "string":
            return _text(schema, value)
        if kind == "integer":
            return _integer(schema, value)
        if kind == "number":
            return _number(schema, value)
        if kind == "boolean":
            return value if isinstance(value, bool) else False
        if kind == "null":
            return None
        raise SchemaUnsupportedError(f"the type {kind!r} is not one of JSON schema's")

    def _fit_reference(self, schema: Mapping[str, Any], value: Json) -> Json:
        reference = schema["$ref"]
        siblings = {name: part for name, part in schema.items() if name != "$ref"}
        if value is not _ABSENT:
            return self.fit({**self._target(reference), **siblings}, value)
        # The least instance of a reference never holds another of the same: meeting it again means a detour.
        if reference in self._open:
            raise SchemaUnsupportedError(f"{reference} refers to itself without an end")
        self._open.append(reference)
        try:
            return self.fit({**self._target(reference), **siblings}, value)
        finally:
            self._open.pop()

    def _target(self, reference: object) -> Mapping[str, Any]:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaUnsupportedError(f"the reference {reference!r} leads out of the schema")
        target = self._document
        for part in reference.lstrip("#").strip("/").split("/") if reference != "#" else ():
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise SchemaUnsupportedError(f"the reference {reference!r} leads nowhere")
            target = target[name]
        if not isinstance(target, Mapping):
            raise SchemaUnsupportedError(f"the reference {reference!r} does not lead to a schema")
        return target

    def _resolved(self, schema: Schema) -> Mapping[str, Any]:
        seen: set[str] = set()
        while isinstance(schema, Mapping) and "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            schema = {**self._target(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema if isinstance(schema, Mapping) else {}

    def _merged(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        merged: dict[str, Any] = {}
        for part in [*map(self._resolved, schema["allOf"]), {k: v for k, v in schema.items() if k != "allOf"}]:
            for name, said in part.items():
                if name == "properties":
                    merged[name] = {**merged.get(name, {}), **said}
                elif name == "required":
                    merged[name] = [*dict.fromkeys([*merged.get(name, []), *said])]
                else:
                    merged[name] = said
        return merged

    def _fit_choice(self, schema: Mapping[str, Any], keyword: str, value: Json) -> Json:
        siblings = {name: part for name, part in schema.items() if name not in (keyword, "title", "description")}
        branches = [{**siblings, **self._resolved(branch)} for branch in schema[keyword]]
        originals = list(schema[keyword])
        order = sorted(range(len(branches)), key=lambda at: -_affinity(branches[at], value))
        refusal: SchemaUnsupportedError | None = None
        for at in order:
            try:
                # The reference itself, not what it resolves to, so that going round in a circle is noticed.
                branch = originals[at]
                return self.fit({**siblings, **branch} if siblings and isinstance(branch, Mapping) else branch, value)
            except SchemaUnsupportedError as problem:
                refusal = problem
        raise refusal or SchemaUnsupportedError(f"{keyword} lists no schema")

    def _fit_object(self, schema: Mapping[str, Any], value: Json) -> Json:
        offered: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        required = list(schema.get("required") or ())
        properties: Mapping[str, Any] = schema.get("properties") or {}
        fitted = {
            name: self.fit(part, offered[name] if name in offered else self._unwrapped(part))
            for name, part in properties.items()
            if name in offered or name in required
        }
        extra = schema.get("additionalProperties", True)
        if extra is not False:
            for name in required:
                if name not in fitted:
                    fitted[name] = self.fit(extra, offered.get(name, _ABSENT))
            if isinstance(extra, Mapping) and not properties:
                fitted |= {name: self.fit(extra, part) for name, part in offered.items() if name not in fitted}
        for name in properties:
            if len(fitted) >= schema.get("minProperties", 0):
                break
            if name not in fitted:
                fitted[name] = self.fit(properties[name], _ABSENT)
        while len(fitted) < schema.get("minProperties", 0):
            if extra is False:
                raise SchemaUnsupportedError("minProperties asks for more properties than there are")
            fitted[f"{FILLER_TEXT}_{len(fitted) + 1}"] = self.fit(extra, _ABSENT)
        return fitted

    def _unwrapped(self, schema: Schema) -> Json:
        """Offer the whole answer to an object that wraps it under a name of its own (``{"judgement": {…}}``)."""
        if not isinstance(self._whole, Mapping):
            return _ABSENT
        properties = self._resolved(schema).get("properties") or {}
        return self._whole if sum(name in self._whole for name in properties) > 1 else _ABSENT

    def _fit_array(self, schema: Mapping[str, Any], value: Json) -> Json:
        offered: Sequence[Any] = value if isinstance(value, list | tuple) else ()
        heads = list(schema.get("prefixItems") or ())
        rest = schema.get("items", True)
        least = max(schema.get("minItems", 0), 0)
        most = schema.get("maxItems", max(least, len(offered), len(heads)))
        if rest is False:
            most = min(most, len(heads))
        if least > most:
            raise SchemaUnsupportedError(f"minItems {least} is more than the {most} items that are allowed")
        fitted = [
            self.fit(heads[at] if at < len(heads) else rest, item) for at, item in enumerate(offered[: int(most)])
        ]
        unique = bool(schema.get("uniqueItems"))
        if unique:
            fitted = _distinct(fitted)
        attempt = 0
        while len(fitted) < least:
            part = heads[len(fitted)] if len(fitted) < len(heads) else rest
            item = self.fit(part, _ABSENT) if not unique else self._vary(part, attempt)
            attempt += 1
            if not unique or item not in fitted:
                fitted.append(item)
            elif attempt > 1000:
                raise SchemaUnsupportedError(f"{least} distinct items could not be made")
        return fitted

    def _vary(self, schema: Schema, attempt: int) -> Json:
        """Give the n-th of several differing instances, for lists of distinct items."""
        resolved = self._resolved(schema)
        if "enum" in resolved:
            return resolved["enum"][attempt % len(resolved["enum"])]
        plain = self.fit(schema, _ABSENT)
        if isinstance(plain, str):
            return self.fit(schema, f"{FILLER_TEXT} {attempt + 1}")
        if isinstance(plain, int | float) and not isinstance(plain, bool):
            return self.fit(schema, plain + attempt * (resolved.get("multipleOf") or 1))
        if isinstance(plain, bool):
            return bool(attempt % 2)
        return plain


def _kind(schema: Mapping[str, Any], value: Json) -> str:
    """Decide which of JSON's types to write: the offered value's where the schema allows it."""
    stated = schema.get("type")
    if isinstance(stated, list):
        if value is _ABSENT:
            return "null" if "null" in stated else str(stated[0])
        fitting = [kind for kind in stated if _is_kind(value, kind)]
        return str((fitting or stated)[0])
    if isinstance(stated, str):
        return stated
    for kind, keywords in (
        ("object", ("properties", "required", "additionalProperties", "minProperties")),
        ("array", ("items", "prefixItems", "minItems", "maxItems")),
        ("string", ("minLength", "maxLength", "pattern", "format")),
        ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    ):
        if any(keyword in schema for keyword in keywords):
            return kind
    kinds = ("null", "boolean", "integer", "number", "string", "array", "object")
    return next((kind for kind in kinds if _is_kind(value, kind)), "string")


def _is_kind(value: Json, kind: str) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    if kind == "array":
        return isinstance(value, list | tuple)
    return kind == "object" and isinstance(value, Mapping)


def _affinity(branch: Mapping[str, Any], value: Json) -> float:
    """Say how well a branch of a choice suits a value; with none known, null suits best."""
    stated = branch.get("type")
    kinds = stated if isinstance(stated, list) else [stated]
    if value is _ABSENT:
        return 1.0 if "null" in kinds or ("const" in branch and branch["const"] is None) else 0.0
    if "const" in branch:
        return 3.0 if branch["const"] == value else -1.0
    if "enum" in branch:
        return 3.0 if value in branch["enum"] else 0.0
    if isinstance(value, Mapping) and ("properties" in branch or "object" in kinds):
        properties = branch.get("properties") or {}
        mismatched = any(
            isinstance(part, Mapping) and "const" in part and name in value and part["const"] != value[name]
            for name, part in properties.items()
        )
        shared = sum(name in value for name in properties)
        return -0.5 if mismatched else 1.0 + shared / (1 + len(properties))
    return 2.0 if any(isinstance(kind, str) and _is_kind(value, kind) for kind in kinds) else 0.0


def _label(labels: Sequence[Any], value: Json) -> Json:
    if not labels:
        raise SchemaUnsupportedError("enum lists no value")
    for label in labels:
        if label == value and type(label) is type(value):
            return label
    if value is not _ABSENT and "other" in labels:
        return "other"
    return labels[0]


def _text(schema: Mapping[str, Any], value: Json) -> str:
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if most is not None and least > most:
        raise SchemaUnsupportedError(f"minLength {least} is more than maxLength {most}")
    pattern, wanted = schema.get("pattern"), schema.get("format")
    if pattern is not None:
        return _matching(str(pattern), value, least, most)
    if isinstance(wanted, str) and wanted in _FORMATS:
        return _FORMATS[wanted]
    text = value if isinstance(value, str) else FILLER_TEXT
    if len(text) < least:
        text = (text + " " + FILLER_TEXT) if text else FILLER_TEXT
        text = text + "." * (least - len(text))
    return text if most is None else text[: int(most)]


def _matching(pattern: str, value: Json, least: int, most: int | None) -> str:
    try:
        expression = re.compile(pattern)
    except re.error as problem:
        raise SchemaUnsupportedError(f"the pattern {pattern!r} cannot be read: {problem}") from problem
    offered: tuple[str, ...] = (value,) if isinstance(value, str) else ()
    stretched = tuple(text * least for text in ("a", "A", "0") if least)
    for text in (*offered, *_PATTERN_CANDIDATES, *stretched):
        if len(text) >= least and (most is None or len(text) <= most) and expression.search(text):
            return text
    raise SchemaUnsupportedError(f"the simulated judge knows no text that matches the pattern {pattern!r}")


def _bounds(schema: Mapping[str, Any]) -> tuple[float, float, bool, bool]:
    """Give lowest and highest number, and whether each is itself excluded (draft 4 says that with a boolean)."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    low_open = above is True
    high_open = below is True
    if above is not None and not isinstance(above, bool) and above >= low:
        low, low_open = above, True
    if below is not None and not isinstance(below, bool) and below <= high:
        high, high_open = below, True
    return low, high, low_open, high_open


def _integer(schema: Mapping[str, Any], value: Json) -> int:
    low, high, low_open, high_open = _bounds(schema)
    step = int(schema.get("multipleOf") or 1) or 1
    lowest = None if low == -math.inf else (math.floor(low) + 1 if low_open else math.ceil(low))
    highest = None if high == math.inf else (math.ceil(high) - 1 if high_open else math.floor(high))
    if _is_kind(value, "number") and math.isfinite(value):
        wished = round(value)
    else:
        wished = lowest if lowest is not None else min(0, highest) if highest is not None else 0
    if lowest is not None:
        wished = max(wished, lowest)
    if highest is not None:
        wished = min(wished, highest)
    for candidate in (-(-wished // step) * step, wished // step * step):
        if (lowest is None or candidate >= lowest) and (highest is None or candidate <= highest):
            return int(candidate)
    raise SchemaUnsupportedError(f"no whole number lies between {low} and {high} in steps of {step}")


def _number(schema: Mapping[str, Any], value: Json) -> float:
    low, high, low_open, high_open = _bounds(schema)
    if low > high or (low == high and (low_open or high_open)):
        raise SchemaUnsupportedError(f"no number lies between {low} and {high}")
    if schema.get("multipleOf"):
        return _multiple(schema["multipleOf"], low, high, low_open, high_open, value)

    def allowed(number: float) -> bool:
        return (number > low if low_open else number >= low) and (number < high if high_open else number <= high)

    middle = (
        (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else low + 1 if math.isfinite(low) else high - 1
    )
    wished = [value] if _is_kind(value, "number") and math.isfinite(value) else []
    for candidate in (*wished, 0, low, high, middle):
        if math.isfinite(candidate) and allowed(candidate):
            return float(candidate) if isinstance(candidate, float) else candidate
    raise SchemaUnsupportedError(f"no number could be found between {low} and {high}")


def _multiple(step: float, low: float, high: float, low_open: bool, high_open: bool, value: Json) -> float:
    wished = value if _is_kind(value, "number") and math.isfinite(value) else 0
    start = round(max(min(wished, high), low) / step)
    for times in (start, start + 1, start - 1):
        candidate = times * step
        if (candidate > low if low_open else candidate >= low) and (
            candidate < high if high_open else candidate <= high
        ):
            return candidate
    raise SchemaUnsupportedError(f"no multiple of {step} lies between {low} and {high}")


def _distinct(items: list[Any]) -> list[Any]:
    distinct: list[Any] = []
    for item in items:
        if item not in distinct:
            distinct.append(item)
    return distinct
