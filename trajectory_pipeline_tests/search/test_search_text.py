"""The search text: what is in it, in which order, how long, and never a secret."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.search.search_text import MOST_CHARACTERS, Judged, render_search_text

REDACT = Redactor(key=b"a key of tests")
SECRET = "sk-proj-" + "Ab3" * 16
MARK = 40
"""Characters that say how much is left out."""


def message(role: str, text: str, kind: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "kind": kind or role, "content": [{"type": "text", "text": text}], **more}


def document(*messages: dict[str, Any], error: Any = None, turn_error: Any = None, **metadata: Any) -> dict[str, Any]:
    turn = {"step_run_id": None, "error": turn_error, "messages": list(messages)}
    return {"run_id": "run-1", "metadata": {"error": error, **metadata}, "turns": [turn]}


def returned(text: str, status: str = "error", **more: Any) -> dict[str, Any]:
    return message("tool", text, tool_returns=[{"tool_call_id": "c1", "status": status, "text": text, **more}])


CALL = message(
    "assistant", "", tool_calls=[{"id": "c1", "type": "function", "function": {"name": "refund", "arguments": "{}"}}]
)


def render(*documents: dict[str, Any], judged: Judged | None = None) -> str:
    return render_search_text(documents, judged, REDACT)


def test_text_has_each_part_by_its_name_in_order() -> None:
    run = document(
        message("user", "refund order 7"),
        CALL,
        returned("limit\n exceeded"),
        returned("limit\n exceeded"),
        returned("no", denied=True),
        error={"type": "LLMError", "message": "overloaded"},
        tools_used=["refund", "search"],
        tools_denied=["mail"],
    )
    assert render(run, judged=Judged("It refused.", "Ask first.")) == (
        "Task: refund order 7\n\nSummary: It refused.\n\nLesson: Ask first.\n\nTools: refund, search\n\n"
        "Denied tools: mail\n\nErrors: refund: limit exceeded\nLLMError: overloaded"
    )


def test_nothing_to_say_is_an_empty_text() -> None:
    assert render(document(message("assistant", "hello"))) == ""


def test_automatic_messages_are_the_task_only_where_nobody_wrote() -> None:
    alert = message("user", "disk full", kind="system_alert")
    assert render(document(alert)) == "Task: disk full"
    assert render(document(alert, message("user", "hi"))) == "Task: hi"
    assert render(document(message("user", "old", is_deleted=True), message("user", "new"))) == "Task: new"
    assert render(document(message("user", "what was said before", kind="summary"))) == ""


def test_run_without_a_task_has_that_of_the_first_run_of_its_chain() -> None:
    asking, answering = document(message("user", "refund it")), document(message("approval", "yes"))
    assert render(asking, answering) == "Task: refund it"
    assert render(asking, document(message("user", "other"))) == "Task: other"


def test_long_part_says_how_much_is_left_out() -> None:
    text = render(document(message("user", "x" * 100_000)))
    assert text.endswith("x [… 96000 characters left out …]")


def test_secret_that_would_be_cut_in_two_is_redacted() -> None:
    most = MOST_CHARACTERS["Task"]
    for before in range(most - 60, most + 5, 7):
        assert SECRET[:20] not in render(document(message("user", f"{'x ' * (before // 2)}{SECRET} and more")))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=9000)), max_size=4),
    st.text(max_size=5000),
    st.text(max_size=5000),
    st.lists(st.text(max_size=300), max_size=30),
)
def test_text_is_bounded_and_repeatable(
    messages: list[tuple[str, str]], summary: str, lesson: str, tools: list[str]
) -> None:
    run = document(*(returned(text) if role == "tool" else message(role, text) for role, text in messages))
    run["metadata"]["tools_used"] = tools
    text = render(run, judged=Judged(summary, lesson))
    assert text == render(run, judged=Judged(summary, lesson))
    names = sum(len(name) + 4 for name in MOST_CHARACTERS)
    assert len(text) <= sum(MOST_CHARACTERS.values()) + names + MARK * len(MOST_CHARACTERS)
