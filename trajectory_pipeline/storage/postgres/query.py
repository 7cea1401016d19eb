"""Frames from the trajectory database, as Arrow tables."""

import json
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.arrow import arrow_type
from trajectory_pipeline.schema.frames import MESSAGE_FRAME, TOOL_CALL_FRAME, TRAJECTORY_FRAME, VERDICT_FRAME
from trajectory_pipeline.schema.types import Scalar, Struct, Table
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.selection import Selection

_BATCH_ROWS = 5_000
_FRAMES = {
    TRAJECTORY_FRAME: "trajectory.trajectories f",
    VERDICT_FRAME: "trajectory.verdicts f JOIN trajectory.policies p ON p.policy_id = f.policy_id AND p.is_current"
    " AND f.repetition = 0",
    MESSAGE_FRAME: "trajectory.messages f",
    TOOL_CALL_FRAME: "trajectory.tool_calls f",
}


def query_postgres(database: TrajectoryDatabase, frame: Table, selection: Selection, columns: list[str]) -> pa.Table:
    """Return rows of a frame. Verdicts are those under the current policy; JSON columns are text.

    Raises:
        SinkError: the database cannot be reached, is not migrated, or refuses.
    """
    conditions, parameters = _conditions(selection)
    names = sql.SQL(", ").join(sql.Identifier("f", name) for name in columns)
    statement = sql.SQL("SELECT {} FROM {} JOIN trajectory.trajectories t ON t.run_id = f.run_id WHERE {}").format(
        names, sql.SQL(_FRAMES[frame]), sql.SQL(conditions)
    )
    schema = pa.schema([pa.field(name, arrow_type(frame[name].type)) for name in columns])
    structs = {name: kind for name in columns if isinstance(kind := frame[name].type, Struct)}
    batches: list[pa.RecordBatch] = []
    with database.connect() as connection, translating_database_errors(database.url, "Reading rows"):
        # A cursor on the server: all rows at once would be held twice.
        cursor: psycopg.ServerCursor[dict[str, Any]] = connection.cursor("frame", row_factory=dict_row)
        cursor.adapters.register_loader("jsonb", TextLoader)
        with cursor:
            cursor.execute(statement, parameters)
            while rows := cursor.fetchmany(_BATCH_ROWS):
                for name, struct in structs.items():
                    for row in rows:
                        row[name] = row[name] and _struct_value(json.loads(row[name]), struct)
                batches.append(pa.RecordBatch.from_pylist(rows, schema))
    return pa.Table.from_batches(batches, schema)


def _struct_value(value: dict[str, Any], struct: Struct) -> dict[str, Any]:
    """Return an object of a jsonb column as Arrow's struct takes it: fields with free-form JSON as text."""
    json_fields = {field.name for field in struct.fields if field.type is Scalar.JSON}
    return {
        name: json.dumps(field, ensure_ascii=False) if name in json_fields and field is not None else field
        for name, field in value.items()
    }


def _conditions(selection: Selection) -> tuple[str, list[Any]]:
    tests: dict[str, Any] = {
        "t.partition_key >= %s": selection.start and partition_key(selection.start),
        "t.partition_key < %s": selection.end and partition_key(selection.end),
        "(t.agent_id = ANY(%s) OR t.agent_name = ANY(%s))": list(selection.agents),
        "t.organization_id = ANY(%s)": list(selection.organizations),
        "t.run_id = ANY(%s)": list(selection.run_ids),
    }
    conditions, parameters = ["true"], list[Any]()
    for condition, value in tests.items():
        if value:
            conditions.append(condition)
            parameters += [value] * condition.count("%s")
    if not selection.deleted:
        conditions.append("t.deleted_at IS NULL")
    return " AND ".join(conditions), parameters
