"""Each call goes with its own return in every form, the view and the frames: also where ids repeat or are missing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.flat import flat_rows
from trajectory_pipeline.exports.otel import Telemetry, telemetry_of
from trajectory_pipeline.exports.scout import scout_row
from trajectory_pipeline.exports.source import ExportRun
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.frames import TOOL_CALL_FRAME
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.parquet.query import query_parquet
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.query import query_postgres
from trajectory_pipeline.storage.selection import Selection
from trajectory_pipeline_tests.conversion.made_runs import renamed
from trajectory_pipeline_tests.conversion.raw_runs import HOUR, Raw, batch_of, call, message, raw_run, returned
from trajectory_pipeline_tests.exports.content import export_runs

Answer = tuple[str | None, str | None]
"""Status and text of a return."""
_ID = st.sampled_from(["call_0", "call_1", "", None])
_MESSAGE = st.tuples(st.lists(_ID, max_size=3), st.lists(_ID, max_size=3))
"""Ids of the calls of a message, and of the returns in it."""


def run_of(*messages: tuple[list[Any], list[Any]]) -> Raw:
    """A run in which every call has a tool of its own, and every return a text of its own."""
    rows = []
    for number, (calls, returns) in enumerate(messages):
        rows.append(
            message(
                number,
                "tool" if returns else "assistant",
                tool_calls=[call(f"tool-{number}-{at}", call_id=each) for at, each in enumerate(calls)],
                tool_returns=[
                    returned("error" if at % 2 else "success", each, f"text-{number}-{at}")
                    for at, each in enumerate(returns)
                ],
            )
        )
    return raw_run(message(99, "user", "Do it."), *rows)


def exported(*messages: tuple[list[Any], list[Any]]) -> ExportRun:
    (run,) = export_runs([run_of(*messages)])
    return run


def flat_answers(run: ExportRun) -> dict[str, Answer]:
    rows = (row for table, row in flat_rows(run) if table == "tool_calls")
    return {row["tool"]: (row["status"], row["result"]) for row in rows}


def test_flat_table_gives_each_call_the_next_return_of_its_id() -> None:
    run = exported((["call_0"], []), ([], ["call_0"]), (["call_0"], []), ([], ["other", "call_0"]))
    assert flat_answers(run) == {"tool-0-0": ("success", "text-1-0"), "tool-2-0": ("error", "text-3-1")}


def test_flat_table_gives_a_call_without_an_id_no_return() -> None:
    assert flat_answers(exported(([None], []), ([], [None]))) == {"tool-0-0": (None, None)}


def test_flat_table_gives_a_call_no_return_from_before_it() -> None:
    assert flat_answers(exported(([], ["call_0"]), (["call_0"], []))) == {"tool-1-0": (None, None)}


@pytest.fixture(scope="module")
def by_chance() -> list[Raw]:
    """Runs with repeated, missing and null ids."""
    found: list[Raw] = []

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.lists(_MESSAGE, max_size=6))
    def collect(messages: list[tuple[list[Any], list[Any]]]) -> None:
        found.append(renamed(run_of(*messages), f"run-{len(found)}"))

    collect()
    return found


def test_flat_table_the_view_and_frames_agree(by_chance: list[Raw], trajectory_database: str, tmp_path: Path) -> None:
    converted = convert_batch(batch_of(*by_chance), HOUR, documents=True)
    ParquetStore(str(tmp_path)).write(TRAJECTORIES, parse_partition_key(HOUR), [converted.trajectories])
    database = TrajectoryDatabase(trajectory_database)
    with database.partition(TRAJECTORIES.name, HOUR) as partition:
        with partition.staging() as rows:
            rows.add_batch(converted.trajectories, converted.documents)
        partition.merge()
    columns = ["run_id", "tool", "return_status", "return_text"]
    expected = sorted(
        (run.run_id, tool, *answer) for run in export_runs(by_chance) for tool, answer in flat_answers(run).items()
    )
    assert sum(row[3] is not None for row in expected) > 50
    for table in (
        query_postgres(database, TOOL_CALL_FRAME, Selection(), columns),
        query_parquet(str(tmp_path), TOOL_CALL_FRAME, Selection(), columns).to_arrow_table(),
    ):
        assert sorted(tuple(row[name] for name in columns) for row in table.to_pylist()) == expected


TWICE_AT_ONCE = ((["call_0", "call_0"], []), ([], ["call_0"]), ([], ["call_0"]))


def test_spans_of_two_calls_with_one_id_have_a_return_each() -> None:
    telemetry = telemetry_of(exported(*TWICE_AT_ONCE), openinference=False)
    assert isinstance(telemetry, Telemetry)
    results = {
        span["name"]: one["value"]["stringValue"]
        for span in telemetry.spans
        for one in span["attributes"]
        if one["key"] == "gen_ai.tool.call.result"
    }
    assert {name: "text-1-0" in text for name, text in results.items()} == {
        "execute_tool tool-0-0": True,
        "execute_tool tool-0-1": False,
    }


def test_scout_names_the_tool_of_each_return() -> None:
    row = scout_row(exported(*TWICE_AT_ONCE))
    named = [one.get("function") for one in json.loads(row["messages"]) if one["role"] == "tool"]
    assert named == ["tool-0-0", "tool-0-1"]


def test_atif_takes_no_return_for_that_of_a_call_without_an_id() -> None:
    document, _ = atif_trajectory(exported(([None], []), ([], ["call-0"])), "1.8")
    sources = [step["source"] for step in document["steps"] if "observation" in step]
    assert sources == ["system"]
