"""The contract of lists and tables in the UI: bounded, and honest about what they leave out."""

from decimal import Decimal

import pytest

from trajectory_pipeline.defs.assets.partition_runner import _failure
from trajectory_pipeline.defs.metadata import bullet_list, count_table, markdown_table
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Scalar, Struct, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet.preview import COLUMNS


def test_bullet_list_over_fifty_says_how_many_more() -> None:
    assert bullet_list(["a", "b"]).value == "- `a`\n- `b`"
    lines = str(bullet_list([str(number) for number in range(53)]).value).splitlines()
    assert lines == [*(f"- `{number}`" for number in range(50)), "- … and 3 more"]


def test_failed_partitions_over_fifty_say_how_many_more() -> None:
    failure = _failure({f"key {number}": "gone" for number in range(51)}, 60)
    lines = str(failure.metadata["failed_partitions"].value).splitlines()
    assert lines == [*(f"- `key {number}`: gone" for number in range(50)), "- … and 1 more"]
    assert "key 23 and 27 more. First, key 0: gone" in str(failure.description)


def test_count_table_is_sorted_by_count_then_name() -> None:
    assert count_table({"b": 1, "c": 2, "a": 1}, "kind").value == (
        "| kind | count |\n|---|---|\n| c | 2 |\n| a | 1 |\n| b | 1 |"
    )
    assert count_table({}, "kind").value == "none"


def test_table_cells_are_one_bounded_line() -> None:
    shown = str(markdown_table(["a", "b"], [("x|y\nz `<b>", "w" * 200), (None, Decimal("0.100000000"))]).value)
    assert shown.splitlines() == ["| a | b |", "|---|---|", f"| x\\|y z '&lt;b> | {'w' * 79}… |", "|  | 0.1 |"]


@pytest.mark.parametrize("table", [TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES])
def test_preview_shows_scalar_columns_without_prose(table: Table) -> None:
    prose = {"summary", "lesson", "agent_name", "error_message", "raw_response", "failure_mode_description"}
    for name in COLUMNS[table.name]:
        outer, _, inner = name.partition(".")
        column = table[outer]
        if inner:
            assert isinstance(column.type, Struct)
            [column] = [field for field in column.type.fields if field.name == inner]
        assert isinstance(column.type, Scalar)
        assert column.type is not Scalar.JSON
        assert column.name not in prose
