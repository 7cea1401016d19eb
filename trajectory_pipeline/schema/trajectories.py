"""The trajectory: its columns in both sinks, and the path of each in the document."""

from trajectory_pipeline.schema.raw import CONTEXT
from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    JSON,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    Table,
    dollars,
    from_source,
    in_document,
    list_of,
    nanoseconds,
    parquet_only,
    postgres_only,
    struct,
    tokens,
)

SCHEMA_VERSION = "3"
"""Version of the trajectory's schema.

Raise it when a column is added, renamed or retyped, or when the same source rows give another value in any column
outside ``signals``. Parquet of an older version remains readable: columns that it lacks are null.
"""

SIGNALS_VERSION = "3"
"""Version of the rules behind ``signals``; raise it when the same rows give another signal."""

_NOT_GIVEN = "not given"
_NOT_RECORDED = "not recorded"
_LATE = "not (yet) recorded"
_NOT_REPORTED = "not reported"
_NO_STEP = "no step, or not recorded"
_NO_HANDLE = "no step, not recorded, or Letta before 0.16.8"
_NO_OWN_STEP = "no own step"
_NO_AGENT = "the agent is gone, or has none"
_OTHER_PART = "another type of part"
_OLDER_VERSION = "written by an older version"
_COMPLETE = "the other fields hold all of it"
_LONG_NAMES = "Of a name of more than 1,000 bytes it has the start, a digest and the end; the document has all of it."

CONTENT_PART = (
    Column(
        "type",
        STRING,
        "`text`, `reasoning`, `summarized_reasoning`, `redacted_reasoning`, `omitted_reasoning`, `image`,"
        " `tool_call`, `tool_return`, or an unknown type.",
        null="the part has no type, or one that is not a string",
    ),
    Column("text", STRING, "Text of a `text` part.", null=_OTHER_PART),
    Column(
        "reasoning",
        STRING,
        "Text of a `reasoning` part, or the paragraphs of a `summarized_reasoning` part, joined by blank lines.",
        null=_OTHER_PART,
    ),
    Column("signature", STRING, "The provider's signature (Claude) or encrypted content of the part.", null="none"),
    Column("is_native", BOOL, "Whether the model itself marked the text as reasoning.", null=_NOT_GIVEN),
    Column("media_type", STRING, "Media type of an image.", null="not an image, or not given"),
    Column(
        "json",
        JSON,
        "The whole part as JSON text.",
        null="`type`, `text`, `reasoning`, `signature` and `is_native` hold all of it",
    ),
)
"""One part of a message's content: typed where known, verbatim always."""

TOOL_CALL = (
    Column("id", STRING, "Id of the call, from the model.", null="none"),
    Column("type", STRING, "`function`.", null=_NOT_GIVEN),
    Column("name", STRING, "Name of the tool.", null=_NOT_GIVEN),
    Column("arguments", STRING, "Arguments as the string that Letta stored, which may not be JSON.", null="none"),
    Column("json", JSON, "The whole call as JSON text.", null=_COMPLETE),
)

TOOL_RETURN = (
    Column("tool_call_id", STRING, "Id of the call that this answers.", null=_NOT_GIVEN),
    Column("status", STRING, "`success` or `error`, as recorded.", null=_NOT_GIVEN),
    Column("denied", BOOL, "Whether a person denied the call, which is then not a tool error."),
    Column(
        "text",
        STRING,
        "`func_response` as stored; of a list of content parts, the texts of its text parts, a line break between two.",
        null="none, or without text (see `json`)",
    ),
    Column("stdout", STRINGS, "Output of the tool.", null=_NOT_RECORDED),
    Column("stderr", STRINGS, "Error output of the tool.", null=_NOT_RECORDED),
    Column("json", JSON, "The whole return as JSON text.", null=_COMPLETE),
)

APPROVAL = (
    Column("type", STRING, "`approval` for a decision; null for a client-side return.", null=_NOT_GIVEN),
    Column("tool_call_id", STRING, "Call that was decided on or run.", null=_NOT_GIVEN),
    Column("approve", BOOL, "The decision.", null="not a decision"),
    Column("reason", STRING, "The person's reason.", null=_NOT_GIVEN),
    Column("json", JSON, "The whole entry as JSON text.", null=_COMPLETE),
)

MESSAGE = (
    Column("message_id", STRING, "The message.", source="messages.id"),
    Column("role", STRING, "user, assistant, tool, approval, system or summary, as stored.", source="messages.role"),
    Column(
        "kind",
        STRING,
        "What the row is where `role` does not say: user (a person), heartbeat, system_alert, login, agent"
        " (another agent, or a sleeptime reminder) or summary; else the role.",
        source="messages.role and the text",
    ),
    Column("timestamp", TIMESTAMP, "When it was created.", null=_NOT_RECORDED, source="messages.created_at"),
    Column("sequence_id", INT, "Its position among all messages.", source="messages.sequence_id"),
    Column("name", STRING, "Tool of a tool row, or a name from the sender.", null="none", source="messages.name"),
    Column("model", STRING, "Model that wrote it.", null=_NOT_RECORDED, source="messages.model"),
    Column("sender_id", STRING, "Who sent it, in a group.", null="none", source="messages.sender_id"),
    Column(
        "is_deleted", BOOL, "Whether it, or its run, is marked as deleted at the source (its conversation was deleted)."
    ),
    Column(
        "assistant_text",
        STRING,
        "The agent's reply: its text, or the argument of `send_message` for agent types that reply through it.",
        null="no reply",
        source="content, tool_calls",
    ),
    Column("inner_thought", STRING, "Text of an agent that replies by `send_message`.", null="none", source="content"),
    Column("tool_call_id", STRING, "First call that a tool row answers.", null="none", source="messages.tool_call_id"),
    Column("content", list_of(CONTENT_PART), "Its parts, in order.", source="messages.content, else messages.text"),
    Column("tool_calls", list_of(TOOL_CALL), "Tool calls in it.", source="messages.tool_calls"),
    Column("tool_returns", list_of(TOOL_RETURN), "Returns in it, with their call.", source="messages.tool_returns"),
    Column(
        "approvals",
        list_of(APPROVAL),
        "Decisions, or client-side returns, in it.",
        source="messages.approvals, else approve, approval_request_id and denial_reason",
    ),
)

_STEP_ERROR = struct(
    Column("type", STRING, "Class of the error.", null=_NOT_GIVEN, source="steps.error_type"),
    Column("message", STRING, "Its message.", null=_NOT_GIVEN, source="steps.error_data.message"),
    Column("detail", JSON, "All of `error_data` as JSON text.", null="none", source="steps.error_data"),
)

TURN = (
    Column("step_id", STRING, "The step.", null="messages without a step", source="steps.id"),
    Column("step_run_id", STRING, "Run of the step.", null="this run, or no run", source="steps.run_id"),
    Column("timestamp", TIMESTAMP, "When the step started.", null=_NO_STEP, source="steps.created_at"),
    Column("model", STRING, "Model of the LLM call.", null=_NO_STEP, source="steps.model"),
    Column("model_handle", STRING, "Letta's handle of the model.", null=_NO_HANDLE, source="steps.model_handle"),
    Column("provider", STRING, "Provider of the LLM call.", null=_NO_STEP, source="steps.provider_name"),
    Column("endpoint", STRING, "Endpoint of the LLM call.", null=_NO_STEP, source="steps.model_endpoint"),
    tokens("context_window_limit", "Context window size.", null=_NO_STEP, source="steps.context_window_limit"),
    tokens("input_tokens", "Prompt tokens, cached included.", null=_NO_OWN_STEP, source="steps.prompt_tokens"),
    tokens("output_tokens", "Completion tokens with reasoning.", null=_NO_OWN_STEP, source="steps.completion_tokens"),
    tokens("total_tokens", "As Letta stores it.", null=_NO_OWN_STEP, source="steps.total_tokens"),
    *(
        tokens(name, description, null=_NOT_REPORTED, source=f"steps.{name}, else {details}")
        for name, description, details in (
            ("cached_input_tokens", "Prompt tokens read from the provider's cache.", "prompt_tokens_details"),
            ("cache_write_tokens", "Prompt tokens written to the provider's cache.", "prompt_tokens_details"),
            ("reasoning_tokens", "Completion tokens spent on reasoning.", "completion_tokens_details"),
        )
    ),
    Column("status", STRING, "PENDING, SUCCESS, FAILED or CANCELLED.", null=_NO_STEP, source="steps.status"),
    Column("stop_reason", STRING, "Why the step stopped.", null=_NOT_RECORDED, source="steps.stop_reason"),
    Column("error", _STEP_ERROR, "The step's error.", null="none"),
    Column("feedback", STRING, "`positive` or `negative`.", null=_NOT_GIVEN, source="steps.feedback"),
    Column("tags", STRINGS, "Tags given with the feedback.", source="steps.tags"),
    nanoseconds("step_ns", "Duration of the step.", null=_LATE, source="step_metrics.step_ns"),
    nanoseconds("llm_request_ns", "Duration of its LLM call.", null=_LATE, source="step_metrics.llm_request_ns"),
    nanoseconds("tool_execution_ns", "Duration of its tools.", null=_LATE, source="step_metrics.tool_execution_ns"),
    Column("messages", list_of(MESSAGE), "Its messages in this run, by sequence_id.", source="messages"),
)

SIGNALS = struct(
    Column("tool_calls", INT, "Tool calls in own messages.", unit="calls"),
    Column("distinct_tools", INT, "Different tool names among them.", unit="tools"),
    Column("tool_errors", INT, "Returns with status `error`, without denied ones.", unit="returns"),
    Column(
        "last_tool_call_failed",
        BOOL,
        "Whether the last return is an error, and not denied.",
        null="no return, or its status is not recorded",
    ),
    Column(
        "error_recovered",
        BOOL,
        "Whether after each error the same tool succeeded for the same purpose: with equal arguments, with an equal"
        " first argument (which names the object), or, where that is a text of four words or more, such as a query,"
        " with half of all words in it and in that of the tool's next success shared.",
        null="no error, or the run's rows do not show it",
    ),
    Column("repeated_calls", INT, "Calls that repeat an earlier tool with equal arguments (as JSON).", unit="calls"),
    Column(
        "longest_cycle",
        INT,
        "Calls in the longest stretch where a pattern of one to four calls repeats at least three times in a row;"
        " 0 if there is none.",
        unit="calls",
    ),
    Column("context_fill", FLOAT, "Largest prompt per context window.", unit="ratio", null=_NOT_REPORTED),
    Column("person_messages", INT, "Messages of kind `user`.", unit="messages"),
    Column("positive_feedback", INT, "Own steps with positive feedback.", unit="steps"),
    Column("negative_feedback", INT, "Own steps with negative feedback.", unit="steps"),
    Column("denied_approvals", INT, "Calls that a person denied.", unit="calls"),
    Column("refusals", INT, "Own messages with a `refusal` part; Letta up to 0.16.8 writes none.", unit="messages"),
    Column(
        "empty_final_answer",
        BOOL,
        "Whether the agent's last message in this run has no reply and no tool call.",
        null="no message by the agent",
    ),
)
"""Facts computed by rule, no model involved; evidence for a judge and for sampling, never an outcome."""

_RUN_ERROR = struct(
    Column("type", STRING, "Class or kind of the error.", null=_NOT_GIVEN),
    Column("message", STRING, "Its message.", null=_NOT_GIVEN),
    Column("detail", STRING, "What else was recorded.", null="nothing"),
    Column("step_id", STRING, "Step that failed.", null="none"),
)

_METADATA = in_document(
    "metadata",
    Column("agent_id", STRING, "The agent.", source="runs.agent_id"),
    Column("agent_name", STRING, "Its name at capture.", null=_NO_AGENT, source="agents.name"),
    Column("agent_type", STRING, "Its type at capture.", null=_NO_AGENT, source="agents.agent_type"),
    Column("organization_id", STRING, "The organization.", null=_NOT_RECORDED, source="runs.organization_id"),
    Column(
        "conversation_id",
        STRING,
        "The conversation.",
        null="the agent's default thread, or Letta before 0.16.8",
        source="runs.conversation_id, else its messages' if they agree",
    ),
    Column("project_id", STRING, "The project.", null="none", source="runs.project_id"),
    Column("tags", STRINGS, "The agent's tags at capture, sorted.", source="agents_tags.tag"),
    Column("start_time", TIMESTAMP, "When the run was created.", null=_NOT_RECORDED, source="runs.created_at"),
    Column("end_time", TIMESTAMP, "When it ended.", null=_NOT_RECORDED, source="runs.completed_at (naive UTC)"),
    nanoseconds("duration_ns", "`end_time` minus `start_time`.", null="either is null", source="start_time, end_time"),
    nanoseconds(
        "run_ns", "Duration by Letta's clock.", null=_LATE, source="run_metrics.run_ns, else runs.total_duration_ns"
    ),
    nanoseconds("ttft_ns", "Time to the first token.", null=_NOT_RECORDED, source="runs.ttft_ns"),
    Column("status", STRING, "completed, failed, cancelled, or unknown (not told).", source="runs.status"),
    Column("stop_reason", STRING, "Why it stopped.", null="none (failed blocking calls)", source="runs.stop_reason"),
    Column("run_type", STRING, "How it was started.", null=_NOT_RECORDED, source="runs.metadata_.run_type"),
    Column("background", BOOL, "Whether it ran in the background.", null=_NOT_RECORDED, source="runs.background"),
    Column(
        "error",
        _RUN_ERROR,
        "What went wrong.",
        null="no error was recorded",
        source="runs.metadata_.error, else steps.error_data of the last own step",
    ),
    Column("step_count", INT, "Own steps.", unit="steps", source="steps.id"),
    Column("message_count", INT, "Messages in the turns.", unit="messages", source="messages.id"),
    Column(
        "tools_used",
        STRINGS,
        "Tools that ran in this run, in order of first use: of its calls that waited for no approval, and of its"
        f" returns; denied calls excepted. {_LONG_NAMES}",
        source="messages.tool_calls, tool_returns and name; tool_calls of the run that asked",
    ),
    Column("models", STRINGS, f"Models of own steps, in order of first use. {_LONG_NAMES}", source="steps.model"),
    *(
        tokens(f"{kind}_tokens", "Sum over own steps.", source=f"steps.{name}_tokens")
        for kind, name in (("input", "prompt"), ("output", "completion"), ("total", "total"))
    ),
    *(
        tokens(
            f"{kind}_tokens",
            "Sum over own steps that report it.",
            null="none reports it",
            source=f"steps.{kind}_tokens, else steps.{details}_tokens_details",
        )
        for kind, details in (("cached_input", "prompt"), ("cache_write", "prompt"), ("reasoning", "completion"))
    ),
    Column(
        "usage_reported",
        BOOL,
        "False if all counts are 0 without details: Letta stores 0 for unreported usage.",
        source="total_tokens, cached_input_tokens, reasoning_tokens",
    ),
    dollars(
        "cost_usd",
        "Price of its own LLM calls by genai-prices at that time.",
        null="price or usage unknown",
        source="models, input_tokens, output_tokens, cached_input_tokens, cache_write_tokens",
    ),
    Column(
        "continues_run_id",
        STRING,
        "Run that this one continues by answering its approval request.",
        null="none, or the source no longer shows which",
        source="steps.run_id of its first messages' steps",
    ),
)

_OUTCOME = (
    Column(
        "execution_status",
        STRING,
        "How the run ended: completed, truncated, awaiting_approval, failed, cancelled or unknown.",
        source="status, stop_reason, error",
        document="outcome.execution.status",
    ),
    Column(
        "execution_cause",
        STRING,
        "Why: user, step_limit, token_limit, context_limit, billing, agent, llm_provider, request, server or"
        " unrecorded.",
        null="neither cancelled, truncated nor failed",
        source="status, stop_reason, error",
        document="outcome.execution.cause",
    ),
    *from_source(
        "execution_status, turns",
        Column(
            "heuristic_outcome",
            STRING,
            "success, partial_success, failure or unknown, by rule.",
            document="outcome.type",
        ),
        Column("heuristic_confidence", FLOAT, "Confidence of the rule.", unit="0–1", document="outcome.confidence"),
        Column("heuristic_reasoning", STRINGS, "Facts behind the outcome.", document="outcome.reasoning"),
    ),
)

TRAJECTORIES = Table(
    name="trajectories",
    description="Every terminal run as one complete, ordered, typed record.",
    row="one terminal run",
    columns=(
        Column("run_id", STRING, "The run.", source="runs.id", document="run_id", key=True),
        Column("trajectory_id", STRING, "UUID (version 5) of the run id.", source="run_id", document="trajectory_id"),
        *_METADATA,
        *_OUTCOME,
        Column(
            "signals",
            SIGNALS,
            f"Facts computed by rule (signals version {SIGNALS_VERSION}).",
            source="turns",
            document="signals",
        ),
        *parquet_only(
            Column("turns", list_of(TURN), "Steps with their messages, in order.", document="turns"),
            Column("context", CONTEXT, "System prompt and tools; not in the content digest.", null="nothing was found"),
        ),
        *postgres_only(
            Column(
                "data", JSON, "The trajectory document; images as stubs.", "see `data_omitted_reason`", source="turns"
            ),
            Column("data_omitted_reason", STRING, "Why `data` is null.", null="it is not"),
        ),
        Column("escaped", STRINGS, "Document paths where NUL or a lone surrogate became text (`\\u0000`, `\\ud83d`)."),
        Column(
            "content_digest",
            STRING,
            "SHA-256 (hex) of what the agent saw, said and did, its errors and ending.",
            source="turns, status, stop_reason, error",
        ),
        Column("schema_version", STRING, "Version of this schema."),
        Column("signals_version", STRING, "Version of the rules behind `signals`."),
        Column(
            "partition_key",
            STRING,
            "Dagster's partition key: the UTC hour of `end_time`, else of `start_time`, with the source unless it is"
            " `letta`.",
            source="end_time, else start_time",
        ),
        Column("deleted_at", TIMESTAMP, "When the run was first noticed missing at the source.", null="not deleted"),
        *postgres_only(
            Column("first_captured_at", TIMESTAMP, "When the row was first written."),
            Column("updated_at", TIMESTAMP, "When its content last changed."),
        ),
        Column("erased", BOOL, "Whether content deleted at the source was erased here (then `[erased]` or null)."),
        Column(
            "context_digest",
            STRING,
            "SHA-256 (hex) of `context`, which a verdict depends on too.",
            null="nothing was found, or written by an older version",
            source="context",
            since="2",
        ),
        *in_document(
            "metadata",
            Column(
                "tools_requested",
                STRINGS,
                "Tools that this run's tool calls name, in order of first use, whether or not they ran.",
                null=_OLDER_VERSION,
                source="messages.tool_calls",
                since="2",
            ),
            Column(
                "tools_denied",
                STRINGS,
                "Tools of the calls that a person denied in this run.",
                null=_OLDER_VERSION,
                source="messages.approvals, tool_calls; tool_calls of the run that asked",
                since="2",
            ),
            Column(
                "source",
                STRING,
                "Name of the source that it came from: `letta` (a Letta server's Postgres), or a name in"
                " `TRAJECTORY_SOURCES`.",
                null=_OLDER_VERSION,
                source="partition_key",
                since="3",
            ),
        ),
    ),
    indexes=(
        ("partition_key",),
        ("agent_id", "end_time"),
        ("organization_id", "end_time"),
        ("end_time",),
        ("heuristic_outcome", "end_time"),
        ("execution_status", "end_time"),
        ("continues_run_id",),
        ("trajectory_id",),
        ("agent_id", "conversation_id", "start_time"),
        ("source", "end_time"),
    ),
)
