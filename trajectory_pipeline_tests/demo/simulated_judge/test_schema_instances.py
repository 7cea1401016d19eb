"""The contract of fitting: whatever is offered, the result is valid by the schema; what cannot be met is said."""

from __future__ import annotations

import enum
import json
import keyword
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trajectory_pipeline.demo.simulated_judge.schema_instances import (
    SchemaUnsupportedError,
    fit,
    minimal_instance,
    strict_violation,
)
from trajectory_pipeline.judge.response_schema import JudgeResponse


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["leaf"]
    size: Annotated[int, Field(ge=3, lt=9)]


class Branch(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["branch"]
    below: list[Tree]
    beside: Tree | None


Tree = Annotated[Branch | Leaf, Field(discriminator="kind")]
Branch.model_rebuild()

SCALARS: st.SearchStrategy[Any] = st.sampled_from(
    [
        str,
        int,
        float,
        bool,
        Colour,
        Leaf,
        Branch,
        Literal["a", "b"],
        Literal[3],
        Annotated[int, Field(ge=-5, le=5)],
        Annotated[int, Field(gt=7)],
        Annotated[int, Field(lt=-7)],
        Annotated[int, Field(ge=1, multiple_of=7)],
        Annotated[float, Field(gt=0, lt=1)],
        Annotated[float, Field(ge=2.5)],
        Annotated[str, Field(min_length=12)],
        Annotated[str, Field(min_length=1, max_length=3)],
        Annotated[str, Field(pattern=r"^[a-z]+$")],
    ]
)


def _wrapped(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def a_list(item: Any, least: int, room: int) -> Any:
        return Annotated[list[item], Field(min_length=least, max_length=least + room)]

    return st.one_of(
        st.builds(a_list, inner, st.integers(0, 3), st.integers(0, 3)),
        st.builds(lambda item: list[item], inner),
        st.builds(lambda item: item | None, inner),
        st.builds(lambda item: dict[str, item], inner),
        st.builds(lambda first, second: tuple[first, second], inner, inner),
    )


TYPES = st.recursive(SCALARS, _wrapped, max_leaves=4)
NAMES = st.from_regex(r"\A[a-z]{1,6}\Z").filter(
    lambda name: not keyword.iskeyword(name) and name not in {"json", "copy", "dict", "schema"}
)
MODELS = st.builds(
    lambda fields: pydantic.create_model(
        "Generated", __config__=ConfigDict(extra="forbid"), **{name: (kind, ...) for name, kind in fields.items()}
    ),
    st.dictionaries(NAMES, TYPES, min_size=1, max_size=5),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(MODELS)
def test_the_least_instance_is_valid(model: type[BaseModel]) -> None:
    model.model_validate_json(json.dumps(minimal_instance(model.model_json_schema())))


@few
@given(MODELS, st.data())
def test_whatever_is_offered_comes_out_valid(model: type[BaseModel], data: st.DataObject) -> None:
    offered = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(model.model_fields, JSON)) | JSON)
    model.model_validate_json(json.dumps(fit(model.model_json_schema(), offered)))


def faults(model: type[BaseModel], value: Any) -> set[str]:
    """Why a value is not valid by a model, by the kinds that pydantic names."""
    try:
        model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        return {problem["type"] for problem in error.errors()}
    return set()


@few
@given(JSON)
def test_any_offer_is_fitted_into_the_judges_schema(offered: Any) -> None:
    schema = to_strict_json_schema(JudgeResponse)
    fitted = fit(schema, {"requirements": offered, "failure": offered, "tags": offered})
    # What no schema can say (that tags differ, that a text is more than blanks) is the judge's own business.
    assert faults(JudgeResponse, fitted) <= {"value_error"}


def test_a_valid_value_comes_out_as_it_went_in() -> None:
    schema = to_strict_json_schema(Branch)
    tree = {
        "kind": "branch",
        "below": [{"kind": "leaf", "size": 5}, {"kind": "branch", "below": [], "beside": None}],
        "beside": {"kind": "leaf", "size": 3},
    }
    assert fit(schema, tree) == tree


def test_values_are_moved_into_what_the_schema_allows() -> None:
    schema = {
        "type": "object",
        "properties": {
            "rating": {"type": "integer", "maximum": 3},
            "label": {"enum": ["good", "other"]},
            "words": {"type": "array", "items": {"type": "string"}, "maxItems": 1},
            "short": {"type": "string", "maxLength": 4},
        },
        "required": ["rating", "label", "words", "short"],
    }
    offered = {"rating": 5, "label": "splendid", "words": ["a", "b"], "short": "too long", "surplus": 1}
    assert fit(schema, offered) == {"rating": 3, "label": "other", "words": ["a"], "short": "too "}


def test_an_answer_finds_its_way_into_an_object_that_wraps_it() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]}
    schema = {"type": "object", "properties": {"judgement": inner}, "required": ["judgement"]}
    assert fit(schema, {"a": "1", "b": "2"}) == {"judgement": {"a": "1", "b": "2"}}


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"const": 7}, 7),
        ({"type": ["string", "null"]}, None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"oneOf": [{"type": "boolean"}]}, False),
        ({"allOf": [{"type": "integer", "minimum": 2}, {"minimum": 4}]}, 4),
        ({"type": "integer", "exclusiveMinimum": 3, "maximum": 4}, 4),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "uniqueItems": True}, [0, 1]),
        ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "uniqueItems": True}, ["a", "b"]),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2}, [1, 2]),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, {}),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "minProperties": 1}, {"a": None}),
        ({"properties": {"a": {"const": 1}}, "required": ["a"]}, {"a": 1}),
        ({"type": "string", "format": "date"}, "2025-01-01"),
        ({}, "simulated"),
    ],
)
def test_keywords_that_pydantic_seldom_writes(schema: dict[str, Any], instance: Any) -> None:
    assert minimal_instance(schema) == instance


LOOP = {"type": "object", "properties": {"again": {"$ref": "#/$defs/Loop"}}, "required": ["again"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/Loop", "$defs": {"Loop": LOOP}},
        {"$ref": "#/$defs/Nowhere"},
        {"$ref": "https://example.com/schema"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "string", "pattern": "^(unguessable [0-9]{7}|x{40})$"},
        {"enum": []},
        {"type": "colour"},
        False,
    ],
)
def test_a_schema_without_an_instance_is_said_to_be_one(schema: Any) -> None:
    with pytest.raises(SchemaUnsupportedError):
        minimal_instance(schema)


def test_strictness_is_checked_as_openai_checks_it() -> None:
    assert strict_violation(to_strict_json_schema(JudgeResponse)) is None
    assert "'required'" in (strict_violation(Leaf.model_json_schema() | {"required": ["kind"]}) or "")
    loose = {
        "type": "object",
        "properties": {"a": {"type": "object"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert "properties/a" in (strict_violation(loose) or "")
    assert "'allOf' is not permitted" in (strict_violation({"allOf": []}) or "")
