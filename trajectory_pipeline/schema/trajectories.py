"""The trajectory: its columns in both sinks, and where each stands in the document.

Belongs here: names, types, units, meanings. Does not belong here: how a value is found (``trajectories``).
"""

from trajectory_pipeline.schema.raw import CONTEXT
from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    JSON,
    MONEY,
    PARQUET_ONLY,
    POSTGRES_ONLY,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    Table,
    list_of,
    struct,
)

SCHEMA_VERSION = "1"
"""Version of the trajectory's schema.

Rule: it goes up when a column is added, renamed or retyped, or when the same source rows give another value in any
column outside ``signals``. Parquet of an older version still reads: what it lacks is null.
"""

SIGNALS_VERSION = "1"
"""Version of the rules behind ``signals``; goes up when the same rows give another signal."""

_NONE_RECORDED = "Letta recorded none"

CONTENT_PART = (
    Column(
        "type",
        STRING,
        "`text`, `reasoning`, `summarized_reasoning`, `redacted_reasoning`, `omitted_reasoning`, `image`,"
        " `tool_call`, `tool_return`, or a type that is not known yet.",
        null="the part has no type, or one that is not a string",
    ),
    Column("text", STRING, "The text of a `text` part.", null="not such a part"),
    Column(
        "reasoning",
        STRING,
        "The words of a `reasoning` part, or the paragraphs of a `summarized_reasoning` part joined by blank lines.",
        null="not such a part",
    ),
    Column(
        "signature", STRING, "The provider's signature (Claude) or encrypted content of the part.", null="there is none"
    ),
    Column("is_native", BOOL, "Whether the model itself marked the words as reasoning.", null="not said"),
    Column("media_type", STRING, "Of an image.", null="not an image, or not said"),
    Column(
        "json",
        JSON,
        "The whole part as JSON text.",
        null="`type`, `text`, `reasoning`, `signature` and `is_native` hold all of it",
    ),
)
"""One part of a message's content: typed where known, verbatim always."""

TOOL_CALL = (
    Column("id", STRING, "The call's id, as the model gave it.", null="it has none"),
    Column("type", STRING, "`function`.", null="not said"),
    Column("name", STRING, "The tool's name.", null="not said"),
    Column(
        "arguments",
        STRING,
        "The arguments as the string that Letta stored; it may or may not be JSON.",
        null="there are none",
    ),
    Column("json", JSON, "The whole call as JSON text.", null="the other fields hold all of it"),
)

TOOL_RETURN = (
    Column("tool_call_id", STRING, "Id of the call that this answers.", null="not said"),
    Column("status", STRING, "As recorded: `success` or `error`.", null="not said"),
    Column("denied", BOOL, "A person denied the call: then this is no tool error."),
    Column("text", STRING, "`func_response` as stored.", null="there is none, or it is not a string (see `json`)"),
    Column("stdout", STRINGS, "What the tool printed.", null="not recorded"),
    Column("stderr", STRINGS, "What the tool printed as errors.", null="not recorded"),
    Column("json", JSON, "The whole return as JSON text.", null="the other fields hold all of it"),
)

APPROVAL = (
    Column(
        "type",
        STRING,
        "`approval` for a decision; none for the return of a tool that ran at the client.",
        null="not said",
    ),
    Column("tool_call_id", STRING, "The call that was decided on or run.", null="not said"),
    Column("approve", BOOL, "The decision.", null="not a decision"),
    Column("reason", STRING, "The person's reason.", null="none given"),
    Column("json", JSON, "The whole entry as JSON text.", null="the other fields hold all of it"),
)

MESSAGE = (
    Column("message_id", STRING, "The message.", source="messages.id"),
    Column(
        "role", STRING, "As Letta stores it: user, assistant, tool, approval, system, summary.", source="messages.role"
    ),
    Column(
        "kind",
        STRING,
        "What the row is where `role` does not say: user (a person), heartbeat, system_alert, login, agent"
        " (another agent, or a sleeptime reminder), summary; else the role.",
        source="messages.role and the text",
    ),
    Column("timestamp", TIMESTAMP, "When it was made.", null=_NONE_RECORDED, source="messages.created_at"),
    Column("sequence_id", INT, "Its place in the order of all messages.", source="messages.sequence_id"),
    Column(
        "name", STRING, "Tool name on a tool row, or a name that the sender gave.", null="none", source="messages.name"
    ),
    Column("model", STRING, "The model that wrote it.", null="none recorded", source="messages.model"),
    Column("sender_id", STRING, "Who sent it, in a group.", null="none", source="messages.sender_id"),
    Column("is_deleted", BOOL, "Marked deleted at the source (its conversation was deleted)."),
    Column(
        "assistant_text",
        STRING,
        "What the agent said to the reader: its text, or the argument of `send_message` for agent types that"
        " answer through it.",
        null="it said nothing to the reader",
        source="content, tool_calls",
    ),
    Column(
        "inner_thought",
        STRING,
        "What the agent thought: the text of agent types that answer through `send_message`.",
        null="none",
        source="content",
    ),
    Column(
        "tool_call_id",
        STRING,
        "Of a tool row: the (first) call that it answers.",
        null="none",
        source="messages.tool_call_id",
    ),
    Column("content", list_of(CONTENT_PART), "Its parts, in order.", source="messages.content, else messages.text"),
    Column("tool_calls", list_of(TOOL_CALL), "The calls that it makes.", source="messages.tool_calls"),
    Column(
        "tool_returns",
        list_of(TOOL_RETURN),
        "The returns that it brings, joined to their calls by id.",
        source="messages.tool_returns",
    ),
    Column(
        "approvals",
        list_of(APPROVAL),
        "The decisions, or client-side returns, that it brings.",
        source="messages.approvals, else approve, approval_request_id and denial_reason",
    ),
)

TURN = (
    Column("step_id", STRING, "The step.", null="messages without a step", source="steps.id"),
    Column(
        "step_run_id", STRING, "The run that the step belongs to.", null="this run, or no run", source="steps.run_id"
    ),
    Column("timestamp", TIMESTAMP, "When the step began.", null="no step, or not recorded", source="steps.created_at"),
    Column("model", STRING, "Model of the LLM call.", null="no step, or not recorded", source="steps.model"),
    Column(
        "model_handle",
        STRING,
        "Letta's handle of the model.",
        null="no step, not recorded, or Letta before 0.16.8",
        source="steps.model_handle",
    ),
    Column(
        "provider", STRING, "Provider of the LLM call.", null="no step, or not recorded", source="steps.provider_name"
    ),
    Column(
        "endpoint", STRING, "Endpoint that was called.", null="no step, or not recorded", source="steps.model_endpoint"
    ),
    Column(
        "context_window_limit",
        INT,
        "Size of the context window.",
        null="no step, or not recorded",
        unit="tokens",
        source="steps.context_window_limit",
    ),
    Column(
        "input_tokens",
        INT,
        "Prompt tokens, cached ones included.",
        null="no own step",
        unit="tokens",
        source="steps.prompt_tokens",
    ),
    Column(
        "output_tokens",
        INT,
        "Completion tokens, reasoning included.",
        null="no own step",
        unit="tokens",
        source="steps.completion_tokens",
    ),
    Column("total_tokens", INT, "As Letta stores it.", null="no own step", unit="tokens", source="steps.total_tokens"),
    Column(
        "cached_input_tokens",
        INT,
        "Prompt tokens read from the provider's cache.",
        null="not told",
        unit="tokens",
        source="steps.cached_input_tokens, else prompt_tokens_details",
    ),
    Column(
        "cache_write_tokens",
        INT,
        "Prompt tokens written to the provider's cache.",
        null="not told",
        unit="tokens",
        source="steps.cache_write_tokens, else prompt_tokens_details",
    ),
    Column(
        "reasoning_tokens",
        INT,
        "Completion tokens spent on reasoning.",
        null="not told",
        unit="tokens",
        source="steps.reasoning_tokens, else completion_tokens_details",
    ),
    Column(
        "status",
        STRING,
        "PENDING, SUCCESS, FAILED or CANCELLED.",
        null="no step, or not recorded",
        source="steps.status",
    ),
    Column("stop_reason", STRING, "Why the step stopped.", null=_NONE_RECORDED, source="steps.stop_reason"),
    Column(
        "error",
        struct(
            Column("type", STRING, "Class of the error.", null="not said", source="steps.error_type"),
            Column("message", STRING, "Its message.", null="not said", source="steps.error_data.message"),
            Column(
                "detail", JSON, "All of `error_data` as JSON text.", null="there is none", source="steps.error_data"
            ),
        ),
        "The step's error.",
        null="it has none",
    ),
    Column("feedback", STRING, "`positive` or `negative`.", null="none given", source="steps.feedback"),
    Column("tags", STRINGS, "Given with the feedback.", source="steps.tags"),
    Column(
        "step_ns", INT, "Duration of the step.", null="not (yet) recorded", unit="ns", source="step_metrics.step_ns"
    ),
    Column(
        "llm_request_ns",
        INT,
        "Duration of its LLM call.",
        null="not (yet) recorded",
        unit="ns",
        source="step_metrics.llm_request_ns",
    ),
    Column(
        "tool_execution_ns",
        INT,
        "Duration of its tool calls.",
        null="not (yet) recorded",
        unit="ns",
        source="step_metrics.tool_execution_ns",
    ),
    Column("messages", list_of(MESSAGE), "Its messages of this run, by sequence_id.", source="messages"),
)

SIGNALS = struct(
    Column("tool_calls", INT, "Tool calls in own messages.", unit="calls"),
    Column("distinct_tools", INT, "Different tool names among them.", unit="tools"),
    Column("tool_errors", INT, "Returns with status `error`, denied ones excepted.", unit="returns"),
    Column(
        "last_tool_call_failed",
        BOOL,
        "Whether the last return is an error (denied ones excepted).",
        null="there was no return",
    ),
    Column(
        "error_recovered", BOOL, "Whether a later return succeeded after the last error.", null="there was no error"
    ),
    Column(
        "repeated_calls", INT, "Calls that repeat an earlier one: same tool, canonically equal arguments.", unit="calls"
    ),
    Column(
        "longest_cycle",
        INT,
        "Calls in the longest stretch in which a pattern of one to four calls stands at least three times in"
        " a row; 0 if there is none.",
        unit="calls",
    ),
    Column(
        "context_fill", FLOAT, "Largest share of the context window that a prompt took.", unit="ratio", null="not told"
    ),
    Column("person_messages", INT, "Messages of kind `user`.", unit="messages"),
    Column("positive_feedback", INT, "Own steps with positive feedback.", unit="steps"),
    Column("negative_feedback", INT, "Own steps with negative feedback.", unit="steps"),
    Column("denied_approvals", INT, "Calls that a person denied.", unit="calls"),
    Column(
        "refusals",
        INT,
        "Own messages with a content part of type `refusal`; no Letta release up to 0.16.8 writes one.",
        unit="messages",
    ),
    Column(
        "empty_final_answer",
        BOOL,
        "Whether the run's last own message of the agent says nothing to the reader and calls no tool.",
        null="the agent wrote no message",
    ),
)
"""Facts computed by rule, no model involved; evidence for a judge and for sampling, never an outcome."""


def _metadata(name: str) -> str:
    return f"metadata.{name}"


TRAJECTORIES = Table(
    name="trajectories",
    description="Every terminal run as one complete, ordered, typed record.",
    row="one terminal run",
    columns=(
        Column("run_id", STRING, "The run.", source="runs.id", document="run_id", key=True),
        Column(
            "trajectory_id",
            STRING,
            "UUID (version 5) of the run id: the same for ever.",
            source="run_id",
            document="trajectory_id",
        ),
        Column("agent_id", STRING, "The agent.", source="runs.agent_id", document=_metadata("agent_id")),
        Column(
            "agent_name",
            STRING,
            "Its name at capture.",
            null="the agent is gone, or has none",
            source="agents.name",
            document=_metadata("agent_name"),
        ),
        Column(
            "agent_type",
            STRING,
            "Its type at capture.",
            null="the agent is gone, or has none",
            source="agents.agent_type",
            document=_metadata("agent_type"),
        ),
        Column(
            "organization_id",
            STRING,
            "The organization.",
            null="none recorded",
            source="runs.organization_id",
            document=_metadata("organization_id"),
        ),
        Column(
            "conversation_id",
            STRING,
            "The conversation.",
            null="the agent's default thread, or Letta before 0.16.8",
            source="runs.conversation_id, else its messages' if they agree",
            document=_metadata("conversation_id"),
        ),
        Column(
            "project_id",
            STRING,
            "The project.",
            null="none",
            source="runs.project_id",
            document=_metadata("project_id"),
        ),
        Column(
            "tags",
            STRINGS,
            "The agent's tags at capture, sorted.",
            source="agents_tags.tag",
            document=_metadata("tags"),
        ),
        Column(
            "start_time",
            TIMESTAMP,
            "When the run was made.",
            null="not recorded",
            source="runs.created_at",
            document=_metadata("start_time"),
        ),
        Column(
            "end_time",
            TIMESTAMP,
            "When it ended.",
            null="not recorded",
            source="runs.completed_at (naive UTC)",
            document=_metadata("end_time"),
        ),
        Column(
            "duration_ns",
            INT,
            "`end_time` less `start_time`.",
            unit="ns",
            null="one of them is",
            document=_metadata("duration_ns"),
        ),
        Column(
            "run_ns",
            INT,
            "Duration by Letta's own measurement.",
            unit="ns",
            null="not (yet) recorded",
            source="run_metrics.run_ns, else runs.total_duration_ns",
            document=_metadata("run_ns"),
        ),
        Column(
            "ttft_ns",
            INT,
            "Time to the first token.",
            unit="ns",
            null="not recorded",
            source="runs.ttft_ns",
            document=_metadata("ttft_ns"),
        ),
        Column("status", STRING, "completed, failed or cancelled.", source="runs.status", document=_metadata("status")),
        Column(
            "stop_reason",
            STRING,
            "Why it stopped.",
            null="Letta recorded none (failed blocking calls)",
            source="runs.stop_reason",
            document=_metadata("stop_reason"),
        ),
        Column(
            "run_type",
            STRING,
            "How it was started.",
            null="not recorded",
            source="runs.metadata_.run_type",
            document=_metadata("run_type"),
        ),
        Column(
            "background",
            BOOL,
            "Whether it ran in the background.",
            null="not recorded",
            source="runs.background",
            document=_metadata("background"),
        ),
        Column(
            "error",
            struct(
                Column("type", STRING, "Class or kind of the error.", null="not said"),
                Column("message", STRING, "Its message.", null="not said"),
                Column("detail", STRING, "What else was recorded.", null="nothing"),
                Column("step_id", STRING, "The step that failed.", null="no step did"),
            ),
            "What went wrong.",
            null="Letta recorded no error",
            source="runs.metadata_.error, else the last own step's error",
            document=_metadata("error"),
        ),
        Column("step_count", INT, "Own steps.", unit="steps", document=_metadata("step_count")),
        Column("message_count", INT, "Messages in the turns.", unit="messages", document=_metadata("message_count")),
        Column(
            "tools_used",
            STRINGS,
            "Names in this run's tool calls, in order of first use.",
            document=_metadata("tools_used"),
        ),
        Column("models", STRINGS, "Models of own steps, in order of first use.", document=_metadata("models")),
        Column("input_tokens", INT, "Sum over own steps.", unit="tokens", document=_metadata("input_tokens")),
        Column("output_tokens", INT, "Sum over own steps.", unit="tokens", document=_metadata("output_tokens")),
        Column("total_tokens", INT, "Sum over own steps.", unit="tokens", document=_metadata("total_tokens")),
        Column(
            "cached_input_tokens",
            INT,
            "Sum over own steps that tell it.",
            unit="tokens",
            null="none does",
            document=_metadata("cached_input_tokens"),
        ),
        Column(
            "cache_write_tokens",
            INT,
            "Sum over own steps that tell it.",
            unit="tokens",
            null="none does",
            document=_metadata("cache_write_tokens"),
        ),
        Column(
            "reasoning_tokens",
            INT,
            "Sum over own steps that tell it.",
            unit="tokens",
            null="none does",
            document=_metadata("reasoning_tokens"),
        ),
        Column(
            "usage_reported",
            BOOL,
            'False where all token counts are 0 and there are no details: Letta stores 0 for "not told".',
            document=_metadata("usage_reported"),
        ),
        Column(
            "cost_usd",
            MONEY,
            "Price of the run's own LLM calls by genai-prices at the time of the run.",
            unit="USD",
            null="a price or the usage is not known",
            document=_metadata("cost_usd"),
        ),
        Column(
            "continues_run_id",
            STRING,
            "The run that this one continues: it answers that run's approval request.",
            null="it continues none, or the source no longer says which",
            source="steps.run_id of its first messages' steps",
            document=_metadata("continues_run_id"),
        ),
        Column(
            "execution_status",
            STRING,
            "How the run ended: completed, truncated, awaiting_approval, failed, cancelled, unknown.",
            document="outcome.execution.status",
        ),
        Column(
            "execution_cause",
            STRING,
            "Why: user, step_limit, token_limit, context_limit, billing, agent, llm_provider, request,"
            " server, unrecorded.",
            null="it ended as it should, or waits",
            document="outcome.execution.cause",
        ),
        Column(
            "heuristic_outcome",
            STRING,
            "success, partial_success, failure or unknown, by rule; never judged.",
            document="outcome.type",
        ),
        Column("heuristic_confidence", FLOAT, "Of the rule.", unit="0–1", document="outcome.confidence"),
        Column("heuristic_reasoning", STRINGS, "Which facts led there.", document="outcome.reasoning"),
        Column("signals", SIGNALS, f"Facts computed by rule (signals version {SIGNALS_VERSION}).", document="signals"),
        Column("turns", list_of(TURN), "Steps with their messages, in order.", sinks=PARQUET_ONLY, document="turns"),
        Column(
            "context",
            CONTEXT,
            "What surrounded the run; outside the content digest.",
            null="nothing was found",
            sinks=PARQUET_ONLY,
        ),
        Column(
            "data",
            JSON,
            "The trajectory document; images as stubs.",
            null="see `data_omitted_reason`",
            sinks=POSTGRES_ONLY,
        ),
        Column("data_omitted_reason", STRING, "Why `data` is null.", null="it is not", sinks=POSTGRES_ONLY),
        Column(
            "escaped",
            STRINGS,
            "Places in the document where NUL or a lone surrogate stands as visible text (`\\u0000`, `\\ud83d`).",
        ),
        Column(
            "content_digest", STRING, "SHA-256 (hex) of what the agent saw, said and did, its errors and its ending."
        ),
        Column("schema_version", STRING, "Version of this schema."),
        Column("signals_version", STRING, "Version of the rules behind `signals`."),
        Column("partition_key", STRING, "Dagster's partition key: the UTC hour of `end_time`, else of `start_time`."),
        Column(
            "deleted_at", TIMESTAMP, "When the run was first noticed to be gone from the source.", null="it is there"
        ),
        Column("first_captured_at", TIMESTAMP, "When the row was first written.", sinks=POSTGRES_ONLY),
        Column("updated_at", TIMESTAMP, "When its content last changed.", sinks=POSTGRES_ONLY),
        Column(
            "erased",
            BOOL,
            "Whether content that was deleted at the source was erased here too: words are `[erased]` then, other texts"
            " null.",
        ),
    ),
    indexes=(
        ("partition_key",),
        ("agent_id", "end_time"),
        ("end_time",),
        ("heuristic_outcome", "end_time"),
        ("execution_status", "end_time"),
        ("continues_run_id",),
        ("trajectory_id",),
    ),
)
