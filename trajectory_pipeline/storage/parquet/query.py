"""Frames from the Parquet files, as lazy DuckDB relations."""

import posixpath
import uuid
from typing import Any

import duckdb
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from trajectory_pipeline.runtime import private_files
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.frames import MESSAGE_FRAME, TOOL_CALL_FRAME, TRAJECTORY_FRAME, VERDICT_FRAME
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Sink, Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.parquet import filesystem as filesystems
from trajectory_pipeline.storage.parquet.store import FILE_NAME, hour_folder
from trajectory_pipeline.storage.selection import Selection

_RUN = "run_id, agent_id, agent_name, organization_id, end_time"

# Several unnest() in one SELECT are read side by side, so that each element keeps its position.
_TURNS = f"SELECT {_RUN}, unnest(turns) AS turn, generate_subscripts(turns, 1) AS turn_index FROM chosen"
_MESSAGES = (
    f"SELECT {_RUN}, turn, turn_index, unnest(turn.messages) AS message,"
    f" generate_subscripts(turn.messages, 1) AS message_index FROM ({_TURNS})"
)
_CALLS = (
    f"SELECT {_RUN}, turn_index, turn.step_id, message_index, message, unnest(message.tool_calls) AS call,"
    f" generate_subscripts(message.tool_calls, 1) AS call_index FROM ({_MESSAGES})"
)
_RETURNS = (
    "SELECT run_id, start_time, continues_run_id, turn_index, turn.step_id, message_index,"
    " message.message_id AS return_message_id, unnest(message.tool_returns) AS back,"
    " generate_subscripts(message.tool_returns, 1) AS return_index"
    " FROM (SELECT *, unnest(turn.messages) AS message, generate_subscripts(turn.messages, 1) AS message_index"
    " FROM (SELECT run_id, start_time, continues_run_id, unnest(turns) AS turn,"
    " generate_subscripts(turns, 1) AS turn_index FROM trajectories"
    " WHERE run_id IN (SELECT run_id FROM chosen)"
    " OR (deleted_at IS NULL AND continues_run_id IN (SELECT run_id FROM chosen))))"
)
_FRAMES = {
    TRAJECTORY_FRAME: "SELECT {columns} FROM chosen",
    VERDICT_FRAME: "SELECT {columns} FROM verdicts WHERE run_id IN (SELECT run_id FROM chosen)",
    MESSAGE_FRAME: (
        "SELECT {columns} FROM (SELECT *, message.message_id, message.role, message.kind, message.timestamp,"
        " message.is_deleted, message.assistant_text,"
        " CASE WHEN len(list_filter(message.content, lambda part: part.type = 'text' AND part.text IS NOT NULL)) > 0"
        " THEN array_to_string(list_transform(list_filter(message.content,"
        " lambda part: part.type = 'text' AND part.text IS NOT NULL), lambda part: part.text), chr(10)) END AS text,"
        " len(message.tool_calls) AS tool_calls, len(message.tool_returns) AS tool_returns"
        f" FROM ({_MESSAGES}))"
    ),
    # As the view in Postgres: the first return of the call's id that a later message of the run has, else a run that
    # continues it, in the turn of the step that asked.
    TOOL_CALL_FRAME: (
        f"SELECT {{columns}} FROM (SELECT calls.*, message.message_id, message.timestamp AS called_at,"
        " call.id AS tool_call_id, call.name AS tool, call.arguments, returns.return_message_id,"
        " returns.back.status AS return_status, returns.back.denied AS denied, returns.back.text AS return_text,"
        " returns.run_id AS return_run_id"
        f" FROM ({_CALLS}) calls LEFT JOIN ({_RETURNS}) returns ON returns.back.tool_call_id = calls.call.id"
        " AND CASE WHEN returns.run_id = calls.run_id"
        " THEN (returns.turn_index, returns.message_index) > (calls.turn_index, calls.message_index)"
        " ELSE returns.continues_run_id = calls.run_id AND returns.step_id = calls.step_id END"
        " QUALIFY row_number() OVER (PARTITION BY calls.run_id, calls.turn_index, calls.message_index, call_index"
        " ORDER BY returns.run_id <> calls.run_id, returns.start_time, returns.run_id, returns.turn_index,"
        " returns.message_index, returns.return_index) = 1)"
    ),
}


def query_parquet(uri: str, frame: Table, selection: Selection, columns: list[str]) -> duckdb.DuckDBPyRelation:
    """Return rows of a frame as a relation that is read when it is used.

    Args:
        uri: the storage.
        frame: one of ``schema.frames``.
        selection: which runs.
        columns: names of the frame's columns; for trajectories also ``turns`` and ``context``.

    Raises:
        SinkError: the storage cannot be listed.
    """
    # What does not fit into memory goes into a folder that no other user can read, and not into the working directory.
    with filesystems.translating_errors("Preparing to read", uri, "Set TMPDIR to a folder that this user may write."):
        spill = private_files.temp_folder() / f"duckdb-{uuid.uuid4().hex}"
    connection = duckdb.connect(config={"temp_directory": str(spill)})
    connection.execute("SET TimeZone = 'UTC'")
    conditions, parameters = _conditions(selection)
    chosen = _files(connection, uri, TRAJECTORIES, selection)
    connection.execute(f"CREATE VIEW trajectories AS {chosen}")
    relation = connection.sql(f"SELECT * FROM trajectories WHERE {conditions}", params=parameters)
    relation.create_view("chosen")
    if frame is VERDICT_FRAME:
        connection.execute(f"CREATE VIEW verdicts AS {_files(connection, uri, REFINED_OUTCOMES, selection)}")
    return connection.sql(_FRAMES[frame].format(columns=", ".join(f'"{name}"' for name in columns)))


def _conditions(selection: Selection) -> tuple[str, list[Any]]:
    tests = {
        "(list_contains(?, agent_id) OR list_contains(?, agent_name))": selection.agents,
        "list_contains(?, organization_id)": selection.organizations,
        "list_contains(?, run_id)": selection.run_ids,
    }
    conditions, parameters = ["true"], list[Any]()
    for condition, values in tests.items():
        if values:
            conditions.append(condition)
            parameters += [list(values)] * condition.count("?")
    if not selection.deleted:
        conditions.append("deleted_at IS NULL")
    return " AND ".join(conditions), parameters


def _files(connection: duckdb.DuckDBPyConnection, uri: str, table: Table, selection: Selection) -> str:
    """Return SQL over the files of an asset's partitions; over no rows where there are none."""
    target = posixpath.join(uri.rstrip("/"), table.name)
    filesystem, root = filesystems.filesystem_of(uri, target)
    with filesystems.translating_read_errors(target):
        folders = filesystems.folders_with_files(filesystem, root, FILE_NAME)
    first = hour_folder(selection.start) if selection.start else ""
    after_last = hour_folder(selection.end) if selection.end else "hour=~"
    chosen = sorted(name for name in folders if name.startswith("hour=") and first <= name < after_last)
    if not chosen:
        empty = pa.Table.from_pylist([], arrow_schema(table))
        connection.register(f"no_{table.name}", empty)
        return f"SELECT * FROM no_{table.name}"
    paths = [posixpath.join(root, name, FILE_NAME) for name in chosen]
    if not isinstance(filesystem, LocalFileSystem):
        connection.register_filesystem(filesystem)
        scheme = filesystem.protocol if isinstance(filesystem.protocol, str) else filesystem.protocol[0]
        paths = [f"{scheme}://{path}" for path in paths]
    quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return f"SELECT * FROM read_parquet([{quoted}], union_by_name = true, hive_partitioning = false)"


def readable_columns(frame: Table) -> list[str]:
    """Return the names that ``query_parquet`` accepts for a frame, those of the frame itself first."""
    names = [column.name for column in frame.columns]
    if frame is TRAJECTORY_FRAME:
        names += [name for name in TRAJECTORIES.names(Sink.PARQUET) if name not in names]
    return names
