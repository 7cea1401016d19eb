"""The declaration of tables: each column is described, and the Arrow schema and the migrated database equal it."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from trajectory_pipeline.schema.arrow import arrow_schema, arrow_type
from trajectory_pipeline.schema.raw import SOURCE_TABLES
from trajectory_pipeline.schema.tables import TABLES
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES, TURN
from trajectory_pipeline.schema.types import (
    Column,
    ListOf,
    Scalar,
    Sink,
    Struct,
    Table,
    Type,
)
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.schema.views import VIEWS
from trajectory_pipeline.storage.postgres.comments import apply_comments, declared_comments
from trajectory_pipeline.storage.postgres.migrate import migrate

IN_POSTGRES = [table for table in TABLES if table.in_sink(Sink.POSTGRES) and table is not REFINED_OUTCOMES]
IN_PARQUET = [table for table in TABLES if table.in_sink(Sink.PARQUET)]

POSTGRES_TYPES = {
    Scalar.STRING: "text",
    Scalar.INT: "bigint",
    Scalar.FLOAT: "double precision",
    Scalar.BOOL: "boolean",
    Scalar.TIMESTAMP: "timestamp with time zone",
    Scalar.NAIVE_TIMESTAMP: "timestamp without time zone",
    Scalar.MONEY: "numeric(18,9)",
    Scalar.JSON: "jsonb",
    Scalar.WORDS: "tsvector",
    Scalar.VECTOR: "halfvec",
}


def name_of(table: Table) -> str:
    return table.name


def every_column(columns: tuple[Column, ...], path: str) -> Iterator[tuple[str, Column]]:
    for column in columns:
        yield f"{path}.{column.name}", column
        inner = column.type.item if isinstance(column.type, ListOf) else column.type
        if isinstance(inner, Struct):
            yield from every_column(inner.fields, f"{path}.{column.name}")


def postgres_type(kind: Type) -> str:
    """The Postgres type of a declared type, independent of the code under test."""
    if isinstance(kind, Scalar):
        return POSTGRES_TYPES[kind]
    if isinstance(kind, ListOf) and isinstance(kind.item, Scalar):
        return f"{POSTGRES_TYPES[kind.item]}[]"
    return "jsonb"


def plain_arrow_type(kind: Type) -> pa.DataType:
    """The Arrow type of a declared type, independent of the code under test."""
    if isinstance(kind, ListOf):
        return pa.list_(plain_arrow_type(kind.item))
    if isinstance(kind, Struct):
        return pa.struct([(column.name, plain_arrow_type(column.type)) for column in kind.fields])
    return {
        Scalar.STRING: pa.string(),
        Scalar.JSON: pa.string(),
        Scalar.INT: pa.int64(),
        Scalar.FLOAT: pa.float64(),
        Scalar.BOOL: pa.bool_(),
        Scalar.TIMESTAMP: pa.timestamp("us", "UTC"),
        Scalar.NAIVE_TIMESTAMP: pa.timestamp("us"),
        Scalar.MONEY: pa.decimal128(18, 9),
    }[kind]


@pytest.mark.parametrize("table", TABLES, ids=name_of)
def test_column_has_a_sentence_as_its_description(table: Table) -> None:
    for path, column in every_column(table.columns, table.name):
        assert column.description.endswith("."), path
        assert "|" not in column.null, path
        assert not column.null.endswith("."), path
        assert 1 <= int(column.since) <= int(SCHEMA_VERSION), path
        assert column.sinks, path
    assert table.description
    assert table.row


@pytest.mark.parametrize("table", TABLES, ids=name_of)
def test_numeric_column_has_a_unit(table: Table) -> None:
    without = {"sequence_id", "http_status", "callback_status_code", "band"}
    for path, column in every_column(table.columns, table.name):
        raw = table.name == "terminal_runs"  # as Letta stores it, whatever that is
        if column.type in (Scalar.INT, Scalar.FLOAT, Scalar.MONEY) and not raw and column.name not in without:
            assert column.unit or "confidence" in column.name, path


@pytest.mark.parametrize("table", TABLES, ids=name_of)
def test_names_are_unique_and_keys_are_never_null(table: Table) -> None:
    names = [column.name for column in table.columns]
    assert len(names) == len(set(names))
    assert table.keys
    assert not any(column.nullable for column in table.columns if column.key)
    assert {name for index in table.indexes for name in index} <= set(names)


@pytest.mark.parametrize("table", IN_PARQUET, ids=name_of)
def test_arrow_schema_equals_the_declaration(table: Table) -> None:
    schema = arrow_schema(table)
    assert schema.names == table.names(Sink.PARQUET)
    for column in table.in_sink(Sink.PARQUET):
        field = schema.field(column.name)
        assert field.type == plain_arrow_type(column.type) == arrow_type(column.type)
        assert field.metadata == {b"description": column.description.encode()}


def test_struct_column_is_nullable_only_where_null_has_a_meaning() -> None:
    structs = {
        path: column
        for table in TABLES
        for path, column in every_column(table.columns, table.name)
        if isinstance(column.type, Struct)
    }
    never_null = {path for path, column in structs.items() if not column.nullable}
    assert never_null == {"terminal_runs.run", "trajectories.signals"}
    error = pa.array(
        [None, {"type": None, "message": None, "detail": None}], arrow_type(structs_of_turn()["error"].type)
    )
    assert error.to_pylist() == [None, {"type": None, "message": None, "detail": None}]


def structs_of_turn() -> dict[str, Column]:
    return {column.name: column for column in TURN if isinstance(column.type, Struct)}


def test_scalar_column_of_a_trajectory_has_a_document_path() -> None:
    absent = {
        "escaped",
        "content_digest",
        "context_digest",
        "schema_version",
        "signals_version",
        "partition_key",
        "deleted_at",
        "erased",
    }
    for column in TRAJECTORIES.in_sink(Sink.PARQUET):
        assert (column.document is None) == (column.name in absent | {"context"}), column.name
    places = [column.document for column in TRAJECTORIES.columns if column.document]
    assert len(places) == len(set(places))


def test_source_column_is_since_a_verified_letta_version() -> None:
    for table in SOURCE_TABLES:
        for column in table.columns:
            assert column.since in ("0.12.0", "0.14.0", "0.16.1", "0.16.8"), f"{table.name}.{column.name}"
            assert not (column.required and column.since != "0.12.0"), f"{table.name}.{column.name}"


# ---- migrated database --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog(migrated_database: str) -> dict[str, dict[str, tuple[str, bool]]]:
    """Type and nullability of each column of each table in the schema, as Postgres returns them."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    with psycopg.connect(migrated_database) as connection:
        for table, column, kind, required in connection.execute(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE n.nspname = 'trajectory' AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped"
            " ORDER BY c.relname, a.attnum"
        ):
            found.setdefault(table, {})[column] = (kind, not required)
    return found


def test_migrated_database_has_exactly_the_declared_tables(
    catalog: dict[str, dict[str, tuple[str, bool]]],
) -> None:
    declared = {table.name for table in (*IN_POSTGRES, *VIEWS)}
    assert set(catalog) == declared | {"alembic_version"}


@pytest.mark.parametrize("table", IN_POSTGRES, ids=name_of)
def test_migrated_table_has_the_declared_columns(catalog: dict[str, dict[str, tuple[str, bool]]], table: Table) -> None:
    declared = {column.name: (postgres_type(column.type), column.nullable) for column in table.in_sink(Sink.POSTGRES)}
    assert list(catalog[table.name].items()) == list(declared.items())


@pytest.mark.parametrize("table", IN_POSTGRES, ids=name_of)
def test_migrated_table_has_the_declared_key_and_indexes(migrated_database: str, table: Table) -> None:
    with psycopg.connect(migrated_database) as connection:
        indexes = connection.execute(
            "SELECT i.indisprimary, i.indpred IS NOT NULL OR m.amname <> 'btree',"
            " array_agg(a.attname::text ORDER BY k.place)"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam,"
            " unnest(i.indkey) WITH ORDINALITY k (number, place), pg_attribute a"
            " WHERE i.indrelid = %s::regclass AND a.attrelid = i.indrelid AND a.attnum = k.number"
            " AND k.place <= i.indnkeyatts"
            " GROUP BY i.indexrelid, 1, 2",
            [f"trajectory.{table.name}"],
        ).fetchall()
    assert [tuple(columns) for primary, _, columns in indexes if primary] == [table.keys]
    declared = {tuple(columns) for primary, special, columns in indexes if not primary and not special}
    assert declared == set(table.indexes)


@pytest.mark.parametrize("view", VIEWS, ids=name_of)
def test_migrated_view_has_the_declared_columns(
    catalog: dict[str, dict[str, tuple[str, bool]]], migrated_database: str, view: Table
) -> None:
    columns = {name: kind for name, (kind, _) in catalog[view.name].items()}
    assert list(columns.items()) == [(column.name, postgres_type(column.type)) for column in view.columns]
    with psycopg.connect(migrated_database) as connection:
        assert connection.execute(f"SELECT * FROM trajectory.{view.name}".encode()).fetchall() == []


# ---- comments -----------------------------------------------------------------------------------------------------


def comments(url: str) -> dict[tuple[str, str], str]:
    """Comment of each table, view and column of the schema, as Postgres returns them; empty where there is none."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT c.relname, '', coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class c"
            " WHERE c.relnamespace = 'trajectory'::regnamespace AND c.relkind IN ('r', 'v')"
            " UNION ALL SELECT c.relname, a.attname, coalesce(col_description(c.oid, a.attnum), '')"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relnamespace = 'trajectory'::regnamespace AND c.relkind IN ('r', 'v')"
        ).fetchall()
    return {(table, column): text for table, column, text in rows}


def test_migrated_database_has_the_declared_comments(migrated_database: str) -> None:
    found = comments(migrated_database)
    assert found == declared_comments()
    assert all(found.values())
    assert found["outcomes", "judge_cost_usd"] == (
        "Cost of all calls; a lost call counts at its largest possible cost. Unit: USD. Null: no verdict or no known"
        " price."
    )


def test_migrate_restores_changed_and_removed_comments(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        assert apply_comments(connection) == 0
        connection.execute("COMMENT ON VIEW trajectory.outcomes IS 'mine'")
        connection.execute("COMMENT ON COLUMN trajectory.verdicts.outcome IS NULL")
    migrate(trajectory_database)
    assert comments(trajectory_database) == declared_comments()


def test_retention_page_names_the_bound_of_every_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "retention.md").read_text().partition("## What grows")[2]
    assert [table.name for table in TABLES if f"`{table.name}`" not in page] == []
