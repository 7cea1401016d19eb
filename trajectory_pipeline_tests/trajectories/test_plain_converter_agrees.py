"""Two converters, written apart from the same contract, agree on every run: of the sample, and of any shape.

The second one is `plain_converter`. What the contract does not fix (the wording of the reasoning, the hash of the
digest) is not compared.
"""

from typing import Any

from hypothesis import given, settings

from trajectory_pipeline.trajectories.document import trajectory_document
from trajectory_pipeline.trajectories.reference import convert_run
from trajectory_pipeline_tests.trajectories.plain_converter import differences, plain_trajectory
from trajectory_pipeline_tests.trajectories.sample_runs import partition_of, sample_runs
from trajectory_pipeline_tests.trajectories.strategies import raw_runs

Raw = dict[str, Any]


def disagreements(raw: Raw) -> list[str]:
    key = partition_of(raw)
    row = convert_run(raw, key)
    document = trajectory_document(row)
    assert document["outcome"].pop("reasoning")
    columns, plain = plain_trajectory(raw, key)
    found = list(differences(plain, document))
    found += differences(
        columns, {**{name: row[name] for name in columns}, "escaped": sorted(row["escaped"])}, "columns"
    )
    return found


def test_they_agree_on_every_run_of_the_sample() -> None:
    disagreeing = {raw["run_id"]: found for raw in sample_runs() if (found := disagreements(raw))}
    assert not disagreeing


@given(raw_runs())
@settings(max_examples=250)
def test_they_agree_on_runs_of_any_shape(raw: Raw) -> None:
    assert not disagreements(raw)
