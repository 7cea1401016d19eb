"""The contract of lists and tables in the UI: bounded, and honest about what they leave out."""

from trajectory_pipeline.defs.assets.partition_runner import _failure
from trajectory_pipeline.defs.metadata import bullet_list, count_table


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
