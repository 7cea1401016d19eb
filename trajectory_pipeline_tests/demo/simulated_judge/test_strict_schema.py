"""The simulated judge refuses the schemas that OpenAI's strict mode refuses."""

from openai.lib._pydantic import to_strict_json_schema

from trajectory_pipeline.demo.simulated_judge.strict_schema import strict_violation
from trajectory_pipeline.judge.response_schema import JudgeResponse


def test_strict_violation_names_keyword_and_place() -> None:
    assert strict_violation(to_strict_json_schema(JudgeResponse)) is None
    one = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"], "additionalProperties": False}
    assert "'required'" in (strict_violation(one) or "")
    loose = {
        "type": "object",
        "properties": {"a": {"type": "object"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert "properties/a" in (strict_violation(loose) or "")
    assert "'allOf' is not permitted" in (strict_violation({"allOf": []}) or "")
