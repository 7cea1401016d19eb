"""The contract of prompts that a team brings: what replaces what, and an error for each mistake."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.judge.client.parse import InvalidResponse, parse_response
from trajectory_pipeline.judge.client.response_format import schema_text, strict_schema
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.policy_file import load_policy_file, with_policy
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.judge.prompt_files import SCHEMA_FILE, load_prompt, write_prompt
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.judge.test_grading import MET, answer

Schema = dict[str, Any]
ANSWER = answer(MET).model_dump()
BASE = JudgeConfig("", "https://api.example/v1", "sk-of-the-settings")


def built_in_schema() -> Schema:
    schema: Schema = json.loads(schema_text(JudgeResponse))
    return schema


def with_schema(folder: Path, change: Callable[[Schema], object]) -> Path:
    schema = built_in_schema()
    change(schema)
    folder.mkdir(exist_ok=True)
    (folder / SCHEMA_FILE).write_text(json.dumps(schema))
    return folder


def test_written_prompt_is_the_built_in_one_again(tmp_path: Path) -> None:
    files = write_prompt(built_in_prompt(), tmp_path / "own")
    assert sorted(path.name for path in files) == sorted(path.name for path in (tmp_path / "own").iterdir())
    own = load_prompt(tmp_path / "own")
    assert (own, own.answer_type) == (built_in_prompt(), JudgeResponse)


def test_writing_a_prompt_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("mine")
    with pytest.raises(SettingsError, match=r"rubric\.txt cannot be written"):
        write_prompt(built_in_prompt(), tmp_path)
    assert (tmp_path / "rubric.txt").read_text() == "mine"


def test_each_file_replaces_its_text_alone(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("requirements: one to three.\n")
    own = load_prompt(tmp_path)
    assert own == replace(built_in_prompt(), rubric="requirements: one to three.")
    assert own.messages("x")[0]["content"] == f"{own.rules}\n\nrequirements: one to three."
    assert (own.version, own.answer_version) == (built_in_prompt().version, built_in_prompt().answer_version)


def test_policy_names_a_folder_from_its_own_file_on(tmp_path: Path) -> None:
    (tmp_path / "strict").mkdir()
    (tmp_path / "strict" / "rubric.txt").write_text("Be strict.")
    text = '[[judges]]\nmodel = "m"\nprompt = "strict"\n[[judges]]\nmodel = "m"\n'
    (tmp_path / "policy.toml").write_text(text)
    strict, usual = with_policy(BASE, load_policy_file(tmp_path / "policy.toml"), {}).voters
    assert (strict.judge.prompt.rubric, usual.judge.prompt) == ("Be strict.", built_in_prompt())
    assert strict.judge.policy.policy_id != usual.judge.policy.policy_id


def test_prompt_that_leaves_too_little_room_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rubric.txt").write_text("word " * 20_000)
    (tmp_path / "policy.json").write_text('{"judges": [{"model": "m", "prompt": "own", "max_prompt_tokens": 9000}]}')
    with pytest.raises(SettingsError, match="without a transcript"):
        with_policy(BASE, load_policy_file(tmp_path / "policy.json"), {})


def test_decision_endpoint_takes_no_prompt(tmp_path: Path) -> None:
    text = '[[judges]]\nmodel = "m"\n[[judges]]\nmodel = "d"\nkind = "decisions"\nprompt = "own"\n'
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(SettingsError, match="has no prompt"):
        load_policy_file(tmp_path / "policy.toml")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rubric.md", b"text", r"rubric\.md; its files are any of rules\.txt"),
        ("rubric.txt", b" \n", "is empty"),
        ("rubric.txt", b"\xff\xfe", "no UTF-8 text"),
        ("rubric.txt", b"a\0b", "NUL"),
        (SCHEMA_FILE, b"{", "is no JSON"),
        (SCHEMA_FILE, b"[]", "must be a JSON object"),
        (SCHEMA_FILE, b'{"type": 5}', "type: 5"),
        (SCHEMA_FILE, b"[" * 100_000, "is no JSON"),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=words):
        load_prompt(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="none cannot be read"):
        load_prompt(tmp_path / "none")
    with pytest.raises(SettingsError, match="is empty"):
        load_prompt(tmp_path)


def fields(schema: Schema) -> Schema:
    properties: Schema = schema["properties"]
    return properties


def requirement(schema: Schema) -> Schema:
    properties: Schema = fields(schema)["requirements"]["items"]["properties"]
    return properties


def add(schema: Schema, name: str, field: Schema) -> None:
    fields(schema)[name] = field
    schema["required"].append(name)


def drop(schema: Schema, name: str) -> None:
    del fields(schema)[name]
    schema["required"].remove(name)


WIDER: dict[str, tuple[Callable[[Schema], object], str]] = {
    "a field is missing": (lambda schema: drop(schema, "summary"), "summary: missing"),
    "a nested field is missing": (
        lambda schema: fields(schema)["requirements"].update(items={"type": "string"}),
        "requirements.items: it may be string",
    ),
    "a status that is not known": (
        lambda schema: requirement(schema)["status"].update(enum=["met", "nearly"]),
        "requirements.items.status: nearly is not among",
    ),
    "any status": (
        lambda schema: requirement(schema).update(status={"type": "string"}),
        "requirements.items.status: it must list its values",
    ),
    "another type": (lambda schema: fields(schema).update(summary={"type": "integer"}), "summary: it may be integer"),
    "null where there must be a text": (
        lambda schema: fields(schema).update(summary={"type": ["string", "null"]}),
        "summary: it may be null or string",
    ),
    "an optional field": (lambda schema: schema["required"].remove("lesson"), "every property must be required"),
    "other properties": (lambda schema: schema.update(additionalProperties=True), "additionalProperties: false"),
    "a field deeper down": (
        lambda schema: (
            requirement(schema).update(weight={"type": "number"}),
            fields(schema)["requirements"]["items"]["required"].append("weight"),
        ),
        "requirements.items.weight: fields of its own may stand at the top alone",
    ),
    "a field without a type": (lambda schema: add(schema, "tone", {}), "tone: it has no type"),
    "an array without items": (lambda schema: add(schema, "tones", {"type": "array"}), "tones: an array must say"),
    "a name that is no identifier": (
        lambda schema: add(schema, "Tone of voice", {"type": "string"}),
        "must be a lower-case identifier",
    ),
    "a reference that leads nowhere": (
        lambda schema: add(schema, "tone", {"$ref": "#/$defs/Tone"}),
        "#/\\$defs/Tone is not there",
    ),
    "a schema that refers to itself": (
        lambda schema: (
            schema.setdefault("$defs", {}).update(Tone={"type": "array", "items": {"$ref": "#/$defs/Tone"}}),
            add(schema, "tone", {"$ref": "#/$defs/Tone"}),
        ),
        "refers to itself",
    ),
    "too many fields": (
        lambda schema: [add(schema, f"field_{number}", {"type": "string"}) for number in range(21)],
        "20 are the most",
    ),
}


@pytest.mark.parametrize("case", WIDER)
def test_schema_that_is_wider_than_the_built_in_one_is_refused(tmp_path: Path, case: str) -> None:
    change, words = WIDER[case]
    with pytest.raises(SettingsError, match=words):
        load_prompt(with_schema(tmp_path, change))


def test_own_schema_is_sent_and_held(tmp_path: Path) -> None:
    def change(schema: Schema) -> None:
        requirement(schema)["status"]["enum"] = ["met", "unmet", "insufficient_evidence"]
        fields(schema)["requirements"]["maxItems"] = 1
        add(schema, "tone", {"enum": ["friendly", "rude"]})

    own = load_prompt(with_schema(tmp_path, change)).answer_type
    sent = strict_schema(own)
    assert sent["properties"]["tone"] == {"enum": ["friendly", "rude"]}
    said = {**ANSWER, "tone": "rude"}
    parsed = parse_response(json.dumps(said), own)
    assert isinstance(parsed, JudgeResponse)
    assert (parsed.model_extra, parsed.summary) == ({"tone": "rude"}, ANSWER["summary"])
    for wrong, words in (
        (ANSWER, "'tone' is a required property"),
        ({**said, "tone": "odd"}, "tone: 'odd' is not one of"),
        ({**said, "mood": "odd"}, "mood"),
        ({**said, "requirements": said["requirements"] * 2}, "requirements"),
        ({**said, "tags": ["one"]}, "tags"),
    ):
        found = parse_response(json.dumps(wrong), own)
        assert isinstance(found, InvalidResponse)
        assert words in found.message


def test_equal_schemas_have_equal_versions(tmp_path: Path) -> None:
    def change(schema: Schema) -> None:
        add(schema, "tone", {"type": "string"})

    first, second = (load_prompt(with_schema(tmp_path / name, change)) for name in "ab")
    assert first == second
    assert first.answer_version not in (
        built_in_prompt().answer_version,
        load_prompt(
            with_schema(tmp_path / "c", lambda schema: add(schema, "tone", {"type": "integer"}))
        ).answer_version,
    )
