"""Short ids: different ids stay different, a UUID is cut to few digits, and grading finds the whole id again."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.grading import grade_response
from trajectory_pipeline.judge.response_schema import NO_FAILURE, JudgeResponse
from trajectory_pipeline.judge.transcript.short_ids import short_ids
from trajectory_pipeline_tests.judge.documents import document, message, text, turn
from trajectory_pipeline_tests.judge.provider import ANSWER
from trajectory_pipeline_tests.judge.rendering import render

PREFIXES = st.sampled_from(["message-", "step-", "run-", ""])
IDS = st.lists(st.one_of(st.builds("{}{}".format, PREFIXES, st.uuids()), st.text(max_size=8)), max_size=30)


@given(IDS)
def test_short_ids_of_different_ids_differ(ids: list[str]) -> None:
    short = short_ids(ids)
    assert set(short) == set(ids)
    assert len(set(short.values())) == len(short)
    assert short == short_ids(reversed(ids))


def test_short_ids_have_only_the_digits_that_tell_them_apart() -> None:
    one, other = "message-4de6d615-6b2d-4192-a1eb-63592c5a004e", "step-4de6d6ff-1b82-43c7-a996-d6db9fea0df9"
    assert short_ids([one, "step-1"]) == {one: "4de6", "step-1": "step-1"}
    assert short_ids([one, other]) == {one: "4de6d61", other: "4de6d6f"}
    same = "step-4de6d615-6b2d-4192-a1eb-63592c5a004e"
    assert short_ids([one, same]) == {one: one, same: same}


def test_header_names_step_and_run_where_they_change() -> None:
    first = document(
        "run-1", turn("s1", message("a", "user"), message("b", "assistant")), turn(None, message("c", "tool"))
    )
    second = document("run-2", turn(None, message("d", "user")), turn("s2", message("e", "assistant")))
    assert render(first, second).text.splitlines() == [
        "[a] user step=s1 run=run-1",
        "[b] assistant",
        "[c] tool step=-",
        "[d] user run=run-2",
        "[e] assistant step=s2",
    ]


def test_verdict_has_whole_ids_where_the_judge_cites_short_ones() -> None:
    said, step, run = (f"{kind}-{uuid.uuid4()}" for kind in ("message", "step", "run"))
    error = {"type": "E", "message": "it broke"}
    rendered = render(document(run, turn(step, message(said, "user", text("Do it.")), error=error), error=error))
    shown = {block.source_id: block.cited_as for block in rendered.messages}
    assert all(len(short) < 10 for short in shown.values())
    evidence = [{"message_id": shown[said], "quote": "Do it."}] + [
        {"message_id": shown[name], "quote": "it broke"} for name in (step, run)
    ]
    requirement = {**ANSWER["requirements"][0], "status": "unmet", "evidence": evidence}
    failure = {**NO_FAILURE.model_dump(), "owner": "tool", "mode": "timeout", "first_wrong_step": shown[step]}
    decision = {"step_id": shown[step], "choice": "c", "reason_given": "r"}
    answer = {
        **ANSWER,
        "requirements": [requirement],
        "failure": {**failure, "evidence": evidence},
        "key_decisions": [decision, {**decision, "step_id": "none"}],
    }
    columns = grade_response(JudgeResponse.model_validate(answer), rendered, "success").columns
    assert [citation["message_id"] for citation in columns["requirements"][0]["evidence"]] == [said, step, run]
    assert [citation["message_id"] for citation in columns["failure"]["evidence"]] == [said, step, run]
    assert (columns["failed_step_id"], columns["failure"]["first_wrong_step"]) == (step, step)
    assert [(one["step_id"], one["step_shown"]) for one in columns["decisions"]] == [(step, True), ("none", False)]
