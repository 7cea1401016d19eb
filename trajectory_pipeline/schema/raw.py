"""Letta's own tables and columns, as far as they are read, and the dataset of raw rows.

The columns come from the ORM models of the PyPI wheels letta 0.12.0, 0.14.0, 0.16.1 and 0.16.8 (``letta/orm/*.py``)
and from the database of a 0.16.8 server.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from trajectory_pipeline.schema.types import (
    BOOL,
    INT,
    JSON,
    NAIVE_TIMESTAMP,
    PARQUET_ONLY,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    ListOf,
    Scalar,
    Struct,
    Table,
    parquet_only,
    struct,
)


@dataclass(frozen=True)
class SourceColumn:
    """A column of the source.

    Attributes:
        name: as Letta names it.
        type: what it is read as; JSON columns are read as text, so that one lone surrogate fails no query.
        required: without it there is no trajectory; a database that lacks it is refused with an error that names it.
        since: the first of the four versions that has it.
    """

    name: str
    type: Scalar
    required: bool = False
    since: str = "0.12.0"


@dataclass(frozen=True)
class SourceTable:
    """A table of the source; ``required`` as for columns."""

    name: str
    columns: tuple[SourceColumn, ...]
    required: bool = True


def _required(kind: Scalar, names: str) -> Iterator[SourceColumn]:
    return (SourceColumn(name, kind, required=True) for name in names.split())


def _optional(kind: Scalar, names: str, since: str = "0.12.0") -> Iterator[SourceColumn]:
    return (SourceColumn(name, kind, since=since) for name in names.split())


def _source_table(name: str, *columns: Iterable[SourceColumn], required: bool = True) -> SourceTable:
    return SourceTable(name, tuple(chain.from_iterable(columns)), required)


_AUDIT = (
    *_optional(TIMESTAMP, "created_at updated_at"),
    *_optional(BOOL, "is_deleted"),
    *_optional(STRING, "_created_by_id _last_updated_by_id"),
)

RUNS = _source_table(
    "runs",
    _required(STRING, "id status"),
    _required(NAIVE_TIMESTAMP, "completed_at"),
    _required(STRING, "stop_reason"),
    _optional(BOOL, "background"),
    _required(JSON, "metadata_"),
    _optional(JSON, "request_config"),
    _required(STRING, "agent_id"),
    _optional(STRING, "conversation_id", "0.16.8"),
    _optional(STRING, "organization_id project_id base_template_id template_id deployment_id callback_url"),
    _optional(NAIVE_TIMESTAMP, "callback_sent_at"),
    _optional(INT, "callback_status_code"),
    _optional(STRING, "callback_error"),
    _optional(INT, "ttft_ns total_duration_ns"),
    _AUDIT,
)

STEPS = _source_table(
    "steps",
    _required(STRING, "id run_id"),
    _optional(STRING, "agent_id organization_id project_id provider_id provider_name provider_category"),
    _required(STRING, "model"),
    _optional(STRING, "model_handle", "0.16.8"),
    _optional(STRING, "model_endpoint"),
    _optional(INT, "context_window_limit"),
    _required(INT, "prompt_tokens completion_tokens total_tokens"),
    _optional(INT, "cached_input_tokens cache_write_tokens reasoning_tokens", "0.16.8"),
    _optional(JSON, "prompt_tokens_details", "0.16.1"),
    _optional(JSON, "completion_tokens_details"),
    _required(STRING, "stop_reason"),
    _optional(STRING, "status error_type"),
    _optional(JSON, "error_data"),
    _optional(STRING, "feedback"),
    _optional(JSON, "tags"),
    _optional(STRING, "origin tid trace_id"),
    _optional(STRING, "request_id", "0.16.8"),
    _AUDIT,
)

MESSAGES = _source_table(
    "messages",
    _required(STRING, "id run_id step_id"),
    _required(INT, "sequence_id"),
    _optional(STRING, "agent_id"),
    _optional(STRING, "conversation_id", "0.16.8"),
    _optional(STRING, "organization_id"),
    _required(STRING, "role"),
    _optional(STRING, "text"),
    _required(JSON, "content tool_calls"),
    _optional(STRING, "tool_call_id"),
    _required(JSON, "tool_returns"),
    _optional(JSON, "approvals", "0.14.0"),
    _optional(STRING, "approval_request_id"),
    _optional(BOOL, "approve"),
    _optional(STRING, "denial_reason name model otid group_id sender_id batch_item_id"),
    _optional(BOOL, "is_err"),
    _AUDIT,
)

RUN_METRICS = _source_table(
    "run_metrics",
    _required(STRING, "id"),
    _optional(INT, "run_start_ns run_ns num_steps"),
    _optional(JSON, "tools_used", "0.14.0"),
    required=False,
)

STEP_METRICS = _source_table(
    "step_metrics",
    _required(STRING, "id"),
    _optional(STRING, "run_id"),
    _optional(INT, "step_start_ns llm_request_start_ns llm_request_ns tool_execution_ns step_ns"),
    required=False,
)

AGENTS = _source_table(
    "agents",
    _required(STRING, "id"),
    _optional(STRING, "name agent_type project_id system"),
    _optional(JSON, "message_ids"),
    required=False,
)

AGENTS_TAGS = _source_table("agents_tags", _required(STRING, "agent_id tag"), required=False)

TOOLS_AGENTS = _source_table("tools_agents", _required(STRING, "agent_id tool_id"), required=False)

TOOLS = SourceTable(
    "tools", (*_required(STRING, "id"), *_optional(STRING, "name"), *_required(JSON, "json_schema")), required=False
)

PROVIDER_TRACES = _source_table(
    "provider_traces",
    _required(STRING, "id step_id"),
    _required(JSON, "request_json"),
    _optional(STRING, "call_type", "0.16.8"),
    _optional(TIMESTAMP, "created_at"),
    required=False,
)

SOURCE_TABLES = (
    RUNS,
    STEPS,
    MESSAGES,
    RUN_METRICS,
    STEP_METRICS,
    AGENTS,
    AGENTS_TAGS,
    TOOLS_AGENTS,
    TOOLS,
    PROVIDER_TRACES,
)

TERMINAL_STATUSES = ("completed", "failed", "cancelled")
"""Of ``runs.status`` (a varchar: created, running, completed, failed, cancelled)."""


def raw_struct(table: SourceTable) -> Struct:
    """Return the rows of a source table as a struct with one field per known column."""
    return Struct(
        tuple(
            Column(
                column.name,
                column.type,
                f"As Letta stores it (Letta {column.since} and later).",
                null="SQL NULL, or the source has no such column",
                source=f"{table.name}.{column.name}",
                sinks=PARQUET_ONLY,
            )
            for column in table.columns
        )
    )


def _raw_rows(name: str, table: SourceTable, description: str) -> Column:
    return Column(name, ListOf(raw_struct(table)), description)


CONTEXT = struct(
    Column(
        "system_prompt",
        STRING,
        "System prompt of the run's first LLM call if a trace has it, else at capture.",
        null="none was found",
        source="provider_traces.request_json, else the agent's system message, else agents.system",
    ),
    Column(
        "tools",
        JSON,
        "The agent's tool definitions as JSON text of an array.",
        null="none were found",
        source="provider_traces.request_json, else tools.json_schema",
    ),
    Column(
        "source", STRING, "`provider_trace` (what the run had) or `at_capture` (perhaps later).", null="nothing found"
    ),
)
"""System prompt and tools of a run: they may change after it, and therefore are not in the content digest."""

ASKED_CALL = struct(
    Column("step_id", STRING, "The foreign step that made the call.", source="messages.step_id"),
    Column("id", STRING, "Id of the call, from the model.", null="none", source="messages.tool_calls"),
    Column("name", STRING, "Name of the tool.", null="not given", source="messages.tool_calls"),
)
"""A tool call of another run. Its arguments are not kept here: they belong to that run, and are erased with it."""

TERMINAL_RUNS = Table(
    name="terminal_runs",
    description="Raw rows of the terminal runs of one partition, from one snapshot of the source.",
    row="one terminal run, with its raw rows as lists; JSON text is byte for byte as in the source",
    columns=parquet_only(
        Column("run_id", STRING, "The run.", source="runs.id", key=True),
        Column("run", raw_struct(RUNS), "The run's own row."),
        Column("run_metrics", raw_struct(RUN_METRICS), "The run's row of metrics.", null="there is none (yet)"),
        _raw_rows("steps", STEPS, "The run's own steps, ordered by id."),
        _raw_rows("foreign_steps", STEPS, "Steps of other runs, or of none, that its messages name, ordered by id."),
        Column(
            "asked_calls",
            ListOf(ASKED_CALL),
            "Tool calls that other runs made in its foreign steps: what the run's approvals and returns answer.",
            since="2",
        ),
        _raw_rows("step_metrics", STEP_METRICS, "Metrics of the run's own steps, ordered by id."),
        _raw_rows("messages", MESSAGES, "The run's messages (by their run_id), ordered by sequence_id."),
        Column("agent", raw_struct(AGENTS), "The agent's row at capture.", null="the agent is gone"),
        Column("agent_tags", STRINGS, "The agent's tags at capture, sorted.", source="agents_tags.tag"),
        Column("context", CONTEXT, "System prompt and tools of the run.", null="nothing was found"),
        Column("deleted_at", TIMESTAMP, "When the run was first noticed missing at the source.", null="not deleted"),
        Column(
            "erased",
            BOOL,
            "Whether content deleted at the source was erased here too.",
            null="not erased; written by an older version",
        ),
        Column("schema_version", STRING, "Version of this schema that the row was written with."),
    ),
)
