"""Trajectories, messages, tool calls and verdicts as data frames, for notebooks and scripts.

>>> import trajectory_pipeline as tp
>>> tp.trajectories("2026-11-23", "2026-11-25", agent="service-desk").to_pandas()  # doctest: +SKIP
"""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Literal

from trajectory_pipeline.databases import running_databases
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor_to_hour, parse_timestamp
from trajectory_pipeline.schema.frames import MESSAGE_FRAME, TOOL_CALL_FRAME, TRAJECTORY_FRAME, VERDICT_FRAME
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.settings import Settings, load_settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.selection import Selection

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

Moment = str | date | datetime
"""A full UTC hour: ``"2026-11-23"``, ``"2026-11-23T09:00"``, a date or a datetime (UTC where it has no time zone)."""

Some = str | Iterable[str]
"""One value, or several of which one must match."""

ReadFrom = Literal["parquet", "postgres"]


@dataclass(frozen=True)
class Frame:
    """Rows that are read when one of the methods is called, each time anew.

    Each method raises ``SinkError`` if the storage or the database cannot be read.
    """

    _table: Table = field(repr=False)
    name: str
    selection: Selection
    columns: tuple[str, ...]
    read_from: ReadFrom
    _settings: Settings = field(repr=False)

    def to_duckdb(self) -> "duckdb.DuckDBPyRelation":
        """Return a DuckDB relation: ``.filter("tool = 'run_sql'").aggregate("count(*)")``.

        From Parquet it is lazy: only the columns and rows that are used are read.
        """
        _require_duckdb()
        if self.read_from == "postgres":
            import duckdb

            return duckdb.connect().from_arrow(self.to_arrow())
        from trajectory_pipeline.storage.parquet.query import query_parquet

        return query_parquet(self._settings.storage.parquet_location, self._table, self.selection, list(self.columns))

    def to_arrow(self) -> "pa.Table":
        """Return an Arrow table: JSON as text, times in UTC, amounts of money as decimals."""
        if self.read_from == "parquet":
            table: pa.Table = self.to_duckdb().to_arrow_table()
            return table
        from trajectory_pipeline.storage.postgres.query import query_postgres

        database = TrajectoryDatabase(running_databases(self._settings).database_url)
        return query_postgres(database, self._table, self.selection, list(self.columns))

    def to_pandas(self) -> "pd.DataFrame":
        """Return a pandas data frame with Arrow types: integers with nulls stay integers."""
        import pandas as pd

        return self.to_arrow().to_pandas(types_mapper=pd.ArrowDtype)


def trajectories(
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    agent: Some = (),
    organization: Some = (),
    run_id: Some = (),
    deleted: bool = False,
    columns: Iterable[str] | None = None,
    read_from: ReadFrom = "parquet",
) -> Frame:
    """Return trajectories, one row a run.

    Args:
        start: first hour in which the runs ended.
        end: the hour after the last one.
        agent: ids or names of agents.
        organization: ids of organizations.
        run_id: ids of runs.
        deleted: include runs that are deleted at the source.
        columns: names of columns. Default: all that both sinks have. From Parquet also ``turns`` and ``context``.
        read_from: ``parquet`` (``TRAJECTORY_STORAGE_URI``) or ``postgres`` (``TRAJECTORY_DATABASE_URL``).

    Raises:
        PipelineError: an argument cannot be used; the text says which, and what to write.
    """
    selection = _selection(start, end, agent, organization, run_id, deleted=deleted)
    return _frame(TRAJECTORY_FRAME, selection, columns, read_from)


def messages(
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    agent: Some = (),
    organization: Some = (),
    run_id: Some = (),
    deleted: bool = False,
    columns: Iterable[str] | None = None,
    read_from: ReadFrom = "parquet",
) -> Frame:
    """Return the messages of trajectories, one row a message. Arguments and errors as of ``trajectories``."""
    selection = _selection(start, end, agent, organization, run_id, deleted=deleted)
    return _frame(MESSAGE_FRAME, selection, columns, read_from)


def tool_calls(
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    agent: Some = (),
    organization: Some = (),
    run_id: Some = (),
    deleted: bool = False,
    columns: Iterable[str] | None = None,
    read_from: ReadFrom = "parquet",
) -> Frame:
    """Return tool calls, each with its return, one row a call. Arguments and errors as of ``trajectories``."""
    selection = _selection(start, end, agent, organization, run_id, deleted=deleted)
    return _frame(TOOL_CALL_FRAME, selection, columns, read_from)


def verdicts(
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    agent: Some = (),
    organization: Some = (),
    run_id: Some = (),
    deleted: bool = False,
    columns: Iterable[str] | None = None,
    read_from: ReadFrom = "parquet",
) -> Frame:
    """Return verdicts under the current policy, one row a run. Arguments and errors as of ``trajectories``."""
    selection = _selection(start, end, agent, organization, run_id, deleted=deleted)
    return _frame(VERDICT_FRAME, selection, columns, read_from)


def _selection(
    start: Moment | None, end: Moment | None, agent: Some, organization: Some, run_id: Some, *, deleted: bool
) -> Selection:
    first, after_last = _hour("start", start), _hour("end", end)
    if first and after_last and first >= after_last:
        raise PipelineError(f"start ({start}) must be before end ({end}): the range holds no hour.")
    return Selection(first, after_last, _several(agent), _several(organization), _several(run_id), deleted)


def _hour(name: str, moment: Moment | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, str):
        moment = moment.isoformat()
    hour = parse_timestamp(moment).astimezone(UTC)
    if hour != floor_to_hour(hour):
        raise PipelineError(f"{name} must be a full hour, UTC, since a partition is one: {moment} is none.")
    return hour


def _several(values: Some) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _frame(table: Table, selection: Selection, columns: Iterable[str] | None, read_from: ReadFrom) -> Frame:
    known = [column.name for column in table.columns]
    if read_from == "parquet":
        _require_duckdb()
        from trajectory_pipeline.storage.parquet.query import readable_columns

        accepted = readable_columns(table)
    elif read_from == "postgres":
        accepted = known
    else:
        raise PipelineError(f"read_from must be 'parquet' or 'postgres', not {read_from!r}.")
    chosen = known if columns is None else list(columns)
    if unknown := [name for name in chosen if name not in accepted]:
        raise PipelineError(
            f"{table.name} from {read_from} has no column {', '.join(unknown)}. It has: {', '.join(accepted)}."
        )
    return Frame(table, table.name, selection, tuple(chosen), read_from, load_settings())


def _require_duckdb() -> None:
    if importlib.util.find_spec("duckdb") is None:
        raise PipelineError(
            "Reading Parquet needs DuckDB: pip install 'trajectory-pipeline[notebook]'. Or read from Postgres:"
            " read_from='postgres'."
        )
