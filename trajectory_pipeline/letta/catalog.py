"""Which of the known tables and columns a Letta database has: they come and go between Letta versions."""

from dataclasses import dataclass, field
from functools import lru_cache

from trajectory_pipeline.errors import MissingTableError, SourceError
from trajectory_pipeline.letta.connection import Begun, identifier, literal, literal_array, reading
from trajectory_pipeline.schema.raw import SOURCE_TABLES, SourceTable
from trajectory_pipeline.schema.types import Scalar
from trajectory_pipeline.urls import describe_postgres

_CAST = {Scalar.STRING: "text", Scalar.JSON: "text", Scalar.INT: "bigint", Scalar.BOOL: "boolean"}


@dataclass(frozen=True)
class Catalog:
    """The known tables that a database has, all in one schema: by table, the Postgres type of each column it has."""

    schema: str
    columns: dict[str, dict[str, str]]
    _select_lists: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def has(self, table: SourceTable) -> bool:
        """Whether the table is there with all its required columns."""
        required = {column.name for column in table.columns if column.required}
        return table.name in self.columns and required <= self.columns[table.name].keys()

    def table(self, table: SourceTable) -> str:
        """Return the table's qualified name, quoted."""
        return f"{identifier(self.schema)}.{identifier(table.name)}"

    def expression(self, table: SourceTable, column: str, alias: str) -> str:
        """Return the SQL expression that reads a column as its declared type; null where the database lacks it."""
        declared = next(known.type for known in table.columns if known.name == column)
        stored = self.columns.get(table.name, {}).get(column)
        name = f"{alias}.{identifier(column)}"
        if declared in _CAST:
            return f"{name if stored else 'NULL'}::{_CAST[declared]}"
        zoned = declared is Scalar.TIMESTAMP
        if stored is None:
            return "NULL::timestamptz" if zoned else "NULL::timestamp"
        if zoned != (stored == "timestamp with time zone"):
            name = f"({name} AT TIME ZONE 'UTC')"
        # Arrow has no infinity: the driver would turn it into a time.
        return f"CASE WHEN isfinite({name}) THEN {name} END"

    def row_version(self, table: SourceTable, alias: str) -> str:
        """Return the SQL expression, as text, that any change to a row changes: its ``xmin``, or its whole text."""
        return f"{alias}.xmin::text" if "xmin" in self.columns.get(table.name, {}) else f"{alias}::text"

    def any_of(self, table: SourceTable, column: str, alias: str, values: list[str]) -> str:
        """Return the SQL condition that a column is one of these values, compared as its own type."""
        stored = self.columns.get(table.name, {}).get(column, "text")
        return f"{alias}.{identifier(column)} = ANY({literal_array(values, stored)})"

    def select_list(self, table: SourceTable, alias: str) -> str:
        """Return the SELECT list of all known columns, each under its own name."""
        key = table.name, alias
        if key not in self._select_lists:
            self._select_lists[key] = ", ".join(
                f"{self.expression(table, column.name, alias)} AS {identifier(column.name)}" for column in table.columns
            )
        return self._select_lists[key]

    @property
    def unknown_columns(self) -> list[str]:
        """Unknown columns of the tables, as ``table.column``: from a newer Letta, or custom."""
        # Only a few columns of these concern a trajectory, so the others are not reported.
        partly_read = {"agents", "tools", "provider_traces", "run_metrics", "step_metrics"}
        return sorted(
            f"{table.name}.{column}"
            for table in SOURCE_TABLES
            if table.name not in partly_read
            for column in self.columns.get(table.name, {}).keys() - {known.name for known in table.columns} - {"xmin"}
        )

    @property
    def absent_columns(self) -> list[str]:
        """Known columns that the database lacks, as ``table.column``: an older Letta; they read as null."""
        return sorted(
            f"{table.name}.{column.name}"
            for table in SOURCE_TABLES
            if table.name in self.columns
            for column in table.columns
            if column.name not in self.columns[table.name]
        )


# Rows of a foreign table have no version of their own, nor have those of a table that includes one.
_VERSIONED = (
    "NOT EXISTS (WITH RECURSIVE part(oid) AS (SELECT c.oid UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i"
    " JOIN part ON i.inhparent = part.oid) SELECT FROM part JOIN pg_catalog.pg_class p ON p.oid = part.oid"
    " LEFT JOIN pg_catalog.pg_am m ON m.oid = p.relam"
    " WHERE p.relkind <> 'p' AND (p.relkind <> 'r' OR m.amname <> 'heap'))"
)


def read_catalog(begun: Begun, url: str) -> Catalog:
    """Ask a database which of the known tables and columns it has.

    A row's ``xmin`` tells that it did not change in one known cluster only.

    Searches the user's ``search_path``, then ``public``, then all other schemas, and takes the first schema that has
    what is required (Dagster's storage has a table ``runs`` too).

    Raises:
        SourceError: a required table or column is missing, or the encoding is unknown; the text names it.
    """
    names = ", ".join(literal(table.name) for table in SOURCE_TABLES)
    versioned = _VERSIONED if begun.identity.cluster is not None else "false"
    search_path = literal_array(begun.search_path, "name")
    with reading(url, "Reading the catalog"), begun.connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_encoding')")
        if cursor.fetchone() == ("SQL_ASCII",):
            raise SourceError(
                f"The source {describe_postgres(url)} has the encoding SQL_ASCII: Postgres does not know what its bytes"
                " mean, so no text can be read for sure. Dump it, restore it into a database with the encoding of the"
                " dump (CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0), and name that in LETTA_PG_URI."
            )
        # pg_catalog shows tables that the user may not read, too; reading one then fails with that reason.
        cursor.execute(
            "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, NULL)::text"
            " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped"
            f" AND (a.attnum > 0 OR a.attname = 'xmin' AND {versioned})"
            f" WHERE c.relname IN ({names}) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            " AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT pg_is_other_temp_schema(n.oid)"
            f" ORDER BY array_position({search_path}, n.nspname) NULLS LAST,"
            " n.nspname <> 'public', n.nspname, c.relname, a.attnum"
        )
        rows = tuple(zip(*cursor.fetch_arrow_table().to_pydict().values(), strict=True))
    catalog = _catalog_of(rows)
    _require_columns(catalog, url)
    return catalog


# Every snapshot finds the same rows, so what follows from them is computed once.
@lru_cache(maxsize=8)
def _catalog_of(rows: tuple[tuple[str, str, str, str], ...]) -> Catalog:
    found: dict[str, dict[str, dict[str, str]]] = {}
    for namespace, table, column, kind in rows:
        found.setdefault(namespace, {}).setdefault(table, {})[column] = kind
    candidates = [Catalog(schema, columns) for schema, columns in found.items()]
    # Where none has everything, the error is about the first that lacks least.
    return min(candidates, key=lambda candidate: len(_missing(candidate)), default=Catalog("public", {}))


def _missing(catalog: Catalog) -> list[tuple[str, str]]:
    return [
        (table.name, column.name)
        for table in SOURCE_TABLES
        if table.required
        for column in table.columns
        if column.required and column.name not in catalog.columns.get(table.name, {})
    ]


def _require_columns(catalog: Catalog, url: str) -> None:
    missing = _missing(catalog)
    if not missing:
        return
    table = missing[0][0]
    if table not in catalog.columns:
        raise MissingTableError(
            f"The source {describe_postgres(url)} has no table {table!r}: is it the database of a Letta server"
            " (0.12 or later)? Check the database name in LETTA_PG_URI. Where that is unset, the embedded server is"
            " read, which has only what `trajectory-pipeline load-sample` loads."
        )
    columns = ", ".join(repr(column) for table_name, column in missing if table_name == table)
    raise SourceError(
        f"The table {catalog.schema}.{table} of the source {describe_postgres(url)} lacks the required column(s)"
        f" {columns}:"
        " this version of Letta is not supported (0.12 to 0.16.8 are). Check the database name in LETTA_PG_URI."
    )
