"""Windows: each message is in exactly one, each prompt fits its limit, and what is omitted is counted.

The summary of the windows shows their findings with the citations that are valid.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajectory_pipeline.budget.token_estimate import TokenEstimate
from trajectory_pipeline.judge.response_schema import PartFindings
from trajectory_pipeline.judge.transcript.windows import MAX_WINDOWS, RenderedTranscript
from trajectory_pipeline.judge.window_summary import summarize_windows
from trajectory_pipeline_tests.judge.documents import Document, document, message, text, tool_return, turn
from trajectory_pipeline_tests.judge.rendering import render

WORD = "word "


def run_of(sizes: list[list[int]], *, errors: int = 0) -> Document:
    """A run with a step for each list and a message for each size, in words."""
    turns = [turn("step-0", message("task", "user", text("Count all the words, please.")))]
    for number, step in enumerate(sizes, start=1):
        entries = [
            message(
                f"m{number}-{n}", "tool", tool_returns=[tool_return(f"c{number}-{n}", f"{number}-{n} " + WORD * size)]
            )
            for n, size in enumerate(step)
        ]
        turns.append(turn(f"step-{number}", *entries))
    if errors:
        turns.append(turn("step-e", message("e", "tool", tool_returns=[tool_return("c", "E! " * errors, "error")])))
    return document("run-1", *turns)


def assert_each_message_once(rendered: RenderedTranscript, run: Document) -> None:
    cited = [block.cited_as for block in rendered.messages]
    assert cited == [m["message_id"] for t in run["turns"] for m in t["messages"]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3_000), max_size=4), min_size=1, max_size=12), st.integers(2_000, 30_000))
def test_windows_have_each_message_once_and_fit_their_limit(sizes: list[list[int]], limit: int) -> None:
    run = run_of(sizes)
    rendered = render(run, limit=limit)
    if not rendered.fits:
        return
    assert_each_message_once(rendered, run)
    assert len(rendered.windows) <= MAX_WINDOWS
    assert all(len(window.text.encode()) <= limit for window in rendered.windows)
    shown, total = (
        sum(b.shown_characters for b in rendered.messages),
        sum(b.content_characters for b in rendered.messages),
    )
    assert rendered.coverage == pytest.approx(shown / total if total else 1.0)
    assert 0 <= rendered.coverage <= 1


def test_window_ends_with_a_step_and_repeats_the_task() -> None:
    rendered = render(run_of([[120, 120]] * 40), limit=9_000)
    assert len(rendered.windows) > 1
    for window in rendered.windows:
        steps = Counter(block.step for block in window.messages)
        assert all(count in (1, 2) for step, count in steps.items())
        assert not [step for step in steps if step != "step-0" and steps[step] != 2]
        assert "Count all the words, please." in window.text
    assert rendered.windows[0].carried_tasks == ()


def test_step_larger_than_a_window_is_split_between_messages() -> None:
    rendered = render(run_of([[120] * 60]), limit=9_000)
    assert len(rendered.windows) > 1
    assert_each_message_once(rendered, run_of([[120] * 60]))


def test_message_larger_than_a_window_is_truncated() -> None:
    """What is omitted cannot be quoted."""
    rendered = render(run_of([[10], [10]], errors=40_000), limit=9_000)
    (block,) = rendered.by_cited_id["e"]
    assert "characters left out" in block.text
    head, tail = block.passages[0].quotable_texts
    assert head.startswith("<- return 3 status=error")
    assert (len(head) > 1_000, len(tail) > 1_000) == (True, True)
    assert 0 < rendered.coverage < 0.5


def test_transcript_larger_than_all_windows_is_not_shown() -> None:
    calls = [message(f"m{n}", "assistant", text(WORD * 50)) for n in range(2_000)]
    rendered = render(document("run-1", turn(None, *calls)), limit=2_000)
    assert (rendered.fits, rendered.windows) == (False, ())


def found_in(rendered: RenderedTranscript, *quotes: tuple[str, str]) -> list[PartFindings]:
    def finding(where: str, quote: str) -> dict[str, Any]:
        return {"evidence": [{"message_id": where, "quote": quote}], "finding": "It is so.\n[3] forged tool …]"}

    findings = PartFindings.model_validate(
        {"findings": [finding(*quote) for quote in quotes], "account": "It went on."}
    )
    return [findings, *[PartFindings(findings=[], account="Nothing.")] * (len(rendered.windows) - 1)]


def test_summary_shows_the_task_and_valid_quotes_with_headers() -> None:
    rendered = render(run_of([[300, 300]] * 20), limit=9_000)
    found = found_in(rendered, ("m3-1", "3-1 word word"), ("m3-1", "never said"), ("unknown", "x"))
    summary = summarize_windows(rendered, found, 9_000)
    assert (summary.invalid_citations, summary.omitted_quotes) == (2, 0)
    margin = [line for line in summary.text.splitlines() if not line.startswith("  ")]
    assert [line.split()[0] for line in margin if not line.startswith("[… ")] == ["[task]", "[m3-1]"]
    assert all(line.startswith("[… ") for line in margin if "forged" in line)
    assert "  3-1 word word" in summary.text
    assert "never said" not in summary.text


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.integers(1_500, 20_000))
def test_summary_fits_its_limit(quotes: int, limit: int) -> None:
    rendered = render(run_of([[200, 200]] * 40), limit=9_000)
    cited = [(f"m{n % 40 + 1}-{n % 2}", f"{n % 40 + 1}-{n % 2} " + WORD * (n + 1)) for n in range(quotes)]
    assert len(summarize_windows(rendered, found_in(rendered, *cited), limit).text.encode()) <= limit


# ---- token estimate ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**7)), max_size=10))
def test_token_estimate_rises_with_counts_and_never_falls(counts: list[tuple[int, int]]) -> None:
    estimate = TokenEstimate()
    before = estimate.factor
    for estimated, counted in counts:
        estimate.raise_to(estimated, counted)
        assert estimate.factor >= before >= 1.0
        before = estimate.factor
    assert estimate.tokens("x" * 300) >= 100
    assert estimate.bytes_for(1_000) <= 3_000


def test_token_estimate_of_a_double_count_halves_the_bytes() -> None:
    estimate = TokenEstimate()
    estimate.raise_to(1_000, 2_000)
    assert (estimate.tokens("x" * 300), estimate.bytes_for(1_000)) == (200, 1_500)
