"""What the page ``/docs`` shows: the OpenAPI document, as tables for people. It needs no script and no other site."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SCHEMAS = "#/components/schemas/"
_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Field:
    """A parameter of a request, or a field of an object.

    Attributes:
        kind: what its values are, as words.
        shape: the object that it is made of, which the page describes too; None for a plain value.
        note: default, limits and meaning.
    """

    name: str
    where: str
    kind: str
    shape: str | None
    is_required: bool
    note: str


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        example: of the body, as JSON; None without a body.
        answers: status, meaning, and the object in the body, if any.
    """

    anchor: str
    method: str
    path: str
    summary: str
    description: str
    needs_token: bool
    fields: list[Field]
    example: str | None
    answers: list[tuple[str, str, str | None]]


@dataclass(frozen=True)
class ApiDescription:
    """All of the API: operations by tag, and the objects in requests and answers."""

    title: str
    version: str
    description: str
    operations: dict[str, list[Operation]]
    objects: dict[str, tuple[str, list[Field]]]


def describe_api(document: Mapping[str, Any]) -> ApiDescription:
    """Return an OpenAPI 3.1 document as the page shows it."""
    operations: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                for tag in item[method].get("tags", ["other"]):
                    operations.setdefault(tag, []).append(_operation(path, method, item[method], document))
    schemas = document.get("components", {}).get("schemas", {})
    objects = {
        name: (str(schema.get("description", "")), _fields_of(schema))
        for name, schema in sorted(schemas.items())
        if "properties" in schema
    }
    info = document["info"]
    return ApiDescription(info["title"], info["version"], info.get("description", ""), operations, objects)


def _operation(path: str, method: str, given: Mapping[str, Any], document: Mapping[str, Any]) -> Operation:
    fields = [
        _field(one["name"], one["in"], one["schema"], one.get("required", False), one.get("description"))
        for one in given.get("parameters", ())
        if one["in"] in ("path", "query")
    ]
    example = None
    body = given.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        schema = _resolved(body["schema"], document)
        fields += [Field(**{**vars(field), "where": "body"}) for field in _fields_of(schema)]
        example = json.dumps(schema["example"], ensure_ascii=False) if "example" in schema else None
    answers = [
        (status, answer.get("description", ""), _shape_of_answer(answer))
        for status, answer in given["responses"].items()
    ]
    return Operation(
        anchor=f"{method}{path}".replace("/", "-").replace("{", "").replace("}", ""),
        method=method.upper(),
        path=path,
        summary=given.get("summary", ""),
        description=given.get("description", ""),
        needs_token=bool(given.get("security")),
        fields=fields,
        example=example,
        answers=answers,
    )


def _fields_of(schema: Mapping[str, Any]) -> list[Field]:
    required = schema.get("required", ())
    return [_field(name, "", one, name in required, None) for name, one in schema.get("properties", {}).items()]


def _field(name: str, where: str, schema: Mapping[str, Any], is_required: bool, description: str | None) -> Field:
    kind, shape = _kind(schema)
    notes = [description or schema.get("description", "")]
    if schema.get("default") not in (None, []):
        notes.append(f"Default: {schema['default']}.")
    limits = _limits(schema) or _limits(_not_null(schema))
    if limits:
        notes.append(limits)
    return Field(name, where, kind, shape, is_required, " ".join(filter(None, notes)))


def _kind(schema: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what a value is, in words, and the object that it is made of."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        return name, name
    if "anyOf" in schema:
        kind, shape = _kind(_not_null(schema))
        is_nullable = any(one.get("type") == "null" for one in schema["anyOf"])
        return (f"{kind} or null" if is_nullable else kind), shape
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"])), None
    if schema.get("type") == "array":
        kind, shape = _kind(schema.get("items", {}))
        return f"list of {kind}", shape
    return schema.get("format") or schema.get("type", "any"), None


def _not_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    given = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    return given[0] if given else {}


def _limits(schema: Mapping[str, Any]) -> str:
    words = (
        ("minimum", "At least {}."),
        ("maximum", "At most {}."),
        ("maxLength", "At most {} characters."),
        ("maxItems", "At most {} values."),
    )
    return " ".join(text.format(schema[name]) for name, text in words if name in schema)


def _resolved(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].removeprefix(_SCHEMAS)]
    return found


def _shape_of_answer(answer: Mapping[str, Any]) -> str | None:
    for content in answer.get("content", {}).values():
        return _kind(content.get("schema", {}))[1]
    return None
