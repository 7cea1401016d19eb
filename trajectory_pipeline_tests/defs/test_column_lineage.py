"""Column lineage: every column of data leads to columns that exist, back to Letta's tables."""

import dagster as dg
import pytest

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.schema.raw import SOURCE_TABLES, TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Struct, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.conftest import make_settings

Deps = dict[str, set[tuple[str, str]]]
BOOKKEEPING = {
    # When and how the pipeline wrote a row: of no column of the source.
    *("schema_version", "signals_version", "deleted_at", "erased", "escaped", "data_omitted_reason"),
    *("first_captured_at", "created_at", "updated_at"),
}
OF_THE_CALLS = {
    # What the judge's server reported, and what became of the verdict.
    *("verdict_key", "policy_id", "verdict_status", "model", "simulated", "input_tokens", "cached_input_tokens"),
    *("output_tokens", "cost_usd", "attempts", "error_class", "error_message", "raw_response", "judged_at"),
    *("response_format", "failures", "next_attempt_at", "deferred_usd", "deferred_tokens", "windows", "repetition"),
    # How several judges voted.
    *("votes", "vote_agreement", "escalation"),
}


@pytest.fixture(scope="module")
def lineage() -> dict[str, Deps]:
    graph = build_defs(make_settings()).resolve_asset_graph()
    return {
        name: {
            column: {(dep.asset_key.to_user_string(), dep.column_name) for dep in deps}
            for column, deps in graph.get(dg.AssetKey(name)).metadata["dagster/column_lineage"].deps_by_column.items()
        }
        for name in ("terminal_runs", "trajectories", "refined_outcomes")
    }


def paths(table: Table) -> set[str]:
    """The columns of a table, and the fields of its structs as ``column.field``."""

    def fields(column: Column) -> tuple[Column, ...]:
        kind = column.type.item if isinstance(column.type, ListOf) else column.type
        return kind.fields if isinstance(kind, Struct) else ()

    return {path for one in table.columns for path in (one.name, *(f"{one.name}.{each.name}" for each in fields(one)))}


def test_lineage_names_only_columns_that_exist(lineage: dict[str, Deps]) -> None:
    existing = {f"letta/{table.name}": {column.name for column in table.columns} for table in SOURCE_TABLES}
    existing |= {table.name: paths(table) for table in (TERMINAL_RUNS, TRAJECTORIES, REFINED_OUTCOMES)}
    for name, columns in lineage.items():
        assert set(columns) <= existing[name]
        for deps in columns.values():
            assert {(asset, column) for asset, column in deps if column not in existing[asset]} == set()


@pytest.mark.parametrize(
    ("table", "without"), [(TRAJECTORIES, BOOKKEEPING), (REFINED_OUTCOMES, BOOKKEEPING | OF_THE_CALLS)]
)
def test_lineage_has_every_column_but_those_of_the_pipeline(
    lineage: dict[str, Deps], table: Table, without: set[str]
) -> None:
    names = {column.name for column in table.columns}
    assert names - set(lineage[table.name]) == names & without


@pytest.mark.parametrize("source", ["runs", "steps", "messages"])
def test_lineage_of_raw_rows_has_every_column_of_a_source_table(lineage: dict[str, Deps], source: str) -> None:
    [table] = [table for table in SOURCE_TABLES if table.name == source]
    column = "run" if source == "runs" else source
    assert lineage["terminal_runs"][column] == {(f"letta/{source}", each.name) for each in table.columns}
    for each in table.columns:
        assert lineage["terminal_runs"][f"{column}.{each.name}"] == {(f"letta/{source}", each.name)}


@pytest.mark.parametrize(
    ("verdict_column", "source"),
    [
        ("outcome", ("letta/messages", "content")),
        ("failure_mode", ("letta/steps", "error_data")),
        ("disagrees", ("letta/runs", "stop_reason")),
        ("run_id", ("letta/runs", "id")),
        ("content_digest", ("letta/messages", "content")),
    ],
)
def test_lineage_leads_from_a_verdict_to_the_source(
    lineage: dict[str, Deps], verdict_column: str, source: tuple[str, str]
) -> None:
    reached, waiting = set[tuple[str, str]](), {("refined_outcomes", verdict_column)}
    while waiting:
        asset, column = waiting.pop()
        new = lineage.get(asset, {}).get(column, set()) - reached
        reached |= new
        waiting |= new
    assert source in reached
