"""The frames for notebooks: the same rows from Parquet and Postgres, filters, and errors that say what to write."""

import contextlib
import json
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

from trajectory_pipeline import reading
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.reading import Frame
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

FRAMES = [reading.trajectories, reading.messages, reading.tool_calls, reading.verdicts]


@pytest.fixture(scope="module")
def materialized(make_own_settings: Callable[[], Settings], running_judge: object) -> Settings:
    """Settings of a sample that is captured, converted and judged."""
    settings = make_own_settings()
    pipeline = Pipeline(
        settings.source.postgres_url,
        settings.storage.database_url,
        settings.storage.data_folder / "parquet",
        running_judge.base_url,  # type: ignore[attr-defined]  # the session's judge
    )
    hours = list(sample_partitions())
    pipeline.capture(*hours)
    run = pipeline.refine_range(hours)
    for hour in hours:
        run.publish(hour)
    return settings


@pytest.fixture(autouse=True)
def _use(materialized: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "load_settings", lambda: materialized)


def sorted_rows(table: pa.Table) -> list[str]:
    return sorted(json.dumps(_decoded(row), sort_keys=True, default=str) for row in table.to_pylist())


def _decoded(value: object) -> object:
    """Decode text that is JSON: jsonb writes the same value in another way."""
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


@pytest.mark.parametrize("frame", FRAMES)
def test_frame_is_the_same_from_parquet_and_postgres(frame: Callable[..., Frame]) -> None:
    from_parquet, from_postgres = frame().to_arrow(), frame(read_from="postgres").to_arrow()
    assert from_parquet.schema.equals(from_postgres.schema)
    assert from_parquet.num_rows > 0
    assert sorted_rows(from_parquet) == sorted_rows(from_postgres)


def test_trajectories_cover_every_run() -> None:
    assert reading.trajectories().to_arrow().num_rows == sum(sample_partitions().values())


def test_range_selects_partitions_from_start_up_to_end() -> None:
    hours = list(sample_partitions().items())
    (first, size), (second, _) = hours[:2]
    for read_from in ("parquet", "postgres"):
        frame = reading.trajectories(first, second, read_from=read_from)  # type: ignore[arg-type]  # both are literals
        assert frame.to_arrow().num_rows == size


@pytest.mark.parametrize(
    "start",
    [
        "2026-11-19",
        date(2026, 11, 19),
        datetime(2026, 11, 19),
        datetime(2026, 11, 19, 2, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_start_in_each_form_means_the_same_hour(start: reading.Moment) -> None:
    expected = sum(size for hour, size in sample_partitions().items() if hour.isoformat() >= "2026-11-19T00")
    assert reading.trajectories(start).to_arrow().num_rows == expected


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("read_from", ["parquet", "postgres"])
def test_filters_select_runs(frame: Callable[..., Frame], read_from: str) -> None:
    runs = reading.trajectories(columns=["run_id", "agent_id", "agent_name", "organization_id"]).to_arrow().to_pylist()
    one = runs[0]
    of_agent = {run["run_id"] for run in runs if run["agent_id"] == one["agent_id"]}
    for agent in (one["agent_id"], one["agent_name"], [one["agent_name"], "agent-none"]):
        found = frame(agent=agent, read_from=read_from).to_arrow()
        assert set(found["run_id"].to_pylist()) <= of_agent | {
            run["run_id"] for run in runs if run["agent_name"] == one["agent_name"]
        }
    only = frame(run_id=one["run_id"], organization=one["organization_id"], read_from=read_from).to_arrow()
    assert set(only["run_id"].to_pylist()) <= {one["run_id"]}
    assert frame(agent="agent-none", read_from=read_from).to_arrow().num_rows == 0


def test_frame_without_files_has_columns_and_no_rows(materialized: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = change_settings(materialized, storage__data_folder=materialized.storage.data_folder / "none")
    monkeypatch.setattr(reading, "load_settings", lambda: empty)
    for frame in FRAMES:
        table = frame().to_arrow()
        assert (table.num_rows, table.column_names) == (0, list(frame().columns))


def test_to_pandas_keeps_integers_with_nulls_and_decimals() -> None:
    frame = reading.verdicts().to_pandas()
    assert isinstance(frame["input_tokens"].dtype, pd.ArrowDtype)
    assert frame["input_tokens"].isna().any()
    assert isinstance(frame["cost_usd"].dropna().iloc[0], Decimal)
    assert str(reading.trajectories().to_pandas()["end_time"].dtype) == "timestamp[us, tz=UTC][pyarrow]"


@pytest.mark.parametrize("read_from", ["parquet", "postgres"])
def test_to_duckdb_gives_a_relation(read_from: reading.ReadFrom) -> None:
    relation = reading.tool_calls(read_from=read_from).to_duckdb()
    assert isinstance(relation, duckdb.DuckDBPyRelation)
    counts = relation.aggregate("tool, count(*)").fetchall()
    assert sum(count for _, count in counts) == reading.tool_calls().to_arrow().num_rows


def test_trajectories_from_parquet_may_have_turns() -> None:
    (row,) = reading.trajectories(run_id=first_run(), columns=["run_id", "turns"]).to_arrow().to_pylist()
    assert row["turns"][0]["messages"]


def first_run() -> str:
    runs = reading.trajectories(columns=["run_id", "step_count"]).to_arrow().to_pylist()
    return next(run["run_id"] for run in runs if run["step_count"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "yesterday"}, "'yesterday' is no time"),
        ({"start": "2026-11-20T09:30"}, "start must be a full hour"),
        ({"start": "2026-11-20", "end": "2026-11-20"}, "must be before end"),
        ({"columns": ["run_id", "nothing"]}, "has no column nothing. It has: run_id,"),
        ({"columns": ["turns"], "read_from": "postgres"}, "from postgres has no column turns"),
        ({"read_from": "csv"}, "must be 'parquet' or 'postgres', not 'csv'"),
    ],
)
def test_wrong_argument_is_an_error_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        reading.trajectories(**arguments)  # type: ignore[arg-type]  # wrong on purpose
