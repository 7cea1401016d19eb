"""Near-duplicates: like enough, and with the same outcome; the first of them is kept."""

from pathlib import Path
from typing import Any

from trajectory_pipeline.exports.near_duplicates import signature_of
from trajectory_pipeline.exports.source import ExportRun
from trajectory_pipeline.storage.scratch.near_duplicates import NearDuplicates

WORDS = [f"word{number}" for number in range(400)]


def run(words: list[str]) -> ExportRun:
    message: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": " ".join(words)}]}
    message |= {"tool_calls": [], "tool_returns": [], "is_deleted": False}
    return ExportRun({"run_id": "run-1", "turns": [{"messages": [message]}]})


def test_run_that_differs_in_a_word_is_found_with_its_similarity(tmp_path: Path) -> None:
    kept = NearDuplicates(tmp_path, 0.9)
    kept.keep("run-1", "success", signature_of(run(WORDS)))
    found = kept.find("success", signature_of(run([*WORDS[:200], "other", *WORDS[201:]])))
    assert found is not None
    assert found[0] == "run-1"
    # 5 of 396 sequences differ: 391 of 401.
    assert abs(found[1] - 391 / 401) < 0.05


def test_run_with_another_outcome_or_other_words_is_kept(tmp_path: Path) -> None:
    kept = NearDuplicates(tmp_path, 0.9)
    kept.keep("run-1", "success", signature_of(run(WORDS)))
    assert kept.find("failure", signature_of(run(WORDS))) is None
    assert kept.find("success", signature_of(run(WORDS[::-1]))) is None
    assert kept.find("success", signature_of(run([]))) is None


def test_find_stores_no_run(tmp_path: Path) -> None:
    kept = NearDuplicates(tmp_path, 0.9)
    assert [kept.find("success", signature_of(run(WORDS))) for _ in range(2)] == [None, None]
