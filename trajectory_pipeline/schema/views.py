"""The views: the tables joined, unnested or counted, for SQL."""

from collections.abc import Iterator
from dataclasses import replace

from trajectory_pipeline.schema.calibrations import CALIBRATED_OUTCOMES
from trajectory_pipeline.schema.failure_modes import FAILURE_MODE_WEEKS
from trajectory_pipeline.schema.task_families import TASK_FAMILY_OUTCOMES
from trajectory_pipeline.schema.trajectories import MESSAGE, TRAJECTORIES, TURN
from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    STRING,
    TIMESTAMP,
    Column,
    Table,
    dollars,
    postgres_only,
    tokens,
)
from trajectory_pipeline.schema.verdicts import VERDICTS


def _view_columns(table: Table, names: str, null: str = "") -> Iterator[Column]:
    """Yield a table's columns as a view has them: ``name`` or ``name=name_in_view``; ``null`` if it has no row."""
    for name in names.split():
        origin, _, renamed = name.partition("=")
        column = table[origin]
        meaning = " or ".join(filter(None, (null, column.null)))
        yield replace(column, name=renamed or origin, null=meaning, key=False, document=None)


def _field_columns(fields: tuple[Column, ...], names: str) -> Iterator[Column]:
    """Yield fields of a turn or message as columns of a view."""
    by_name = {field.name: field for field in fields}
    for name in names.split():
        yield by_name[name]


OUTCOMES = Table(
    name="outcomes",
    description="Each trajectory with its heuristic outcome and its verdict under the current policy, if there is one.",
    row="one trajectory whose run is not deleted at the source",
    columns=postgres_only(
        *_view_columns(
            TRAJECTORIES,
            "run_id trajectory_id agent_id agent_name agent_type organization_id start_time end_time duration_ns"
            " partition_key tools_used models execution_status execution_cause heuristic_outcome heuristic_confidence",
        ),
        *_view_columns(
            VERDICTS,
            "verdict_status outcome outcome_confidence disagrees failure_owner failure_mode failed_step_id"
            " learning_value tags task_category complexity summary lesson requirements decisions coverage"
            " model=judge_model simulated input_tokens=judge_input_tokens output_tokens=judge_output_tokens"
            " cost_usd=judge_cost_usd error_class error_message judged_at policy_id verdict_key"
            " failure_mode_description interaction_depth task_complexity tool_use reference_value failure learning"
            " windows response_format shown_run_ids cached_input_tokens=judge_cached_input_tokens attempts=judge_calls"
            " failures next_attempt_at raw_response",
            null="no verdict",
        ),
        Column("judge_repairs", INT, "HTTP calls for repair of an invalid response.", unit="calls"),
        Column("judge_fallbacks", INT, "HTTP calls in a simpler format after the server rejected one.", unit="calls"),
        Column("judge_calls_lost", INT, "HTTP calls whose response never arrived.", unit="calls"),
        *_view_columns(VERDICTS, "votes vote_agreement escalation extra_answers", null="no verdict"),
        *_view_columns(TRAJECTORIES, "source"),
    ),
)

CHAINS = Table(
    name="chains",
    description="Which runs continue a run (several can): the inverse of `continues_run_id`.",
    row="one answer to an approval request",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "run_id partition_key"),
        Column("continued_by_run_id", STRING, "Run that continues this one."),
        Column("continued_by_partition_key", STRING, "Partition key of the run that continues this one."),
        Column("continued_at", TIMESTAMP, "`start_time` of the run that continues this one.", null="not recorded"),
    ),
)

AGENT_COMPARISON = Table(
    name="agent_comparison",
    description="Duration, tokens and tool calls of each run, with the medians of its agent.",
    row="one trajectory whose run is not deleted at the source",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "run_id agent_id"),
        Column("agent_runs", INT, "Trajectories of the agent.", unit="trajectories"),
        *_view_columns(TRAJECTORIES, "duration_ns"),
        Column("agent_median_duration_ns", FLOAT, "Median of the agent's runs.", unit="ns", null="no duration known"),
        *_view_columns(TRAJECTORIES, "total_tokens"),
        Column("agent_median_total_tokens", FLOAT, "Median of the agent's runs.", unit="tokens"),
        Column("tool_calls", INT, "Tool calls of the run.", unit="calls"),
        Column("agent_median_tool_calls", FLOAT, "Median of the agent's runs.", unit="calls"),
    ),
)

_RUN = tuple(_view_columns(TRAJECTORIES, "run_id agent_id agent_name organization_id end_time"))
_NOT_DELETED = "whose run is not deleted at the source and whose document is stored (`data_omitted_reason` is null)"
_TURN_INDEX = Column("turn_index", INT, "Position of the turn in the run, from 1.")

TURNS = Table(
    name="turns",
    description="The turns of each trajectory, unnested from `trajectories.data`.",
    row=f"one turn of a trajectory {_NOT_DELETED}",
    columns=postgres_only(
        *_RUN,
        _TURN_INDEX,
        *_field_columns(TURN, "step_id step_run_id timestamp model provider status stop_reason"),
        *_field_columns(TURN, "input_tokens output_tokens feedback"),
        Column("error_type", STRING, "Class of the step's error.", null="none", source="steps.error_type"),
        Column("messages", INT, "Messages in it.", unit="messages"),
    ),
)

MESSAGES = Table(
    name="messages",
    description="The messages of each trajectory, unnested from `trajectories.data`.",
    row=f"one message of a trajectory {_NOT_DELETED}",
    columns=postgres_only(
        *_RUN,
        _TURN_INDEX,
        Column("message_index", INT, "Position of the message in its turn, from 1."),
        *_field_columns(MESSAGE, "message_id role kind timestamp is_deleted"),
        Column("text", STRING, "Its text parts, joined by line breaks.", null="no text part"),
        *_field_columns(MESSAGE, "assistant_text"),
        Column("tool_calls", INT, "Tool calls in it.", unit="calls"),
        Column("tool_returns", INT, "Tool returns in it.", unit="returns"),
    ),
)

TOOL_CALLS = Table(
    name="tool_calls",
    description="The tool calls of each trajectory, each with its return, in this run or in one that continues it.",
    row=f"one tool call in a trajectory {_NOT_DELETED}",
    columns=postgres_only(
        *_RUN,
        _TURN_INDEX,
        *_field_columns(MESSAGE, "message_id"),
        Column("called_at", TIMESTAMP, "When the message with the call was created.", null="not recorded"),
        Column("call_index", INT, "Position of the call in its message, from 1."),
        Column("tool_call_id", STRING, "Id of the call, from the model.", null="none"),
        Column("tool", STRING, "Name of the tool.", null="not given"),
        Column("arguments", STRING, "Arguments as stored, which may not be JSON.", null="none"),
        Column("return_message_id", STRING, "Message with the return.", null="no return"),
        Column("return_status", STRING, "`success` or `error`, as recorded.", null="no return, or not given"),
        Column("denied", BOOL, "Whether a person denied the call.", null="no return"),
        Column("return_text", STRING, "What the tool returned.", null="no return, or no text"),
        Column(
            "return_run_id",
            STRING,
            "Run with the return, in which the tool ran: this one, or the one that answers its approval request.",
            null="no return",
        ),
    ),
)

TOOL_USAGE = Table(
    name="tool_usage",
    description="How often each tool was called by each agent, and how the calls ended.",
    row="one agent and tool",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "agent_id agent_name"),
        Column("tool", STRING, "Name of the tool.", null="not given"),
        Column("runs", INT, "Runs in which it ran or was denied, or that asked for it in vain.", unit="runs"),
        Column("calls", INT, "Calls.", unit="calls"),
        Column("succeeded", INT, "Returns with status `success`.", unit="calls"),
        Column("failed", INT, "Returns with status `error`, without denied ones.", unit="calls"),
        Column("denied", INT, "Calls that a person denied.", unit="calls"),
        Column("unanswered", INT, "Calls without a return in the run or in one that continues it.", unit="calls"),
        Column("error_rate", FLOAT, "`failed` of `succeeded` and `failed`.", unit="0–1", null="neither"),
    ),
)

AGENT_DAYS = Table(
    name="agent_days",
    description="What each agent did on each UTC day, and what came of it.",
    row="one agent and UTC day of `end_time`",
    columns=postgres_only(
        *_view_columns(TRAJECTORIES, "agent_id agent_name organization_id"),
        Column("day", STRING, "The UTC day of `end_time`, as YYYY-MM-DD.", null="`end_time` is null"),
        Column("runs", INT, "Trajectories.", unit="trajectories"),
        Column("completed", INT, "Trajectories with execution status `completed`.", unit="trajectories"),
        Column("failed", INT, "Trajectories with execution status `failed`.", unit="trajectories"),
        Column("judged", INT, "Trajectories with a judged outcome.", unit="trajectories"),
        Column("success", INT, "Judged outcomes `success`.", unit="trajectories"),
        Column("partial_success", INT, "Judged outcomes `partial_success`.", unit="trajectories"),
        Column("failure", INT, "Judged outcomes `failure`.", unit="trajectories"),
        Column("unknown", INT, "Judged outcomes `unknown`.", unit="trajectories"),
        tokens("total_tokens", "Tokens of the agent's own steps."),
        dollars("judge_cost_usd", "Cost of judging its trajectories.", null="no known price"),
    ),
)

JUDGING_DAYS = Table(
    name="judging_days",
    description="What judging cost on each UTC day, by model.",
    row="one UTC day of spending and model",
    columns=postgres_only(
        Column("day", STRING, "The UTC day that the calls are booked on, as YYYY-MM-DD."),
        Column("model", STRING, "The model that was asked."),
        Column("calls", INT, "HTTP calls.", unit="calls"),
        Column("lost", INT, "Calls whose response never arrived.", unit="calls"),
        tokens("input_tokens", "Prompt tokens.", null="not reported"),
        tokens("output_tokens", "Completion tokens.", null="not reported"),
        dollars("cost_usd", "Cost; a lost call counts at its largest possible cost.", null="no known price"),
    ),
)

VIEWS = (
    OUTCOMES,
    CALIBRATED_OUTCOMES,
    CHAINS,
    AGENT_COMPARISON,
    TURNS,
    MESSAGES,
    TOOL_CALLS,
    TOOL_USAGE,
    AGENT_DAYS,
    JUDGING_DAYS,
    FAILURE_MODE_WEEKS,
    TASK_FAMILY_OUTCOMES,
)
"""In the order of the data dictionary."""
