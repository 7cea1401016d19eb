"""No secret leaves the service in the text of a run, wherever it stands."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.serve.redacted import redacted, remembering
from trajectory_pipeline_tests.judge.secret_samples import KEYS, PASSWORD

REDACT = Redactor(key=b"k")


@pytest.mark.parametrize("secret", sorted(KEYS.values()))
def test_secret_is_replaced_wherever_it_stands(secret: str) -> None:
    places: list[Any] = [
        secret,
        {"text": f"use {secret} here"},
        {"content": [{"type": "text", "text": secret}]},
        {"tool_calls": [{"function": {"name": "call", "arguments": json.dumps({"key": secret})}}]},
        {secret: 1},
        [[{"deep": {"er": f"a={secret}"}}]],
    ]
    for place in places:
        assert secret not in json.dumps(redacted(place, REDACT)), place


def test_value_is_replaced_for_its_name() -> None:
    found = redacted({"type": "custom", "password": PASSWORD, "user": "ann", "port": 5432}, REDACT)
    assert found == {"type": "custom", "password": found["password"], "user": "ann", "port": 5432}
    assert found["password"].startswith("[secret:")


def test_plain_values_stay_as_they_are() -> None:
    value = {"run_id": "run-1", "n": 1, "x": None, "list": [True, 0.5, "plain text"], "data": {"a": "b"}}
    assert redacted(value, REDACT) == value


_texts = st.text(max_size=40) | st.sampled_from(sorted(KEYS.values())).map(lambda key: f"use {key}")
_ids = st.builds("{}-{}".format, st.sampled_from(("run", "message", "agent")), st.uuids())
_times = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)


@given(texts=st.lists(_texts | _ids | _times, max_size=5))
def test_remembering_changes_no_redaction(texts: list[str]) -> None:
    remembered = remembering(REDACT)
    for text in [*texts, *texts, " ".join(texts) * 20]:
        assert remembered(text) == REDACT(text)


@given(text=_ids | _times)
def test_ids_and_times_are_shown(text: str) -> None:
    # Digits of an id may look like those of a card; without its id, nobody could ask for the run.
    assert remembering(Redactor(RedactionMode.PERSONAL, b"k"))(text) == text
