"""Rules of the conversion in their plainest form, compared with the reference for the sample and for runs of any shape.

Each rule is restated here without the shortcuts that the converters take: pairwise comparison, repeated scans, exact
decimals. The exhaustive outcome table is in ``test_outcome_rules``.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any

from genai_prices import Usage, calc_price

from trajectory_pipeline_tests.conversion.json_values import equal, escaped, read
from trajectory_pipeline_tests.conversion.raw_runs import Raw, Row, messages_of
from trajectory_pipeline_tests.conversion.test_properties import Case, holds_for_the_sample_and_any_run

LAST = datetime.max.replace(tzinfo=UTC)


def by_sequence(raw: Raw) -> list[Raw]:
    return sorted(raw["messages"], key=lambda row: (row["sequence_id"], row["id"]))


def entries(row: Raw, column: str) -> list[Any]:
    """What a JSON column of a message holds, escaped; the columns that older versions of Letta use instead, as well."""
    found: list[Any] = escaped(read(row[column]) or [], "", [])
    if column == "content" and not found and row["text"]:
        return [{"type": "text", "text": row["text"]}]
    if column == "approvals" and not found and row["approve"] is not None:
        return [{"approve": row["approve"]}]
    return found


# --- order


@holds_for_the_sample_and_any_run
def test_turns_are_ordered_by_time_else_by_sequence(case: Case) -> None:
    turns = [(turn["step_id"], [message["message_id"] for message in turn["messages"]]) for turn in case.row["turns"]]
    assert turns == [(step_id, [row["id"] for row in rows]) for step_id, rows in ordered_turns(case.raw)]


def ordered_turns(raw: Raw) -> list[tuple[str | None, list[Raw]]]:
    """Step id and messages of each turn: steps by time, all others before the first turn whose messages come later."""
    rows = by_sequence(raw)
    created = {step["id"]: step["created_at"] for step in raw["steps"] + raw["foreign_steps"]}
    named = {step_id: [row for row in rows if row["step_id"] == step_id] for step_id in created}
    named |= {row["step_id"]: [r for r in rows if r["step_id"] == row["step_id"]] for row in rows if row["step_id"]}
    stretches_of_none = [list(group) for is_none, group in groupby(rows, lambda row: row["step_id"] is None) if is_none]
    # A step without time and messages comes last.
    placed = [(step_id, mine) for step_id, mine in named.items() if created.get(step_id) or not mine]
    turns = sorted(
        placed,
        key=lambda turn: (created[turn[0]] or LAST, turn[1][0]["sequence_id"] if turn[1] else float("inf"), turn[0]),
    )
    others = [turn for turn in named.items() if turn not in placed] + [(None, mine) for mine in stretches_of_none]
    for turn in sorted(others, key=lambda turn: (turn[1][0]["sequence_id"], turn[1][0]["id"])):
        later = [
            index
            for index, (_, mine) in enumerate(turns)
            if mine and mine[0]["sequence_id"] > turn[1][0]["sequence_id"]
        ]
        turns.insert(later[0] if later else len(turns), turn)
    return turns


@holds_for_the_sample_and_any_run
def test_continued_run_is_the_owner_of_the_first_foreign_step(case: Case) -> None:
    owners = {step["id"]: step["run_id"] for step in case.raw["foreign_steps"]}
    named = [owners.get(message["step_id"]) for message in by_sequence(case.raw)]
    others = [owner for owner in named if owner not in (None, case.raw["run"]["id"])]
    assert case.row["continues_run_id"] == (others[0] if others else None)


# --- escapes


@holds_for_the_sample_and_any_run
def test_escaped_lists_every_string_that_was_escaped(case: Case) -> None:
    raw, paths = case.raw, list[str]()
    for message in raw["messages"]:
        for column in ("content", "tool_calls", "tool_returns", "approvals"):
            escaped(read(message[column]) or [], f"messages[{message['id']}].{column}", paths)
    for step in raw["steps"] + raw["foreign_steps"]:
        escaped(read(step["error_data"]), f"steps[{step['id']}].error_data", paths)
        escaped(read(step["tags"]) or [], f"steps[{step['id']}].tags", paths)
    metadata = read(raw["run"]["metadata_"]) or {}
    place = f"runs[{raw['run']['id']}].metadata_"
    escaped(metadata.get("error"), f"{place}.error", paths)
    if isinstance(metadata.get("run_type"), str):
        escaped(metadata["run_type"], f"{place}.run_type", paths)
    answers = {f"messages[{message['id']}].assistant_text" for message in raw["messages"]}
    # A reply out of an argument string is parsed from it, and escaped on its own.
    assert set(case.row["escaped"]) - answers == set(paths)
    assert len(case.row["escaped"]) == len(set(case.row["escaped"]))
    for message in messages_of(case.row):
        text = message["assistant_text"] or ""
        assert escaped(text, "", []) == text
        if f"messages[{message['message_id']}].assistant_text" in case.row["escaped"]:
            assert "\\u" in text


# --- usage


def known_count(step: Raw, column: str, details: str, *names: str) -> int | None:
    if step[column] is not None:
        return int(step[column])
    found = read(step[details])
    for name in names:
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, Decimal) and value.as_tuple().exponent == 0:
            return int(value)
    return None


def tokens(step: Raw) -> dict[str, int | None]:
    return {
        "input_tokens": step["prompt_tokens"] or 0,
        "output_tokens": step["completion_tokens"] or 0,
        "total_tokens": step["total_tokens"] or 0,
        "cached_input_tokens": known_count(
            step, "cached_input_tokens", "prompt_tokens_details", "cached_tokens", "cache_read_tokens"
        ),
        "cache_write_tokens": known_count(step, "cache_write_tokens", "prompt_tokens_details", "cache_creation_tokens"),
        "reasoning_tokens": known_count(step, "reasoning_tokens", "completion_tokens_details", "reasoning_tokens"),
    }


def is_reported(step: Raw) -> bool:
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    details = ("prompt_tokens_details", "completion_tokens_details")
    return any(step[name] for name in counts) or any(bool(read(step[name])) for name in details)


@holds_for_the_sample_and_any_run
def test_tokens_are_those_of_own_steps_by_kind(case: Case) -> None:
    own = {step["id"]: tokens(step) for step in case.raw["steps"]}
    for turn in case.row["turns"]:
        for name in ("input_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"):
            assert turn[name] == (own[turn["step_id"]][name] if turn["step_id"] in own else None)
    for name in tokens({**case.raw["steps"][0]}) if own else ():
        counts = [counted[name] for counted in own.values() if counted[name] is not None]
        assert case.row[name] == (sum(counts) if counts else None)
    assert case.row["usage_reported"] == any(map(is_reported, case.raw["steps"]))


@holds_for_the_sample_and_any_run
def test_cost_is_the_sum_of_each_own_steps_price(case: Case) -> None:
    prices = [price(step, case.raw["run"]["created_at"]) for step in case.raw["steps"]]
    known = [each for each in prices if each is not None]
    expected = sum(known, Decimal(0)).quantize(Decimal("1e-9")) if known and len(known) == len(prices) else None
    assert case.row["cost_usd"] == expected


def price(step: Raw, run_created_at: Any) -> Decimal | None:
    at = step["created_at"] or run_created_at
    if not is_reported(step) or step["model"] is None or at is None:
        return None
    counted = tokens(step)
    try:
        usage = Usage(
            input_tokens=counted["input_tokens"],
            cache_read_tokens=counted["cached_input_tokens"] or 0,
            cache_write_tokens=counted["cache_write_tokens"] or 0,
            output_tokens=counted["output_tokens"],
        )
        return calc_price(
            usage, step["model"], provider_id=step["provider_name"], genai_request_timestamp=at
        ).total_price
    except (LookupError, ValueError):
        return None


# --- denials


@holds_for_the_sample_and_any_run
def test_denied_returns_answer_a_denied_call_or_share_its_step(case: Case) -> None:
    calls, steps = denials(case)
    without_call = sum(
        entry.get("approve") is False and not isinstance(entry.get("tool_call_id"), str)
        for row in case.raw["messages"]
        for entry in entries(row, "approvals")
    )
    step_of = {row["id"]: row["step_id"] for row in case.raw["messages"]}
    for message in messages_of(case.row):
        step_id = step_of[message["message_id"]]
        by_step = step_id is not None and step_id in steps
        for item in message["tool_returns"]:
            assert item["denied"] == (item["tool_call_id"] in calls or by_step)
    assert case.row["signals"]["denied_approvals"] == len(calls) + without_call


def denials(case: Case) -> tuple[set[str], set[str]]:
    """The calls that were denied by id, and the steps of decisions that name no call."""
    decisions = [(row["step_id"], entry) for row in case.raw["messages"] for entry in entries(row, "approvals")]
    denied = [(step_id, entry.get("tool_call_id")) for step_id, entry in decisions if entry.get("approve") is False]
    calls = {call_id for _, call_id in denied if isinstance(call_id, str)}
    return calls, {step_id for step_id, call_id in denied if not isinstance(call_id, str)} - {None}


# --- calls


NO_JSON = object()


def calls_of(case: Case) -> list[tuple[str | None, Any]]:
    """Each call's tool and its parsed arguments, in the order of the turns."""
    raws = {row["id"]: row for row in case.raw["messages"]}
    found = []
    for message in messages_of(case.row):
        for call in entries(raws[message["message_id"]], "tool_calls"):
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            name, arguments = function.get("name"), function.get("arguments")
            found.append((name if isinstance(name, str) else None, parsed(arguments)))
    return found


def parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return read(arguments or "null")
    except (ValueError, RecursionError):
        return (NO_JSON, arguments)


def is_same(one: tuple[str | None, Any], other: tuple[str | None, Any]) -> bool:
    return one[0] == other[0] and equal(one[1], other[1])


@holds_for_the_sample_and_any_run
def test_tools_requested_are_named_in_order_of_first_use(case: Case) -> None:
    names = [name for name, _ in calls_of(case) if name is not None]
    assert case.row["tools_requested"] == sorted(set(names), key=names.index)


@holds_for_the_sample_and_any_run
def test_tools_used_are_requested_or_answered_here(case: Case) -> None:
    calls, returns = own_calls(case), own_returns(case)
    answered = {item["tool_call_id"] for item, _ in returns if not item["denied"]} - {None}
    for name in case.row["tools_used"]:
        by_call = any(
            call["name"] == name and not denied and (role != "approval" or call["id"] in answered)
            for call, role, denied in calls
        )
        by_return = any(
            not item["denied"] and name in ({each["name"] for each in asked(case, item["tool_call_id"])} | {row_name})
            for item, row_name in returns
        )
        assert by_call or by_return
    for call, role, denied in calls:
        if call["name"] is not None and not denied and role != "approval":
            assert call["name"] in case.row["tools_used"]


@holds_for_the_sample_and_any_run
def test_tools_used_hold_what_each_return_names(case: Case) -> None:
    own_ids = {call["id"] for call, _, _ in own_calls(case)}
    for item, _ in own_returns(case):
        names = {each["name"] for each in asked(case, item["tool_call_id"])}
        if not item["denied"] and item["tool_call_id"] not in own_ids and len(names) == 1:
            assert names - {None} <= set(case.row["tools_used"])


@holds_for_the_sample_and_any_run
def test_tools_denied_are_those_of_denied_calls(case: Case) -> None:
    calls, steps = denials(case)
    names = [call["name"] for call in case.raw["asked_calls"] if call["id"] in calls or call["step_id"] in steps]
    names += [call["name"] for call, _, denied in own_calls(case) if denied]
    names = [name for name in names if name is not None]
    assert case.row["tools_denied"] == sorted(set(names), key=names.index)
    if not case.row["signals"]["denied_approvals"]:
        assert case.row["tools_denied"] == []


def own_calls(case: Case) -> list[tuple[Row, str, bool]]:
    """Each call, the role of its message, and whether a person denied it."""
    calls, steps = denials(case)
    step_of = {row["id"]: row["step_id"] for row in case.raw["messages"]}
    return [
        (call, message["role"], call["id"] in calls or step_of[message["message_id"]] in steps)
        for message in messages_of(case.row)
        for call in message["tool_calls"]
    ]


def own_returns(case: Case) -> list[tuple[Row, str | None]]:
    """Each return, and the tool that its row names for it: that of the first one that was not denied."""
    found = []
    for message in messages_of(case.row):
        ran = [item for item in message["tool_returns"] if not item["denied"]]
        for item in message["tool_returns"]:
            is_first = message["role"] == "tool" and ran and item is ran[0]
            found.append((item, message["name"] if is_first else None))
    return found


def asked(case: Case, call_id: str | None) -> list[Raw]:
    return [call for call in case.raw["asked_calls"] if call_id is not None and call["id"] == call_id]


@holds_for_the_sample_and_any_run
def test_repeated_calls_are_those_equal_to_an_earlier_one(case: Case) -> None:
    calls = calls_of(case)
    repeated = [call for index, call in enumerate(calls) if any(is_same(call, earlier) for earlier in calls[:index])]
    assert case.row["signals"]["repeated_calls"] == len(repeated)


@holds_for_the_sample_and_any_run
def test_longest_cycle_is_found_by_trying_every_stretch(case: Case) -> None:
    calls = calls_of(case)
    assert case.row["signals"]["longest_cycle"] == max(stretches(calls), default=0)


def stretches(calls: list[tuple[str | None, Any]]) -> Iterator[int]:
    same = [[is_same(one, other) for other in calls] for one in calls]
    for begin in range(len(calls)):
        for size in (1, 2, 3, 4):
            end = begin + size
            while end < len(calls) and same[end][end - size]:
                end += 1
            if end - begin >= 3 * size:
                yield end - begin


@holds_for_the_sample_and_any_run
def test_tool_errors_are_recovered_only_by_a_later_success(case: Case) -> None:
    returns = [item for message in messages_of(case.row) for item in message["tool_returns"] if not item["denied"]]
    failed = [None if item["status"] is None else item["status"] == "error" for item in returns]
    signals = case.row["signals"]
    assert signals["tool_errors"] == failed.count(True)
    assert signals["last_tool_call_failed"] == (failed[-1] if failed else None)
    if True not in failed:
        assert signals["error_recovered"] is None
    if signals["error_recovered"]:
        last_error = len(failed) - 1 - failed[::-1].index(True)
        assert "success" in [item["status"] for item in returns[last_error:]]


# --- messages


@holds_for_the_sample_and_any_run
def test_kind_is_the_role_unless_the_first_text_says_otherwise(case: Case) -> None:
    raws = {row["id"]: row for row in case.raw["messages"]}
    for message in messages_of(case.row):
        content = entries(raws[message["message_id"]], "content")
        text = next((part["text"] for part in content if isinstance(part.get("text"), str)), "")
        assert message["kind"] == kind(message["role"], text)


def kind(role: str, text: str) -> str:
    agents = ("[Incoming message from agent with ID", "<system-reminder>\nYou are a sleeptime agent")
    if role in ("user", "system") and text.startswith(agents):
        return "agent"
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return role
    if role == "user" and isinstance(envelope, dict) and envelope.get("type") in ("heartbeat", "system_alert", "login"):
        return str(envelope["type"])
    return role


@holds_for_the_sample_and_any_run
def test_reply_and_thought_follow_the_agents_convention(case: Case) -> None:
    config = read(case.raw["run"]["request_config"]) or {}
    tool = config.get("assistant_message_tool_name") or "send_message"
    argument = config.get("assistant_message_tool_kwarg") or "message"
    agent_type = (case.raw["agent"] or {"agent_type": None})["agent_type"]
    raws = {row["id"]: row for row in case.raw["messages"]}
    for message in messages_of(case.row):
        row = raws[message["message_id"]]
        expected = reply_and_thought(row, tool, argument, agent_type)
        assert (message["assistant_text"], message["inner_thought"]) == expected


def reply_and_thought(row: Raw, tool: str, argument: str, agent_type: str | None) -> tuple[str | None, str | None]:
    if row["role"] not in ("assistant", "approval"):
        return None, None
    parts = [part.get("text") for part in entries(row, "content") if part.get("type") == "text"]
    text = "\n\n".join(part for part in parts if isinstance(part, str) and part) or None
    functions = [call.get("function") for call in entries(row, "tool_calls")]
    sends = [function for function in functions if isinstance(function, dict) and function.get("name") == tool]
    replies = [reply for function in sends if (reply := reply_of(function, argument))]
    older = ("memgpt_agent", "memgpt_v2_agent", "react_agent", "workflow_agent", "split_thread_agent")
    if agent_type in older or (agent_type is None and sends):
        return "\n\n".join(replies) or None, text
    return "\n\n".join([text, *replies] if text else replies) or None, None


def reply_of(function: Row, argument: str) -> str | None:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    value = arguments.get(argument) if isinstance(arguments, dict) else None
    return escaped(value, "", []) if isinstance(value, str) else None


@holds_for_the_sample_and_any_run
def test_final_answer_is_the_agents_last_message_but_decisions(case: Case) -> None:
    signals = case.row["signals"]
    own = [
        message
        for message in messages_of(case.row)
        if message["role"] in ("assistant", "approval") and not message["approvals"]
    ]
    assert signals["empty_final_answer"] == (
        None if not own else not own[-1]["assistant_text"] and not own[-1]["tool_calls"]
    )
    feedback = [step["feedback"] for step in case.raw["steps"]]
    assert signals["positive_feedback"] == feedback.count("positive")
    assert signals["negative_feedback"] == feedback.count("negative")
    assert signals["person_messages"] == sum(message["kind"] == "user" for message in messages_of(case.row))
    assert signals["refusals"] == sum(
        any(part.get("type") == "refusal" for part in entries(row, "content")) for row in case.raw["messages"]
    )
