"""A run is left out only for one that is written."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.exports.near_duplicates import signature_of
from trajectory_pipeline.exports.pairs import pair_side
from trajectory_pipeline.exports.source import NoPlace, json_bytes
from trajectory_pipeline.exports.text_digest import text_digest
from trajectory_pipeline.pipeline.export_duplicates import SAME_TEXT, SIMILAR_TEXT, Duplicate, WrittenTexts
from trajectory_pipeline.pipeline.export_encoder import EncodedRun
from trajectory_pipeline.pipeline.export_pairs import NO_PARTNER, PairFinder
from trajectory_pipeline.schema.exports import SelectedRun
from trajectory_pipeline_tests.conversion.raw_runs import message
from trajectory_pipeline_tests.exports.test_chat import ASKED, the_run


def encoded(run_id: str, reply: str, outcome: str = "success", system: str = "Be brief.", **changes: Any) -> EncodedRun:
    """A run that answers the question, encoded as a side of a pair."""
    run = the_run(ASKED, message(2, reply=reply), outcome=outcome, system=system)
    side = pair_side(run, across_agents=False)
    assert not isinstance(side, NoPlace)
    fields: dict[str, Any] = {
        "selected": SelectedRun(run_id, "2026-03-01-12:00", "digest", None, run_id, None),
        "encoded": (*side[:2], json_bytes(side[2])),
        "text_digest": text_digest(run),
        "outcome": outcome,
        "outcome_source": "heuristic",
        **dict.fromkeys(("confidence", "probability_success", "policy_id", "model")),
        "simulated": False,
        "losses": Counter(),
        "signature": signature_of(run),
    }
    return EncodedRun(**{**fields, **changes})


def texts(folder: Path, threshold: float | None = None) -> WrittenTexts:
    return WrittenTexts(folder / "near_duplicates.jsonl", threshold)


def test_run_counts_once_it_is_written(tmp_path: Path) -> None:
    written = texts(tmp_path, 0.9)
    assert [written.find(encoded(run_id, "Here.")) for run_id in ("run-1", "run-2")] == [None, None]
    written.add(encoded("run-1", "Here."))
    assert written.find(encoded("run-2", "Here.")) == Duplicate(SAME_TEXT, "run-1")
    assert written.find(encoded("run-3", "Here.", system="Be long.")) == Duplicate(SIMILAR_TEXT, "run-1")
    assert written.find(encoded("run-4", "Here.", "failure", "Be long.")) is None
    written.close()


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_run_without_a_partner_keeps_no_other_out_of_a_pair(tmp_path: Path, threshold: float | None) -> None:
    """Of two runs that say almost the same, the first was told something else, in which nobody failed."""
    finder = PairFinder(tmp_path, 3, texts(tmp_path, threshold))
    for run in (
        encoded("run-1", "Here.", system="Be long."),
        encoded("run-2", "Here."),
        encoded("run-3", "Nowhere.", "failure"),
    ):
        finder.add(run)
    (pair,) = finder.pairs()
    assert (pair.chosen.run.selected.run_id, pair.rejected.run.selected.run_id) == ("run-2", "run-3")
    assert finder.left_out[NO_PARTNER] + finder.left_out[SIMILAR_TEXT] == 1
    finder.close()


def test_what_a_run_in_a_pair_says_is_in_no_other_pair(tmp_path: Path) -> None:
    finder = PairFinder(tmp_path, 3, texts(tmp_path))
    for run in (
        encoded("run-1", "Here."),
        encoded("run-2", "Here."),
        encoded("run-3", "Nowhere.", "failure"),
        encoded("run-4", "I do not know.", "failure"),
    ):
        finder.add(run)
    assert len(list(finder.pairs())) == 1
    assert finder.left_out == {SAME_TEXT: 1, NO_PARTNER: 1}
    finder.close()
