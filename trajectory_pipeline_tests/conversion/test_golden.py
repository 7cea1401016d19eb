"""Golden documents: any difference fails, until it was read and accepted.

`golden/INDEX.md` says what each shows; `golden.py` writes them again.
"""

import pytest

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline_tests.conversion.golden import FOLDER, Golden, golden_text, index, reference_text
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.raw_runs import batch_of
from trajectory_pipeline_tests.conversion.sample_runs import partition_of

MAX_BYTES = 60_000


@pytest.mark.parametrize("golden", index(), ids=lambda golden: golden.name)
def test_document_of_a_golden_run_is_the_reviewed_one(golden: Golden) -> None:
    expected = golden.path.read_text(encoding="utf-8")
    assert reference_text(golden.raw) == expected, golden.shows
    conversion = convert_batch(batch_of(golden.raw), partition_of(golden.raw), documents=True)
    assert golden_text(conversion.rows[0], conversion.documents[0]) == expected, golden.shows


def test_index_lists_every_file_and_made_run_once() -> None:
    assert sorted(golden.path for golden in index()) == sorted(FOLDER.glob("*.json"))
    assert len({golden.run_id for golden in index()}) == len(index()) > 30
    assert {raw["run_id"] for raw in made_runs()} <= {golden.run_id for golden in index()}


def test_golden_files_are_small_enough_to_read() -> None:
    assert max(golden.path.stat().st_size for golden in index()) < MAX_BYTES
