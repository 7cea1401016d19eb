"""Column lineage, for the UI: read from the ``source`` of the declared columns."""

import re
from collections.abc import Iterator, Sequence

import dagster as dg

from trajectory_pipeline.schema.raw import SOURCE_TABLES, TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Struct, Table

_REFERENCE = re.compile(r"\b([a-z_]+)\.([a-z_]+)")
_LETTA_COLUMNS = {(table.name, column.name) for table in SOURCE_TABLES for column in table.columns}
_KNOWN = _LETTA_COLUMNS | {(TRAJECTORIES.name, column.name) for column in TRAJECTORIES.columns}

Reference = tuple[str, str]
"""A table and its column."""


def references(column: Column, siblings: Sequence[Column]) -> set[Reference]:
    """Return the columns that a column comes from: those that its ``source`` names, and those of its fields.

    A source may also name ``siblings``: then it comes from what they come from.
    """
    found = {pair for pair in _REFERENCE.findall(column.source) if pair in _KNOWN}
    parts = set(re.split(r",? else |, ", column.source)) - {column.name}
    for sibling in siblings:
        if sibling.name in parts:
            found |= references(sibling, siblings)
    for field in _fields(column):
        found |= references(field, _fields(column))
    return found


def column_lineage(table: Table, source_assets: Sequence[str]) -> dg.TableColumnLineage:
    """Return which columns of the upstream assets each column comes from.

    A field of the raw rows is a column of its own, ``run.agent_id``: so one column of the source can be followed.
    ``source_assets`` are the names of Letta's tables that are assets.
    """
    raw = {reference: path for path, found in reversed(list(_raw_fields())) for reference in found}

    def upstream(reference: Reference) -> dg.TableColumnDep | None:
        name, column = reference
        if name == TRAJECTORIES.name:
            return dg.TableColumnDep(dg.AssetKey(name), column)
        if table is not TERMINAL_RUNS:
            return dg.TableColumnDep(dg.AssetKey(TERMINAL_RUNS.name), raw[reference]) if reference in raw else None
        return dg.TableColumnDep(dg.AssetKey(["letta", name]), column) if name in source_assets else None

    paths = [(column.name, references(column, table.columns)) for column in table.columns]
    if table is TERMINAL_RUNS:
        paths += _raw_fields()
    deps = {path: list(filter(None, map(upstream, sorted(found)))) for path, found in paths}
    return dg.TableColumnLineage({path: found for path, found in deps.items() if found})


def _raw_fields() -> Iterator[tuple[str, set[Reference]]]:
    for column in TERMINAL_RUNS.columns:
        if column.source:
            yield column.name, references(column, ())
        for field in _fields(column):
            yield f"{column.name}.{field.name}", references(field, ())


def _fields(column: Column) -> tuple[Column, ...]:
    kind = column.type.item if isinstance(column.type, ListOf) else column.type
    return kind.fields if isinstance(kind, Struct) else ()
