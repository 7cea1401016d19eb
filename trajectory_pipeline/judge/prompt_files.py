"""A prompt of a team's own: a folder with any of the texts and the answer schema, in place of the built-in ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.judge.answer_schema import AnswerSchemaError, answer_type
from trajectory_pipeline.judge.client.response_format import strict_schema
from trajectory_pipeline.judge.prompt import TEXTS, JudgePrompt, built_in_prompt, read_text
from trajectory_pipeline.judge.response_schema import JudgeResponse

SCHEMA_FILE = "answer_schema.json"
_FILES = (*(f"{name}.txt" for name in TEXTS), SCHEMA_FILE)


def load_prompt(folder: Path) -> JudgePrompt:
    """Read the prompt in a folder: a file that is not there is as it is built in. Hidden files are not looked at.

    Raises:
        SettingsError: a file cannot be read, is empty, or has another name; or the answer schema cannot be used.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SettingsError(f"The prompt folder {folder} cannot be read: {error.strerror}.") from None
    others = [name for name in names if name not in _FILES]
    if others or not names:
        found = f"has {', '.join(others)}" if others else "is empty"
        raise SettingsError(f"The prompt folder {folder} {found}; its files are any of {', '.join(_FILES)}.")
    prompt = built_in_prompt()
    texts: dict[str, Any] = {name: _text(folder / f"{name}.txt") for name in TEXTS if f"{name}.txt" in names}
    prompt = replace(prompt, **texts)
    if SCHEMA_FILE not in names:
        return prompt
    path = folder / SCHEMA_FILE
    schema = _object(path)
    if schema == strict_schema(JudgeResponse):
        # As it was exported: the policy stays the same, and nothing is judged again.
        return prompt
    try:
        own, version = answer_type(schema)
    except AnswerSchemaError as error:
        raise SettingsError(f"The answer schema {path} cannot be used: {error}.") from None
    return replace(prompt, answer_type=own, answer_version=version)


def write_prompt(prompt: JudgePrompt, folder: Path) -> list[Path]:
    """Write the files of a prompt into a folder, to begin from; returns them.

    Raises:
        SettingsError: one of them is there already, or cannot be written; then none of those that were there changed.
    """
    schema = json.dumps(strict_schema(prompt.answer_type), indent=2)
    files = {folder / f"{name}.txt": getattr(prompt, name) for name in TEXTS} | {folder / SCHEMA_FILE: schema}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(f"{text}\n")
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be written: {error.strerror}. Name an empty folder.") from None
    return list(files)


def _text(path: Path) -> str:
    try:
        text = read_text(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is no UTF-8 text (byte {error.start}).") from None
    if not text.strip():
        raise SettingsError(f"{path} is empty. Remove it to use the built-in text.")
    if "\0" in text:
        raise SettingsError(f"{path} has a NUL character.")
    return text


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"The answer schema {path} is no JSON: {error}.") from None
    if not isinstance(value, dict):
        raise SettingsError(f"The answer schema {path} must be a JSON object.")
    return value
