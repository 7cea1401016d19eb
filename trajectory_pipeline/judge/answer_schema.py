"""Answer schemas of a team's own: JSON Schemas that narrow the built-in one, and may ask for more.

Outcome, confidence and learning value are computed from the built-in fields. So a schema must have each of them, with
the same structure; it may allow fewer of their values, and limit what the built-in schema leaves open. Fields of its
own stand beside them, at the top: their answers are stored as ``extra_answers``.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from pydantic import ConfigDict, model_validator

from trajectory_pipeline.judge.client.response_format import strict_schema
from trajectory_pipeline.judge.response_schema import JudgeResponse

Schema = Mapping[str, Any]
MAX_EXTRA_FIELDS = 20
_MAX_PROBLEMS = 5


class AnswerSchemaError(ValueError):
    """The schema cannot be used; the text names each problem and its place."""


def answer_type(schema: Schema) -> tuple[type[JudgeResponse], str]:
    """Return the type of the answers that a schema describes, and its version: 12 digits of the schema's SHA-256.

    An answer is valid if the schema and the built-in type both accept it.

    Raises:
        AnswerSchemaError: it is no JSON Schema, or is wider than the built-in one.
    """
    try:
        Draft202012Validator.check_schema(dict(schema))
    except SchemaError as error:
        raise AnswerSchemaError(f"{_place(error.absolute_path)}: {error.message}") from None
    problems = _problems(schema)
    if problems:
        more = f"; and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise AnswerSchemaError("; ".join(problems[:_MAX_PROBLEMS]) + more)
    validator = Draft202012Validator(dict(schema))

    class OwnAnswer(JudgeResponse):
        """An answer by a team's own schema."""

        model_config = ConfigDict(title="JudgeAnswer", extra="allow")

        @model_validator(mode="before")
        @classmethod
        def _by_schema(cls, value: Any) -> Any:
            errors = sorted(validator.iter_errors(value), key=lambda error: list(map(str, error.absolute_path)))
            if errors:
                raise ValueError("; ".join(_sentence(error) for error in errors[:_MAX_PROBLEMS]))
            return value

        @classmethod
        def model_json_schema(cls, *_args: Any, **_options: Any) -> dict[str, Any]:
            return dict(schema)

    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return OwnAnswer, hashlib.sha256(text.encode()).hexdigest()[:12]


def extra_answers(answer: JudgeResponse) -> dict[str, Any] | None:
    """Return what a team's own schema asked for besides the built-in fields; None where that is nothing."""
    return answer.model_extra or None


def _sentence(error: ValidationError) -> str:
    return f"{_place(error.absolute_path)}: {error.message}"


def _place(path: Any) -> str:
    return ".".join(map(str, path)) or "the whole"


def _problems(schema: Schema) -> list[str]:
    built_in = strict_schema(JudgeResponse)
    return [
        *_not_strict(schema, schema, ""),
        *_wider(schema, built_in, schema, built_in, ""),
        *_extra_fields(schema, built_in),
    ]


def _extra_fields(schema: Schema, built_in: Schema) -> list[str]:
    extra = [name for name in schema.get("properties", {}) if name not in built_in["properties"]]
    problems = [f"{name}: a field's name must be a lower-case identifier" for name in extra if not _is_name(name)]
    if len(extra) > MAX_EXTRA_FIELDS:
        problems.append(f"the whole: {len(extra)} fields of its own, and {MAX_EXTRA_FIELDS} are the most")
    return problems


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii() and name == name.lower() and not name.startswith("_")


def _resolved(schema: Any, root: Schema) -> Any:
    """Follow references to definitions; one that leads nowhere, or in a circle, is returned as it is."""
    seen: set[str] = set()
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str) and schema["$ref"] not in seen:
        seen.add(schema["$ref"])
        found = root.get("$defs", {}).get(schema["$ref"].removeprefix("#/$defs/"))
        if found is None:
            break
        schema = found
    return schema


def _not_strict(schema: Any, root: Schema, path: str, depth: int = 0) -> list[str]:
    """Return where a schema is none that providers accept as a strict one."""
    place = path or "the whole"
    if depth > 20:
        return [f"{place}: it is nested deeper than 20 levels, or refers to itself"]
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping):
        return [f"{place}: it must be an object that describes a value"]
    if "$ref" in schema:
        return [f"{place}: {schema['$ref']} is not there; references must be to #/$defs/…"]
    if "anyOf" in schema:
        return [
            problem
            for number, branch in enumerate(schema["anyOf"])
            for problem in _not_strict(branch, root, f"{place}.anyOf.{number}", depth + 1)
        ]
    if "enum" in schema or "const" in schema:
        return []
    if "type" not in schema:
        return [f"{place}: it has no type"]
    problems: list[str] = []
    if "array" in _types(schema):
        problems += (
            _not_strict(schema["items"], root, f"{path}.items".lstrip("."), depth + 1)
            if "items" in schema
            else [f"{place}: an array must say what its items are"]
        )
    if "object" in _types(schema):
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            problems.append(f"{place}: an object needs additionalProperties: false")
        if set(schema.get("required", ())) != set(properties):
            problems.append(f"{place}: every property must be required; what may be absent is a union with null")
        for name, part in properties.items():
            problems += _not_strict(part, root, f"{path}.{name}".lstrip("."), depth + 1)
    return problems


def _wider(schema: Any, built_in: Any, root: Schema, built_in_root: Schema, path: str) -> list[str]:
    """Return where a schema accepts what the built-in one does not, or lacks a field of it."""
    schema, built_in = _resolved(schema, root), _resolved(built_in, built_in_root)
    place = path or "the whole"
    if not isinstance(schema, Mapping):
        return []
    if "anyOf" in schema:
        return [
            problem for branch in schema["anyOf"] for problem in _wider(branch, built_in, root, built_in_root, path)
        ]
    if "anyOf" in built_in:
        branches = [_wider(schema, branch, root, built_in_root, path) for branch in built_in["anyOf"]]
        return [] if not all(branches) else min(branches, key=len)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if "enum" in built_in:
        if values is None:
            return [f"{place}: it must list its values (enum), out of {', '.join(map(str, built_in['enum']))}"]
        unknown = [str(value) for value in values if value not in built_in["enum"]]
        return [f"{place}: {', '.join(unknown)} is not among the built-in values"] if unknown else []
    types = {_type_of(value) for value in values} if values is not None else _types(schema)
    if types - _types(built_in):
        return [f"{place}: it may be {_either(types)}, and must be {_either(_types(built_in))}"]
    if "object" in types and "properties" in built_in:
        properties = schema.get("properties", {})
        missing = [
            f"{path}.{name}".lstrip(".") + ": missing" for name in built_in["properties"] if name not in properties
        ]
        # At the top, other fields are the team's own.
        unknown = [name for name in properties if path and name not in built_in["properties"]]
        return [
            *missing,
            *(f"{path}.{name}: fields of its own may stand at the top alone" for name in unknown),
            *(
                problem
                for name, part in built_in["properties"].items()
                if name in properties
                for problem in _wider(properties[name], part, root, built_in_root, f"{path}.{name}".lstrip("."))
            ),
        ]
    if "array" in types and "items" in built_in and "items" in schema:
        return _wider(schema["items"], built_in["items"], root, built_in_root, f"{path}.items".lstrip("."))
    return []


def _types(schema: Schema) -> set[str]:
    named = schema.get("type", ())
    return {named} if isinstance(named, str) else set(named)


_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def _type_of(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "object" if isinstance(value, Mapping) else "array")


def _either(types: set[str]) -> str:
    return " or ".join(sorted(types)) or "anything"
