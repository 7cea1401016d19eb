"""Tries to read whatever a capture reads, so that a missing right shows before a capture fails."""

from collections.abc import Sequence
from datetime import datetime

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.letta.fingerprint import dependency_digests, fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.schema.raw import SOURCE_TABLES, SourceTable


def find_unreadable_tables(source: LettaSource, start: datetime, end: datetime) -> list[str]:
    """Try every statement of a capture, and return a sentence for each that the source refuses.

    Raises:
        SourceError: the source cannot be reached, or lacks what is required.
    """
    refused: list[str] = []
    with source.pooled() as pooled:
        with pooled.snapshot() as snapshot:
            found = [table for table in SOURCE_TABLES if snapshot.catalog.has(table)]
        for table in found:
            names = [column.name for column in table.columns]
            error = _error(pooled, table, names)
            if error is not None:
                columns = [name for name in names if _error(pooled, table, [name]) is not None]
                what = "every column" if columns == names else ", ".join(columns) or "the version of its rows (xmin)"
                refused.append(f"{table.name}, {what}: {error}")
        if not refused:
            # A query over several tables may fail where each can be read: a missing operator, a timeout.
            with pooled.snapshot() as snapshot:
                fingerprints(snapshot, start, end)
                dependency_digests(snapshot, start, end)
                next(snapshot.tables_of_runs(start, start), None)
    return refused


def _error(source: LettaSource, table: SourceTable, names: Sequence[str]) -> SourceError | None:
    try:
        # In a transaction of its own: after an error, nothing more can be asked in it.
        with source.snapshot() as snapshot:
            snapshot.read(f"Reading {table.name}", _reading(snapshot, table, names))
    except SourceError as error:
        return error
    return None


def _reading(snapshot: Snapshot, table: SourceTable, names: Sequence[str]) -> str:
    expressions = [snapshot.catalog.expression(table, name, "t") for name in names]
    if len(names) == len(table.columns):
        expressions.append(snapshot.catalog.row_version(table, "t"))
    # The server checks all rights before it finds that there is no row.
    return f"SELECT {', '.join(expressions)} FROM {snapshot.catalog.table(table)} t WHERE false"
