"""Letta's own tables and columns, as far as they are read, and the dataset of raw rows.

Belongs here: which columns of the source are known, of what type, since which Letta version, and which are required.
Does not belong here: asking a database what it has (``letta.catalog``).

The columns were read off the ORM models of the PyPI wheels letta 0.12.0, 0.14.0, 0.16.1 and 0.16.8
(``letta/orm/*.py``) and off a 0.16.8 server's database.
"""

from dataclasses import dataclass

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
    Scalar,
    Struct,
    Table,
    list_of,
    struct,
)


@dataclass(frozen=True)
class SourceColumn:
    """A column of the source.

    Attributes:
        name: as Letta calls it.
        type: what it is read as; JSON columns are read as text, so that one lone surrogate fails no query.
        required: without it there is no trajectory; a database that lacks it is refused by name.
        since: the first of the four versions looked at that has it.
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


def _audit() -> tuple[SourceColumn, ...]:
    return (
        SourceColumn("created_at", TIMESTAMP),
        SourceColumn("updated_at", TIMESTAMP),
        SourceColumn("is_deleted", BOOL),
        SourceColumn("_created_by_id", STRING),
        SourceColumn("_last_updated_by_id", STRING),
    )


RUNS = SourceTable(
    "runs",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("status", STRING, required=True),
        SourceColumn("completed_at", NAIVE_TIMESTAMP, required=True),
        SourceColumn("stop_reason", STRING, required=True),
        SourceColumn("background", BOOL),
        SourceColumn("metadata_", JSON, required=True),
        SourceColumn("request_config", JSON),
        SourceColumn("agent_id", STRING, required=True),
        SourceColumn("conversation_id", STRING, since="0.16.8"),
        SourceColumn("organization_id", STRING),
        SourceColumn("project_id", STRING),
        SourceColumn("base_template_id", STRING),
        SourceColumn("template_id", STRING),
        SourceColumn("deployment_id", STRING),
        SourceColumn("callback_url", STRING),
        SourceColumn("callback_sent_at", NAIVE_TIMESTAMP),
        SourceColumn("callback_status_code", INT),
        SourceColumn("callback_error", STRING),
        SourceColumn("ttft_ns", INT),
        SourceColumn("total_duration_ns", INT),
        *_audit(),
    ),
)

STEPS = SourceTable(
    "steps",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("run_id", STRING, required=True),
        SourceColumn("agent_id", STRING),
        SourceColumn("organization_id", STRING),
        SourceColumn("project_id", STRING),
        SourceColumn("provider_id", STRING),
        SourceColumn("provider_name", STRING),
        SourceColumn("provider_category", STRING),
        SourceColumn("model", STRING, required=True),
        SourceColumn("model_handle", STRING, since="0.16.8"),
        SourceColumn("model_endpoint", STRING),
        SourceColumn("context_window_limit", INT),
        SourceColumn("prompt_tokens", INT, required=True),
        SourceColumn("completion_tokens", INT, required=True),
        SourceColumn("total_tokens", INT, required=True),
        SourceColumn("cached_input_tokens", INT, since="0.16.8"),
        SourceColumn("cache_write_tokens", INT, since="0.16.8"),
        SourceColumn("reasoning_tokens", INT, since="0.16.8"),
        SourceColumn("prompt_tokens_details", JSON, since="0.16.1"),
        SourceColumn("completion_tokens_details", JSON),
        SourceColumn("stop_reason", STRING, required=True),
        SourceColumn("status", STRING),
        SourceColumn("error_type", STRING),
        SourceColumn("error_data", JSON),
        SourceColumn("feedback", STRING),
        SourceColumn("tags", JSON),
        SourceColumn("origin", STRING),
        SourceColumn("tid", STRING),
        SourceColumn("trace_id", STRING),
        SourceColumn("request_id", STRING, since="0.16.8"),
        *_audit(),
    ),
)

MESSAGES = SourceTable(
    "messages",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("run_id", STRING, required=True),
        SourceColumn("step_id", STRING, required=True),
        SourceColumn("sequence_id", INT, required=True),
        SourceColumn("agent_id", STRING),
        SourceColumn("conversation_id", STRING, since="0.16.8"),
        SourceColumn("organization_id", STRING),
        SourceColumn("role", STRING, required=True),
        SourceColumn("text", STRING),
        SourceColumn("content", JSON, required=True),
        SourceColumn("tool_calls", JSON, required=True),
        SourceColumn("tool_call_id", STRING),
        SourceColumn("tool_returns", JSON, required=True),
        SourceColumn("approvals", JSON, since="0.14.0"),
        SourceColumn("approval_request_id", STRING),
        SourceColumn("approve", BOOL),
        SourceColumn("denial_reason", STRING),
        SourceColumn("name", STRING),
        SourceColumn("model", STRING),
        SourceColumn("otid", STRING),
        SourceColumn("group_id", STRING),
        SourceColumn("sender_id", STRING),
        SourceColumn("batch_item_id", STRING),
        SourceColumn("is_err", BOOL),
        *_audit(),
    ),
)

RUN_METRICS = SourceTable(
    "run_metrics",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("run_start_ns", INT),
        SourceColumn("run_ns", INT),
        SourceColumn("num_steps", INT),
        SourceColumn("tools_used", JSON, since="0.14.0"),
    ),
    required=False,
)

STEP_METRICS = SourceTable(
    "step_metrics",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("run_id", STRING),
        SourceColumn("step_start_ns", INT),
        SourceColumn("llm_request_start_ns", INT),
        SourceColumn("llm_request_ns", INT),
        SourceColumn("tool_execution_ns", INT),
        SourceColumn("step_ns", INT),
    ),
    required=False,
)

AGENTS = SourceTable(
    "agents",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("name", STRING),
        SourceColumn("agent_type", STRING),
        SourceColumn("project_id", STRING),
        SourceColumn("system", STRING),
        SourceColumn("message_ids", JSON),
    ),
    required=False,
)

AGENTS_TAGS = SourceTable(
    "agents_tags",
    (SourceColumn("agent_id", STRING, required=True), SourceColumn("tag", STRING, required=True)),
    required=False,
)

TOOLS_AGENTS = SourceTable(
    "tools_agents",
    (SourceColumn("agent_id", STRING, required=True), SourceColumn("tool_id", STRING, required=True)),
    required=False,
)

TOOLS = SourceTable(
    "tools",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("name", STRING),
        SourceColumn("json_schema", JSON, required=True),
    ),
    required=False,
)

PROVIDER_TRACES = SourceTable(
    "provider_traces",
    (
        SourceColumn("id", STRING, required=True),
        SourceColumn("step_id", STRING, required=True),
        SourceColumn("request_json", JSON, required=True),
        SourceColumn("call_type", STRING, since="0.16.8"),
        SourceColumn("created_at", TIMESTAMP),
    ),
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
    """Return the rows of a source table as a struct, one field a known column; absent columns are null."""
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


CONTEXT = struct(
    Column(
        "system_prompt",
        STRING,
        "The system prompt: of the run's first LLM call where a trace has it, else as it stood at capture.",
        null="none was found",
        source="provider_traces.request_json, else the agent's system message, else agents.system",
    ),
    Column(
        "tools",
        JSON,
        "The tool definitions that the agent had: JSON text of an array.",
        null="none were found",
        source="provider_traces.request_json, else tools.json_schema",
    ),
    Column(
        "source",
        STRING,
        "`provider_trace`: what the run really had. `at_capture`: as it stood when the run was captured,"
        " which may be later.",
        null="nothing was found",
    ),
)
"""What surrounded a run: it may change after the run, and therefore stays outside the content digest."""

TERMINAL_RUNS = Table(
    name="terminal_runs",
    description="Raw rows of the terminal runs of one partition, as they stood in one snapshot of the source.",
    row="one terminal run, with its raw rows as lists; JSON text is byte for byte what the source gave",
    columns=(
        Column("run_id", STRING, "The run.", source="runs.id", sinks=PARQUET_ONLY, key=True),
        Column("run", raw_struct(RUNS), "The run's own row.", sinks=PARQUET_ONLY),
        Column(
            "run_metrics",
            raw_struct(RUN_METRICS),
            "The run's row of metrics.",
            null="there is none (yet)",
            sinks=PARQUET_ONLY,
        ),
        Column("steps", list_of(raw_struct(STEPS).fields), "The run's own steps, ordered by id.", sinks=PARQUET_ONLY),
        Column(
            "foreign_steps",
            list_of(raw_struct(STEPS).fields),
            "Steps of other runs (or of none) that this run's messages name, ordered by id.",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "step_metrics",
            list_of(raw_struct(STEP_METRICS).fields),
            "Metrics of the run's own steps, ordered by id.",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "messages",
            list_of(raw_struct(MESSAGES).fields),
            "The run's messages (by their run_id), ordered by sequence_id.",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "agent",
            raw_struct(AGENTS),
            "The agent's row as it stood at capture.",
            null="the agent is gone",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "agent_tags", STRINGS, "The agent's tags at capture, sorted.", source="agents_tags.tag", sinks=PARQUET_ONLY
        ),
        Column("context", CONTEXT, "What surrounded the run.", null="nothing was found", sinks=PARQUET_ONLY),
        Column(
            "deleted_at",
            TIMESTAMP,
            "When the run was first noticed to be gone from the source.",
            null="it is there",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "erased",
            BOOL,
            "Whether content that was deleted at the source was erased here too.",
            null="written before there was such a policy: it was not",
            sinks=PARQUET_ONLY,
        ),
        Column("schema_version", STRING, "Version of this schema that the row was written with.", sinks=PARQUET_ONLY),
    ),
)
