"""A second converter, deliberately plain: row by row, obvious, slow; written from the contract, not from the code.

It gives what the contract says of a run: the scalar columns and the document. Numbers are kept as exact decimals and
compared by value (`differences`). Left out are what the contract leaves to the real one (the wording of
`heuristic_reasoning`, the hash of `content_digest`) and JSON nested deeper than Python parses.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from genai_prices import Usage, calc_price

Raw = dict[str, Any]

THINKS_IN_TEXT = ["memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent", "split_thread_agent"]
ERROR_REASONS = [
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "no_tool_call",
    "insufficient_credits",
    "context_window_overflow_in_system_prompt",
]


def plain_trajectory(raw: Raw, partition_key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (columns beside the document, document)."""
    run, places = raw["run"], []
    metadata = read(run["metadata_"]) or {}
    config = read(run["request_config"]) or {}
    turns = plain_turns(raw)
    own_ids = [step["id"] for step in raw["steps"]]
    own_turns = [turn for turn in turns if turn["step_id"] in own_ids]
    steps_in_order = [next(step for step in raw["steps"] if step["id"] == turn["step_id"]) for turn in own_turns]
    denied_calls, denied_steps = denials(raw)

    document_turns, all_messages = [], []
    for turn in turns:
        messages = []
        for row in turn["rows"]:
            made = plain_message(row, raw, config, denied_calls, denied_steps, places)
            messages.append(made)
            all_messages.append(made)
        document_turns.append(plain_turn(turn["step_id"], messages, raw, places))

    recorded = without_nuls(metadata.get("error"), f"runs[{run['id']}].metadata_.error", places)
    error = plain_error(recorded, steps_in_order[-1] if steps_in_order else None)
    says = any(message.get("assistant_text") or message.get("tool_calls") for message in all_messages)
    status, cause, outcome, confidence = plain_ending(
        run["status"], run["stop_reason"], steps_in_order[-1] if steps_in_order else None, recorded, says
    )
    calls = [call for message in all_messages for call in message.get("tool_calls", [])]
    started = run["created_at"]
    ended = run["completed_at"].replace(tzinfo=UTC) if run["completed_at"] else None
    agent = raw["agent"] or {"name": None, "agent_type": None}
    metrics = raw["run_metrics"] or {"run_ns": None}
    conversation_ids = {message["conversation_id"] for message in raw["messages"]}
    conversation = run["conversation_id"]
    if not conversation and len(conversation_ids) == 1:
        conversation = conversation_ids.pop()
    cost = plain_cost(steps_in_order, started)
    run_type = metadata.get("run_type")
    document = {
        "run_id": run["id"],
        "trajectory_id": str(uuid.uuid5(uuid.UUID("8f0d9d1e-6f5b-5e0a-9c39-3f0f6a0a7b11"), run["id"])),
        "metadata": {
            "agent_id": run["agent_id"],
            "agent_name": agent["name"],
            "agent_type": agent["agent_type"],
            "organization_id": run["organization_id"],
            "conversation_id": conversation,
            "project_id": run["project_id"],
            "tags": raw["agent_tags"],
            "start_time": when(started),
            "end_time": when(ended),
            "duration_ns": None
            if started is None or ended is None
            else (ended - started) // timedelta(microseconds=1) * 1000,
            "run_ns": metrics["run_ns"] if metrics["run_ns"] is not None else run["total_duration_ns"],
            "ttft_ns": run["ttft_ns"],
            "status": run["status"],
            "stop_reason": run["stop_reason"],
            "run_type": without_nuls(run_type, f"runs[{run['id']}].metadata_.run_type", places)
            if isinstance(run_type, str)
            else None,
            "background": run["background"],
            "error": error,
            "step_count": len(raw["steps"]),
            "message_count": len(raw["messages"]),
            "tools_used": in_order(name_of(call) for call in calls),
            "models": in_order(step["model"] for step in steps_in_order),
            "input_tokens": sum(step["prompt_tokens"] or 0 for step in raw["steps"]),
            "output_tokens": sum(step["completion_tokens"] or 0 for step in raw["steps"]),
            "total_tokens": sum(step["total_tokens"] or 0 for step in raw["steps"]),
            "cached_input_tokens": sum_told(tokens_told(step)[0] for step in raw["steps"]),
            "cache_write_tokens": sum_told(tokens_told(step)[1] for step in raw["steps"]),
            "reasoning_tokens": sum_told(tokens_told(step)[2] for step in raw["steps"]),
            "usage_reported": any(usage_told(step) for step in raw["steps"]),
            "cost_usd": None if cost is None else float(cost),
            "continues_run_id": asking_run(raw),
        },
        "outcome": {
            "execution": {"status": status, "cause": cause},
            "type": outcome,
            "confidence": confidence,
        },
        "signals": plain_signals(raw, all_messages, steps_in_order, denied_calls, denied_steps),
        "turns": document_turns,
    }
    columns = {
        "escaped": sorted(set(places)),
        "partition_key": partition_key,
        "deleted_at": raw["deleted_at"],
        "context": raw["context"],
    }
    return columns, document


# --- order


def plain_turns(raw: Raw) -> list[dict[str, Any]]:
    """Every message in exactly one turn, every own step a turn."""
    rows = sorted(raw["messages"], key=lambda row: (row["sequence_id"], row["id"]))
    steps = {step["id"]: step for step in raw["steps"] + raw["foreign_steps"]}
    with_time, without_time = [], []
    for step_id, step in steps.items():
        mine = [row for row in rows if row["step_id"] == step_id]
        turn = {"step_id": step_id, "rows": mine, "time": step["created_at"]}
        # A step that says no time and has no messages has no place in the order: it comes last.
        (with_time if step["created_at"] or not mine else without_time).append(turn)
    for step_id in {row["step_id"] for row in rows} - set(steps) - {None}:
        without_time.append({"step_id": step_id, "rows": [row for row in rows if row["step_id"] == step_id]})
    stretch = None
    for row in rows:
        if row["step_id"] is not None:
            stretch = None
        elif stretch is None:
            stretch = {"step_id": None, "rows": [row]}
            without_time.append(stretch)
        else:
            stretch["rows"].append(row)
    for_ever = datetime.max.replace(tzinfo=UTC)
    with_time.sort(
        key=lambda turn: (
            turn["time"] or for_ever,
            turn["rows"][0]["sequence_id"] if turn["rows"] else float("inf"),
            turn["step_id"],
        )
    )
    turns = with_time
    for turn in sorted(without_time, key=lambda turn: (turn["rows"][0]["sequence_id"], turn["rows"][0]["id"])):
        later = [
            place
            for place, other in enumerate(turns)
            if other["rows"] and other["rows"][0]["sequence_id"] > turn["rows"][0]["sequence_id"]
        ]
        turns.insert(later[0] if later else len(turns), turn)
    return turns


def asking_run(raw: Raw) -> str | None:
    """The run whose step the first of the messages with another run's step names."""
    owner = {step["id"]: step["run_id"] for step in raw["foreign_steps"]}
    for row in sorted(raw["messages"], key=lambda row: (row["sequence_id"], row["id"])):
        if owner.get(row["step_id"]) not in (None, raw["run"]["id"]):
            return owner[row["step_id"]]
    return None


# --- turns and messages


def plain_turn(step_id: str | None, messages: list[Any], raw: Raw, places: list[str]) -> dict[str, Any]:
    own = {step["id"]: step for step in raw["steps"]}
    foreign = {step["id"]: step for step in raw["foreign_steps"]}
    turn: dict[str, Any] = {
        "step_id": step_id,
        "step_run_id": None,
        "model": None,
        "input_tokens": None,
        "output_tokens": None,
        "stop_reason": None,
    }
    step = own.get(step_id) or foreign.get(step_id)
    if step is not None:
        turn["model"] = step["model"]
        turn["stop_reason"] = step["stop_reason"]
        turn["timestamp"] = when(step["created_at"])
        turn["model_handle"] = step["model_handle"]
        turn["provider"] = step["provider_name"]
        turn["endpoint"] = step["model_endpoint"]
        turn["context_window_limit"] = step["context_window_limit"]
        turn["status"] = step["status"]
        turn["feedback"] = step["feedback"]
        turn["tags"] = without_nuls(read(step["tags"]) or [], f"steps[{step_id}].tags", places)
        turn["error"] = step_error(step, places)
    if step_id in foreign:
        turn["step_run_id"] = step["run_id"]
    if step_id in own:
        turn["input_tokens"] = step["prompt_tokens"] or 0
        turn["output_tokens"] = step["completion_tokens"] or 0
        turn["total_tokens"] = step["total_tokens"] or 0
        told = tokens_told(step)
        turn["cached_input_tokens"], turn["cache_write_tokens"], turn["reasoning_tokens"] = told
        for metrics in raw["step_metrics"]:
            if metrics["id"] == step_id:
                for name in ("step_ns", "llm_request_ns", "tool_execution_ns"):
                    turn[name] = metrics[name]
    always = ("step_id", "step_run_id", "model", "input_tokens", "output_tokens", "stop_reason")
    turn = {name: value for name, value in turn.items() if name in always or value not in (None, [])}
    turn["messages"] = messages
    return turn


def step_error(step: Raw, places: list[str]) -> dict[str, Any] | None:
    data = without_nuls(read(step["error_data"]), f"steps[{step['id']}].error_data", places)
    if step["error_type"] is None and data is None:
        return None
    said = data.get("message") if isinstance(data, dict) else data
    return {
        "type": step["error_type"],
        "message": said if isinstance(said, str) else None,
        "detail": None if data is None else JsonText(data),
    }


def plain_message(
    row: Raw, raw: Raw, config: Any, denied_calls: set[str], denied_steps: set[str], places: list[str]
) -> dict[str, Any]:
    place = f"messages[{row['id']}]"
    content = without_nuls(read(row["content"]) or [], f"{place}.content", places)
    calls = without_nuls(read(row["tool_calls"]) or [], f"{place}.tool_calls", places)
    returns = without_nuls(read(row["tool_returns"]) or [], f"{place}.tool_returns", places)
    approvals = without_nuls(read(row["approvals"]) or [], f"{place}.approvals", places)
    if content == [] and row["text"]:
        content = [{"type": "text", "text": row["text"]}]
    if approvals == [] and row["approve"] is not None:
        approvals = [
            {
                "type": "approval",
                "approval_request_id": row["approval_request_id"],
                "approve": row["approve"],
                "reason": row["denial_reason"],
            }
        ]
    said, thought = answer_and_thought(row["role"], content, calls, raw["agent"], config)
    made = {
        "message_id": row["id"],
        "role": row["role"],
        "kind": kind(row["role"], content),
        "timestamp": when(row["created_at"]),
        "sequence_id": row["sequence_id"],
        "name": row["name"],
        "model": row["model"],
        "sender_id": row["sender_id"],
        "is_deleted": bool(row["is_deleted"]),
        "assistant_text": None if said is None else without_nuls(said, f"{place}.assistant_text", places),
        "inner_thought": thought,
        "tool_call_id": row["tool_call_id"],
    }
    made = {name: value for name, value in made.items() if value is not None or name == "timestamp"}
    made["content"] = content
    if calls:
        made["tool_calls"] = calls
    if approvals:
        made["approvals"] = approvals
    if returns:
        made["tool_returns"] = [plain_return(item, row["step_id"], denied_calls, denied_steps) for item in returns]
    return made


def plain_return(item: Any, step_id: str | None, denied_calls: set[str], denied_steps: set[str]) -> dict[str, Any]:
    made = {"tool_call_id": None, "status": None, **item}
    response = made.pop("func_response", None)
    if response is not None and not isinstance(response, str):
        made["func_response"] = response
    made["text"] = response if isinstance(response, str) else None
    made.pop("denied", None)
    if is_denied(item, step_id, denied_calls, denied_steps):
        made["denied"] = True
    return made


def is_denied(item: Any, step_id: str | None, denied_calls: set[str], denied_steps: set[str]) -> bool:
    call_id = item.get("tool_call_id")
    return (isinstance(call_id, str) and call_id in denied_calls) or step_id in denied_steps


def denials(raw: Raw) -> tuple[set[str], set[str]]:
    """Ids of denied calls; and steps with a denial of the older form, which names no call."""
    calls, steps = set(), set()
    for row in raw["messages"]:
        entries = without_nuls(read(row["approvals"]) or [], "", [])
        for entry in entries:
            if entry.get("approve") is False:
                if isinstance(entry.get("tool_call_id"), str):
                    calls.add(entry["tool_call_id"])
                elif row["step_id"] is not None:
                    steps.add(row["step_id"])
        if not entries and row["approve"] is False and row["step_id"] is not None:
            steps.add(row["step_id"])
    return calls, steps


def count_denials(raw: Raw) -> int:
    calls, older = set(), 0
    for row in raw["messages"]:
        entries = without_nuls(read(row["approvals"]) or [], "", [])
        for entry in entries:
            if entry.get("approve") is False and isinstance(entry.get("tool_call_id"), str):
                calls.add(entry["tool_call_id"])
            elif entry.get("approve") is False:
                older += 1
        if not entries and row["approve"] is False:
            older += 1
    return len(calls) + older


def kind(role: str, content: list[Any]) -> str:
    texts = [part["text"] for part in content if isinstance(part.get("text"), str)]
    first = texts[0] if texts else ""
    if role in ("user", "system"):
        if first.startswith("[Incoming message from agent with ID"):
            return "agent"
        if first.startswith("<system-reminder>\nYou are a sleeptime agent"):
            return "agent"
    if role == "user":
        envelope = json_or_none(first)
        if isinstance(envelope, dict) and envelope.get("type") in ("heartbeat", "system_alert", "login"):
            return envelope["type"]
    return role


def answer_and_thought(
    role: str, content: list[Any], calls: list[Any], agent: Raw | None, config: Any
) -> tuple[str | None, str | None]:
    if role not in ("assistant", "approval"):
        return None, None
    tool = config.get("assistant_message_tool_name")
    tool = tool if isinstance(tool, str) and tool else "send_message"
    argument = config.get("assistant_message_tool_kwarg")
    argument = argument if isinstance(argument, str) and argument else "message"
    texts = [part["text"] for part in content if part.get("type") == "text" and isinstance(part.get("text"), str)]
    text = "\n\n".join(part for part in texts if part)
    sent, answers = False, []
    for call in calls:
        if name_of(call) == tool:
            sent = True
            arguments = call["function"].get("arguments")
            if isinstance(arguments, str):
                arguments = json_or_none(arguments)
            if isinstance(arguments, dict) and isinstance(arguments.get(argument), str) and arguments[argument]:
                answers.append(arguments[argument])
    agent_type = agent["agent_type"] if agent else None
    if agent_type in THINKS_IN_TEXT or (agent_type is None and sent):
        return "\n\n".join(answers) or None, text or None
    return "\n\n".join(part for part in [text, *answers] if part) or None, None


def name_of(call: Any) -> str | None:
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


# --- usage


def details(step: Raw, name: str) -> Any:
    return read(step[name])


def tokens_told(step: Raw) -> tuple[int | None, int | None, int | None]:
    """Cached, cache-write and reasoning tokens: the column, else the details."""

    def told(column: str, where: str, *names: str) -> int | None:
        if step[column] is not None:
            return step[column]
        found = details(step, where)
        for name in names:
            value = found.get(name) if isinstance(found, dict) else None
            if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
                return int(value)
        return None

    return (
        told("cached_input_tokens", "prompt_tokens_details", "cached_tokens", "cache_read_tokens"),
        told("cache_write_tokens", "prompt_tokens_details", "cache_creation_tokens"),
        told("reasoning_tokens", "completion_tokens_details", "reasoning_tokens"),
    )


def usage_told(step: Raw) -> bool:
    counts = (step["prompt_tokens"], step["completion_tokens"], step["total_tokens"])
    return (
        any(counts) or bool(details(step, "prompt_tokens_details")) or bool(details(step, "completion_tokens_details"))
    )


def sum_told(counts: Iterator[int | None]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def plain_cost(steps: list[Raw], run_began: datetime | None) -> Decimal | None:
    total = Decimal(0)
    for step in steps:
        at = step["created_at"] or run_began
        if not usage_told(step) or step["model"] is None or at is None:
            return None
        cached, written, _ = tokens_told(step)
        try:
            usage = Usage(
                input_tokens=step["prompt_tokens"] or 0,
                cache_read_tokens=cached or 0,
                cache_write_tokens=written or 0,
                output_tokens=step["completion_tokens"] or 0,
            )
            price = calc_price(usage, step["model"], provider_id=step["provider_name"], genai_request_timestamp=at)
        except (LookupError, ValueError):
            return None
        total += price.total_price
    return total.quantize(Decimal("1e-9")) if steps else None


# --- error and ending


def plain_error(recorded: Any, last: Raw | None) -> dict[str, Any] | None:
    """Wherever Letta put it: the run's metadata, else the last own step."""
    failed_step = None
    if last is not None and (last["error_type"] is not None or read(last["error_data"]) is not None):
        failed_step = last["id"]
    if last is not None and last["status"] == "FAILED":
        failed_step = last["id"]
    error = {"type": None, "message": None, "detail": None, "step_id": failed_step}
    if recorded:
        if isinstance(recorded, str):
            return {**error, "type": last["error_type"] if last else None, "message": recorded}
        if not isinstance(recorded, dict):
            return {**error, "detail": JsonText(recorded)}
        for name, letta_name in (("type", "error_type"), ("message", "message"), ("detail", "detail")):
            value = recorded.get(letta_name)
            if isinstance(value, str):
                error[name] = value
            elif value is not None and name == "detail":
                error[name] = JsonText(value)
        odd_type = any(not isinstance(recorded.get(name), str | None) for name in ("error_type", "message"))
        # The error event of a stream has these keys, of which three tell something.
        if odd_type or set(recorded) - {"message_type", "run_id", "error_type", "message", "detail", "seq_id"}:
            error["detail"] = JsonText(recorded)
        return error
    if last is not None:
        data = without_nuls(read(last["error_data"]), "", [])
        said = data.get("message") if isinstance(data, dict) else data
        said = said if isinstance(said, str) else None
        if last["error_type"] or said:
            return {**error, "type": last["error_type"], "message": said}
    return None


def plain_ending(
    status: str, stop_reason: str | None, last: Raw | None, recorded: Any, says: bool
) -> tuple[str, str | None, str, float]:
    """The table of endings, row by row: the first that fits wins."""
    if status == "cancelled" or stop_reason == "cancelled":
        return "cancelled", "user", "failure", 0.8
    if stop_reason == "max_steps":
        return "truncated", "step_limit", "partial_success", 0.5
    if stop_reason == "max_tokens_exceeded":
        return "truncated", "token_limit", "partial_success", 0.5
    if status == "completed" and stop_reason == "requires_approval":
        return "awaiting_approval", None, "unknown", 0.5
    if status == "failed" or stop_reason in ERROR_REASONS:
        return "failed", plain_cause(stop_reason, last, recorded), "failure", 0.9
    if status == "completed" and stop_reason in ("end_turn", "tool_rule", None) and not says:
        return "completed", None, "unknown", 0.5
    if status == "completed" and stop_reason == "end_turn":
        return "completed", None, "success", 0.8
    if status == "completed" and stop_reason in ("tool_rule", None):
        return "completed", None, "success", 0.7
    return "unknown", None, "unknown", 0.5


def plain_cause(stop_reason: str | None, last: Raw | None, recorded: Any) -> str:
    """The last own step's class of error, then its stop reason, then the run's, then what the metadata say."""
    error = last["error_type"] if last else None
    step_reason = last["stop_reason"] if last else None
    if error == "LLMError" and step_reason in ("no_tool_call", "invalid_llm_response", "invalid_tool_call"):
        return "agent"
    if error == "ContextWindowExceededError":
        return "context_limit"
    if error == "LLMInsufficientCreditsError":
        return "billing"
    if error == "LLMEmptyResponseError":
        return "agent"
    if error and error.startswith("LLM"):
        return "llm_provider"
    if error:
        return "server"
    for reason in (step_reason, stop_reason):
        if reason == "context_window_overflow_in_system_prompt":
            return "context_limit"
        if reason == "insufficient_credits":
            return "billing"
        if reason == "llm_api_error":
            return "llm_provider"
        if reason in ("no_tool_call", "invalid_llm_response", "invalid_tool_call"):
            return "agent"
    told = plain_error(recorded, last)
    if told is None:
        return "unrecorded"
    texts = [str(told[name]) for name in ("detail", "message") if told[name]]
    if last is None:
        for text in texts:
            for refusal in (
                "CONFLICT",
                "Invalid tool call IDs",
                "Cannot process approval response",
                "Message content is empty",
                "INVALID_ARGUMENT",
                "NOT_FOUND",
            ):
                if text.startswith(refusal):
                    return "request"
    for text in texts:
        if text.startswith("CONTEXT_WINDOW_EXCEEDED:"):
            return "context_limit"
        if text.startswith("PAYMENT_REQUIRED:"):
            return "billing"
        if text.startswith(("RATE_LIMIT_EXCEEDED:", "UNAUTHENTICATED:")):
            return "llm_provider"
    if told["type"] and told["type"].startswith("llm_"):
        return "llm_provider"
    return "server"


# --- signals


def plain_signals(
    raw: Raw, messages: list[Any], steps: list[Raw], denied_calls: set[str], denied_steps: set[str]
) -> dict[str, Any]:
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    returns = [item for message in messages for item in message.get("tool_returns", []) if not item.get("denied")]
    errors = [item for item in returns if item["status"] == "error"]
    recovered = None
    for item in returns:
        if item["status"] == "error":
            recovered = False
        elif recovered is False:
            recovered = True
    repeated = 0
    for place, call in enumerate(calls):
        if any(same_call(call, earlier) for earlier in calls[:place]):
            repeated += 1
    fills = [
        step["prompt_tokens"] / step["context_window_limit"]
        for step in steps
        if step["prompt_tokens"] and step["context_window_limit"]
    ]
    by_agent = [
        message for message in messages if message["role"] in ("assistant", "approval") and not message.get("approvals")
    ]
    return {
        "tool_calls": len(calls),
        "distinct_tools": len({name_of(call) for call in calls} - {None}),
        "tool_errors": len(errors),
        "last_tool_call_failed": returns[-1]["status"] == "error" if returns else None,
        "error_recovered": recovered,
        "repeated_calls": repeated,
        "longest_cycle": plain_longest_cycle(calls),
        "context_fill": max(fills) if fills else None,
        "person_messages": sum(message["kind"] == "user" for message in messages),
        "positive_feedback": sum(step["feedback"] == "positive" for step in steps),
        "negative_feedback": sum(step["feedback"] == "negative" for step in steps),
        "denied_approvals": count_denials(raw),
        "refusals": sum(any(part.get("type") == "refusal" for part in message["content"]) for message in messages),
        "empty_final_answer": None
        if not by_agent
        else not by_agent[-1].get("assistant_text") and not by_agent[-1].get("tool_calls"),
    }


def plain_longest_cycle(calls: list[Any]) -> int:
    """The longest stretch in which a pattern of one to four calls stands at least three times, by trying them all."""
    same = [[same_call(one, other) for other in calls] for one in calls]
    longest = 0
    for begin in range(len(calls)):
        for size in (1, 2, 3, 4):
            end = begin + size
            while end < len(calls) and same[end][end - size]:
                end += 1
            if end - begin >= 3 * size:
                longest = max(longest, end - begin)
    return longest


def same_call(one: Any, other: Any) -> bool:
    if name_of(one) != name_of(other):
        return False
    mine, theirs = arguments_of(one), arguments_of(other)
    mine_json, theirs_json = arguments_value(mine), arguments_value(theirs)
    if mine_json is NOT_JSON or theirs_json is NOT_JSON:
        return mine_json is theirs_json and mine == theirs
    return equal(mine_json, theirs_json)


NOT_JSON = object()


def arguments_of(call: Any) -> Any:
    function = call.get("function")
    return function.get("arguments") if isinstance(function, dict) else None


def arguments_value(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    if arguments == "":
        return None
    try:
        return json.loads(arguments, parse_int=Decimal, parse_float=Decimal)
    except (ValueError, RecursionError):
        return NOT_JSON


# --- JSON


class JsonText:
    """Stands for a string that is the JSON text of a value, however it is written."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __str__(self) -> str:
        return json.dumps(self.value, default=str)


def read(text: str | None) -> Any:
    """A JSON value; of duplicate keys the last; every number a decimal."""
    if text is None:
        return None
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


def json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def without_nuls(value: Any, place: str, places: list[str]) -> Any:
    """NUL and lone surrogates as visible text; the places where that was done."""
    if isinstance(value, JsonText):
        return JsonText(without_nuls(value.value, place, []))
    if isinstance(value, list):
        return [without_nuls(item, f"{place}[{number}]", places) for number, item in enumerate(value)]
    if isinstance(value, dict):
        made = {}
        for key, item in value.items():
            shown = without_nuls(key, f"{place} (key)", places)
            made[shown] = without_nuls(item, f"{place}.{shown}", places)
        return made
    if not isinstance(value, str):
        return value
    shown = ""
    for character in value:
        code = ord(character)
        shown += f"\\u{code:04x}" if code == 0 or 0xD800 <= code <= 0xDFFF else character
    if shown != value:
        places.append(place)
    return shown


def when(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def in_order(names: Iterator[str | None]) -> list[str]:
    found: list[str] = []
    for name in names:
        if name is not None and name not in found:
            found.append(name)
    return found


# --- comparing


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def exact(number: Any) -> Decimal:
    return Decimal(repr(number)) if isinstance(number, float) else Decimal(number)


def equal(one: Any, other: Any) -> bool:
    return not list(differences(one, other))


def differences(one: Any, other: Any, place: str = "document") -> Iterator[str]:
    """Where two JSON values differ; numbers by value, keys in any order."""
    if isinstance(one, JsonText) and isinstance(other, str):
        yield from differences(one.value, read(other), f"{place} (as JSON)")
    elif is_number(one) and is_number(other):
        if exact(one) != exact(other):
            yield f"{place}: {one!r} is not {other!r}"
    elif isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if key not in one or key not in other:
                yield f"{place}.{key}: only in one of them"
            else:
                yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{place}: {len(one)} items are not {len(other)}"
        for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{place}[{number}]")
    elif type(one) is not type(other) or one != other:
        yield f"{place}: {one!r} is not {other!r}"
