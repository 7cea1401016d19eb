"""Files of labels: what is written is read again, other tools' files are read, and a wrong row is named."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.demo.letta_sample.labels import sample_labels
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.maintenance.label_files import LabelFormat, ReadOptions, read_label_file, write_label_file
from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.schema.labels import RATINGS, Label, requirement_item, values_of

ANN = ReadOptions(annotator="ann")
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    str.strip
)
_WORD = st.sampled_from(["a", "test", "no", "null", "x_1", "n"])
_LINE = st.sampled_from(["ann", "bob@example.com", "=1+1", "Zoë B.", "7", 'a"b', "a,b"])


@st.composite
def labels(draw: st.DrawFn) -> Label:
    criterion = draw(
        st.sampled_from([one for one in Criterion if one is not Criterion.STEP_FEEDBACK]) | _WORD.map("own_{}".format)
    )
    values = values_of(criterion)
    value = draw(st.sampled_from(values)) if values else draw(_WORD)
    statement = draw(_TEXT) if criterion == Criterion.REQUIREMENT else None
    design = draw(st.none() | st.sampled_from(SamplingDesign))
    return Label(
        run_id=draw(st.sampled_from(["run-1", "run-2", "run-3"])),
        criterion=str(criterion),
        annotator=draw(_LINE),
        source=draw(st.sampled_from([one for one in LabelSource if one is not LabelSource.LETTA_FEEDBACK])),
        value=value,
        item=requirement_item(statement) if statement else "",
        statement=statement,
        evidence=tuple(draw(st.lists(st.sampled_from(["message-1", "step-2", "run-3"]), max_size=3))),
        note=draw(st.none() | _TEXT),
        labelled_at=draw(st.none() | st.datetimes(max_value=datetime(2026, 11, 24), timezones=st.just(UTC))),
        split=draw(st.none() | _WORD),
        sampling_design=design,
        inclusion_probability=draw(st.floats(0.0001, 1)) if design else None,
    )


_LABELS = st.lists(labels(), max_size=6, unique_by=lambda label: label.key)


def by_key(found: list[Label]) -> list[Label]:
    return sorted(found, key=lambda label: label.key)


@given(_LABELS, st.sampled_from([LabelFormat.CSV, LabelFormat.LABEL_STUDIO]))
def test_file_holds_all_of_a_label(given_labels: list[Label], kind: LabelFormat) -> None:
    text, left_out = write_label_file("labels", given_labels, kind)
    assert left_out == 0
    assert by_key(read_label_file("labels", text, kind, ReadOptions())) == by_key(given_labels)


@given(_LABELS, st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.yaml"]))
def test_scout_file_holds_values_and_splits(given_labels: list[Label], name: str) -> None:
    one_person = {(label.run_id, label.criterion): label for label in given_labels if not label.item}
    mine = [
        Label(
            run_id=label.run_id,
            criterion=label.criterion,
            annotator="ann",
            source=LabelSource.SCOUT,
            value=label.value,
            split=label.split,
        )
        for label in one_person.values()
        # A word that YAML and Scout read as something else is a value of a team's own making.
        if label.value not in ("true", "false")
    ]
    text, left_out = write_label_file(name, mine, LabelFormat.SCOUT)
    assert left_out == 0
    assert by_key(read_label_file(name, text, LabelFormat.SCOUT, ANN)) == by_key(mine)


def test_labels_of_the_sample_come_back_from_every_file() -> None:
    every = sample_labels()
    for kind in (LabelFormat.CSV, LabelFormat.LABEL_STUDIO):
        text, _ = write_label_file("labels", every, kind)
        assert by_key(read_label_file("labels", text, kind, ReadOptions())) == by_key(every)
    with pytest.raises(PipelineError, match="these labels are by A, B: choose one with --annotator"):
        write_label_file("a.csv", every, LabelFormat.SCOUT)
    text, left_out = write_label_file("a.csv", [one for one in every if one.annotator == "A"], LabelFormat.SCOUT)
    assert left_out == sum(one.criterion == Criterion.REQUIREMENT for one in every)
    assert len(list(csv.reader(io.StringIO(text)))) == 153


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.csv", "run-1, success\nrun-2, failure\n"),
        ("v.csv", "id,target\nrun-1,success\nrun-2,failure\n"),
        ("v.csv", "id,target_outcome,split\nrun-1,success,\nrun-2,failure,\n"),
        ("v.csv", "id, label_outcome\nrun-1, success\nrun-2, failure\n"),
        ("v.yaml", "- id: run-1\n  target: success\n- id: run-2\n  target:\n    outcome: failure\n"),
        ("v.json", '[{"id": "run-1", "labels": {"outcome": "success"}}, {"id": "run-2", "target": "failure"}]'),
        ("v.jsonl", '{"id": "run-1", "target": "success"}\n\n{"id": "run-2", "target": "failure"}\n'),
    ],
)
def test_scout_file_of_each_form_is_read(name: str, text: str) -> None:
    found = read_label_file(name, text, LabelFormat.SCOUT, ANN)
    assert [(one.run_id, one.criterion, one.value) for one in found] == [
        ("run-1", "outcome", "success"),
        ("run-2", "outcome", "failure"),
    ]


def test_scout_splits_and_types_are_read() -> None:
    text = json.dumps(
        [{"split": "dev", "cases": [{"id": "run-1", "target": {"polite": True, "tool_use": 4, "late": False}}]}]
    )
    found = read_label_file("v.json", text, LabelFormat.SCOUT, ANN)
    assert {one.criterion: one.value for one in found} == {"polite": "true", "tool_use": "4", "late": "false"}
    assert {one.split for one in found} == {"dev"}


def test_label_studio_export_is_read() -> None:
    task: dict[str, Any] = {
        "id": 1,
        "data": {"run_id": "run-1", "text": "what happened"},
        "annotations": [
            {
                "id": 7,
                "completed_by": {"id": 3, "email": "ann@example.com"},
                "created_at": "2026-11-24T12:00:00.000000Z",
                "was_cancelled": False,
                "result": [
                    {
                        "id": "a1",
                        "from_name": "outcome",
                        "to_name": "text",
                        "type": "choices",
                        "value": {"choices": ["failure"]},
                    },
                    {
                        "id": "a2",
                        "from_name": "tool_use",
                        "to_name": "text",
                        "type": "rating",
                        "value": {"rating": 2},
                    },
                    {
                        "id": "a3",
                        "from_name": "note",
                        "to_name": "text",
                        "type": "textarea",
                        "value": {"text": ["no refund was booked"]},
                    },
                ],
            },
            {"completed_by": 5, "was_cancelled": True, "result": []},
        ],
        "predictions": [],
    }
    outcome, rating = read_label_file("x.json", json.dumps([task]), LabelFormat.LABEL_STUDIO, ReadOptions())
    assert (outcome.value, outcome.note, outcome.annotator) == ("failure", "no refund was booked", "ann@example.com")
    assert outcome.labelled_at == datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert (rating.criterion, rating.value, rating.note) == (RATINGS[2], "2", None)


def rows(*lines: str) -> str:
    return "run_id,criterion,value,annotator,note\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (rows("run-1,outcome,success,ann,", "run-1,outcome,good,ann,"), "line 3: value 'good' of outcome is none of"),
        (rows('run-1,outcome,success,ann,"two\nlines"', "run-2,outcome,,ann,"), "line 4: value is missing"),
        (rows("run-1,outcome,success,,"), "line 2: annotator is missing: name one with --annotator"),
        (rows("run-1,outcome,success,ann"), "line 2: it has not 5 cells"),
        (rows("run-1,outcome,success,ann,", "run-1,outcome,failure,ann,"), "line 3: .* stands at line 2 already"),
        ("run_id,outcome\nrun-1,success\n", "line 1: unknown columns 'outcome'; missing columns criterion, value"),
        (rows("run-9,outcome,success,ann,"), "line 2: there is no trajectory of run-9"),
        ("run_id,criterion,value,annotator,labelled_at\nrun-1,outcome,success,ann,noon\n", "line 2: Invalid isoformat"),
        (rows("run-1,requirement,met,ann,"), "line 2: a requirement needs its statement"),
    ],
)
def test_wrong_row_of_a_csv_is_named(text: str, problem: str) -> None:
    options = ReadOptions(known_runs=frozenset({"run-1", "run-2"}))
    with pytest.raises(PipelineError, match=f"nothing was written:\n{problem}"):
        read_label_file("mine.csv", text, LabelFormat.CSV, options)


@pytest.mark.parametrize(
    ("kind", "name", "text", "problem"),
    [
        (LabelFormat.SCOUT, "v.json", "{", "the file: it cannot be read"),
        (LabelFormat.SCOUT, "v.txt", "run-1,success", "the file: it cannot be read: a Scout file ends in"),
        (LabelFormat.SCOUT, "v.json", '[{"id": ["a", "b"], "target": true}]', "case 1: a label is about one run"),
        (LabelFormat.SCOUT, "v.json", '[{"target": true}]', "case 1: it is no case"),
        (LabelFormat.SCOUT, "v.json", '[{"id": "run-1"}]', "case 1: it has neither target nor labels"),
        (LabelFormat.LABEL_STUDIO, "x.json", "{}", "the file: it is no list of tasks"),
        (LabelFormat.LABEL_STUDIO, "x.json", '[{"data": {}}]', "task 1: its data has no run_id"),
        (
            LabelFormat.LABEL_STUDIO,
            "x.json",
            '[{"data": {"run_id": "run-1"}}]',
            "task 1: it has no list of annotations",
        ),
        (
            LabelFormat.LABEL_STUDIO,
            "x.json",
            '[{"data": {"run_id": "run-1"}, "annotations": [{"result": [{"from_name": "outcome", "value":'
            ' {"choices": ["success", "failure"]}}]}]}]',
            "task 1, annotation 1, result 1: it is neither one choice nor a rating",
        ),
    ],
)
def test_wrong_case_of_another_format_is_named(kind: LabelFormat, name: str, text: str, problem: str) -> None:
    with pytest.raises(PipelineError, match=problem):
        read_label_file(name, text, kind, ANN)


def test_scout_file_without_annotator_is_refused() -> None:
    with pytest.raises(PipelineError, match="line 1: the format has no annotator: name one with --annotator"):
        read_label_file("v.csv", "run-1,success\n", LabelFormat.SCOUT, ReadOptions())
