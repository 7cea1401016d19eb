"""The closed lists of labels are those of the judge, so that the two can be compared."""

from typing import get_args

from trajectory_pipeline.judge.response_schema import FailureOwner as JudgedOwner
from trajectory_pipeline.judge.response_schema import RequirementStatus as JudgedStatus
from trajectory_pipeline.schema.enums import FailureOwner, RequirementStatus
from trajectory_pipeline.schema.labels import requirement_item


def test_label_words_are_those_of_the_judge() -> None:
    assert set(FailureOwner) == set(get_args(JudgedOwner))
    assert set(RequirementStatus) == set(get_args(JudgedStatus))


def test_requirement_item_ignores_spaces_only() -> None:
    assert requirement_item("The refund\n is  booked") == requirement_item("The refund is booked")
    assert requirement_item("The refund is booked") != requirement_item("the refund is booked")
