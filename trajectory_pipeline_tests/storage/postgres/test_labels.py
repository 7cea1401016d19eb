"""The contract of labels: writing twice changes nothing, a changed label supersedes, and reading joins the verdict."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.demo.letta_sample.labels import sample_labels
from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.schema.labels import Label, requirement_item
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.labels import (
    LabelChanges,
    read_labelled_verdicts,
    read_labels,
    record_feedback,
    withdraw_labels,
    write_labels,
)
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    return TrajectoryDatabase(trajectory_database)


def label(value: str = "success", criterion: str = Criterion.OUTCOME, **more: Any) -> Label:
    values: dict[str, Any] = {"run_id": "run-1", "annotator": "ann", "source": LabelSource.TERMINAL} | more
    return Label(criterion=criterion, value=value, **values)


def requirement(statement: str, status: str = "met", **more: Any) -> Label:
    item = requirement_item(statement)
    return label(status, Criterion.REQUIREMENT, item=item, statement=statement, **more)


def history(database: TrajectoryDatabase) -> list[tuple[str, int, bool]]:
    rows = database.rows("SELECT value, revision, superseded_at IS NULL AS holds FROM trajectory.labels ORDER BY 2, 1")
    return [(row["value"], row["revision"], row["holds"]) for row in rows]


def test_write_labels_twice_changes_nothing(database: TrajectoryDatabase) -> None:
    labels = sample_labels()
    assert write_labels(database, labels) == LabelChanges(added=len(labels))
    before = database.rows("SELECT * FROM trajectory.labels ORDER BY run_id, criterion, item, annotator")
    assert write_labels(database, labels) == LabelChanges(unchanged=len(labels))
    assert database.rows("SELECT * FROM trajectory.labels ORDER BY run_id, criterion, item, annotator") == before


def test_changed_label_supersedes_and_keeps_history(database: TrajectoryDatabase) -> None:
    write_labels(database, [label("success", note="at first sight")])
    assert write_labels(database, [label("failure")]) == LabelChanges(changed=1)
    assert history(database) == [("success", 1, False), ("failure", 2, True)]
    [held] = read_labels(database)
    assert (held.value, held.note, held.revision) == ("failure", None, 2)


def test_labels_of_two_annotators_stand_side_by_side(database: TrajectoryDatabase) -> None:
    write_labels(database, [label("success"), label("failure", annotator="bob")])
    assert [(one.annotator, one.value) for one in read_labels(database)] == [("ann", "success"), ("bob", "failure")]


def test_requirement_left_out_of_a_new_set_is_withdrawn(database: TrajectoryDatabase) -> None:
    write_labels(database, [requirement("The refund is booked"), requirement("The sum is told")])
    changes = write_labels(database, [requirement("The sum is told", "unmet")])
    assert changes == LabelChanges(changed=1, withdrawn=1)
    assert [(one.statement, one.value) for one in read_labels(database)] == [("The sum is told", "unmet")]


def test_older_label_does_not_replace_a_newer_one(database: TrajectoryDatabase) -> None:
    write_labels(database, [label("failure", labelled_at=NOON)])
    older = label("success", labelled_at=NOON - timedelta(hours=1))
    assert write_labels(database, [older]) == LabelChanges(outdated=1)
    assert write_labels(database, [replace(older, labelled_at=None)]) == LabelChanges(outdated=1)
    assert [one.value for one in read_labels(database)] == ["failure"]


def test_withdrawn_label_can_be_given_again(database: TrajectoryDatabase) -> None:
    write_labels(database, [label("failure")])
    assert withdraw_labels(database, [label().key, label(annotator="nobody").key]) == 1
    assert read_labels(database) == []
    assert write_labels(database, [label("failure")]) == LabelChanges(added=1)
    assert history(database) == [("failure", 1, False), ("failure", 2, True)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (label("good"), "value 'good' of outcome is none of success, partial_success, failure, unknown"),
        (label("6", Criterion.TOOL_USE), "value '6' of tool_use is none of 1, 2, 3, 4, 5"),
        (label("met", Criterion.REQUIREMENT), "a requirement needs its statement"),
        (label("Bad Mode", Criterion.FAILURE_MODE), "'Bad Mode' of failure_mode is not a name"),
        (label(criterion="Two words"), "criterion 'Two words' is not a name"),
        (label(annotator=" "), "annotator ' ' is not one line"),
        (label(annotator="letta"), "stands for feedback in Letta"),
        (label("positive", Criterion.STEP_FEEDBACK, item="step-1"), "step_feedback comes from Letta alone"),
        (label(note="a\0b"), "note holds a character that Postgres cannot store"),
        (label(inclusion_probability=0.5), "sampling_design and inclusion_probability go together"),
        (
            label(sampling_design=SamplingDesign.RANDOM, inclusion_probability=0.0),
            "inclusion_probability 0.0 is not above 0",
        ),
        (label(labelled_at=datetime(2026, 11, 24)), "has no time zone"),
        (label(labelled_at=datetime(2999, 1, 1, tzinfo=UTC)), "is in the future"),
        (label(item="step-1"), "outcome is about the whole run"),
    ],
)
def test_wrong_label_is_refused_and_nothing_is_written(database: TrajectoryDatabase, wrong: Label, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        write_labels(database, [label(run_id="run-0"), wrong])
    assert history(database) == []


def test_two_labels_of_one_key_are_refused(database: TrajectoryDatabase) -> None:
    with pytest.raises(ValueError, match="two labels of run run-1 by ann for outcome"):
        write_labels(database, [label("success"), label("failure")])


_VALUES = st.lists(st.sampled_from(["success", "failure", "unknown", None]), max_size=6)


@given(first=_VALUES, second=_VALUES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_last_written_label_holds_and_revisions_count(
    database: TrajectoryDatabase, first: list[str | None], second: list[str | None]
) -> None:
    database.rows("WITH gone AS (DELETE FROM trajectory.labels RETURNING 1) SELECT count(*) FROM gone")
    expected: list[str] = []
    held: str | None = None
    for value in [*first, *second]:
        if value is None:
            withdraw_labels(database, [label().key])
        else:
            write_labels(database, [label(value)])
            if value != held:
                expected.append(value)
        held = value
    assert [one.value for one in read_labels(database)] == [value for value in [held] if value]
    assert [value for value, _, _ in history(database)] == expected
    assert [revision for _, revision, _ in history(database)] == list(range(1, len(expected) + 1))


def test_labelled_verdicts_join_the_verdict_of_the_policy(story: Pipeline) -> None:
    database = TrajectoryDatabase(story.database_url)
    [policy] = database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current")
    rows = read_labelled_verdicts(database, policy["policy_id"], [Criterion.OUTCOME])
    assert len(rows) == 192
    assert None not in {row.verdict_status for row in rows}
    # The scripted judge gives the first annotator's labels, where its evidence holds.
    assert sum(row.label.annotator == "A" and row.label.value == row.outcome for row in rows) > 130
    assert 100 < len({row.cluster for row in rows}) < 152
    for row in read_labelled_verdicts(database, policy["policy_id"], [Criterion.FIRST_WRONG_STEP]):
        assert row.label.value == "none" or row.label.value in row.step_ids
    assert {row.outcome for row in read_labelled_verdicts(database, "no such policy", [Criterion.OUTCOME])} == {None}


def test_feedback_is_taken_over_as_a_source_of_its_own(story: Pipeline) -> None:
    database = TrajectoryDatabase(story.database_url)
    people = read_labels(database)
    first = record_feedback(database)
    found = read_labels(database, sources=[LabelSource.LETTA_FEEDBACK])
    given_in_letta = database.rows("SELECT step_id, feedback FROM trajectory.turns WHERE feedback IS NOT NULL")
    assert sorted((one.item, one.value) for one in found) == sorted(tuple(row.values()) for row in given_in_letta)
    assert found
    assert first.added in (0, len(found))
    assert record_feedback(database) == LabelChanges(unchanged=len(found))
    assert read_labels(database) == people
