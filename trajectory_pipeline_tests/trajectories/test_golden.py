"""Golden documents of the sample's kinds of run: any difference fails, until it was read and accepted.

`golden/INDEX.md` says what each shows; `golden.py` writes them again.
"""

import pytest

from trajectory_pipeline_tests.trajectories.golden import FOLDER, Golden, golden_text, index

MOST_BYTES = 60_000


@pytest.mark.parametrize("golden", index(), ids=lambda golden: golden.name)
def test_the_document_is_the_one_that_was_reviewed(golden: Golden) -> None:
    assert golden_text(golden.run_id) == golden.path.read_text(encoding="utf-8"), golden.shows


def test_the_index_lists_every_file_once() -> None:
    assert sorted(golden.path for golden in index()) == sorted(FOLDER.glob("*.json"))
    assert len({golden.run_id for golden in index()}) == len(index()) > 20


def test_every_file_is_small_enough_to_be_read() -> None:
    assert max(golden.path.stat().st_size for golden in index()) < MOST_BYTES
