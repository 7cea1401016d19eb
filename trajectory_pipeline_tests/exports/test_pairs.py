"""Pairs for DPO: both sides answer one question, and part at a decision of the agent."""

import json

from trajectory_pipeline.exports.chat import NO_LABEL
from trajectory_pipeline.exports.pairs import pair_side, preference
from trajectory_pipeline.exports.source import ExportRun, JsonObject, NoPlace
from trajectory_pipeline_tests.conversion.raw_runs import Raw, call, message, returned
from trajectory_pipeline_tests.exports.test_chat import ASKED, the_run


def side(run: ExportRun, *, across_agents: bool = False) -> tuple[str, bool, JsonObject]:
    """Return one side of a pair, of a run that can be one."""
    found = pair_side(run, across_agents=across_agents)
    assert not isinstance(found, NoPlace)
    return found


def metadata(recompiled: str, agent: str = "agent-1") -> str:
    return f"\n\n<memory_metadata>\n- AGENT_ID: {agent}\n- Last recompiled: {recompiled}\n</memory_metadata>"


def letta_return(value: str, time: str) -> Raw:
    """Make a message with a return as Letta's server wraps it."""
    text = json.dumps({"status": "OK", "message": value, "time": time}, indent=2)
    return message(3, "tool", tool_returns=[returned(text=text)])


def test_pair_may_differ_in_what_letta_itself_wrote_and_when() -> None:
    look = message(2, tool_calls=[call("look")])
    success, failure = (
        the_run(ASKED, look, letta_return("here", time), message(4, reply=answer), system=f"Be brief.{metadata(time)}")
        for time, answer in (("09:00", "Here."), ("10:00", "Nowhere."))
    )
    sides = [side(run, across_agents=False) for run in (success, failure)]
    (asked, _, chosen), (asked_too, _, rejected) = sides
    assert asked == asked_too
    found = preference(chosen, rejected)
    assert found is not None
    assert found.parted_at == 4
    assert [found.record[name][0]["content"] for name in ("chosen", "rejected")] == ["Here.", "Nowhere."]
    assert found.record["prompt"][0]["content"].startswith("Be brief.")


def test_only_a_success_and_a_failure_are_sides_of_a_pair() -> None:
    for outcome in ("partial_success", "unknown"):
        run = the_run(ASKED, message(2, reply="Here."), outcome=outcome)
        assert pair_side(run, across_agents=True) == NO_LABEL


def test_pair_across_agents_may_have_no_system_prompt_on_one_side() -> None:
    answered = message(2, reply="Here.")
    sides = [side(the_run(ASKED, answered, system=system), across_agents=True) for system in (None, "You are Wren.")]
    assert sides[0][0] == sides[1][0]


def test_pair_across_agents_has_the_prompt_of_the_success() -> None:
    success = the_run(ASKED, message(2, reply="Here."), system="You are Wren.")
    failure = the_run(ASKED, message(2, reply="Nowhere."), system="You are Milo.", outcome="failure")
    apart = [side(run, across_agents=False) for run in (success, failure)]
    assert apart[0][0] != apart[1][0]
    (asked, label, chosen), (asked_too, other, rejected) = (side(run, across_agents=True) for run in (success, failure))
    assert (asked == asked_too, label, other) == (True, True, False)
    found = preference(chosen, rejected)
    assert found is not None
    assert [one["content"] for one in found.record["prompt"]] == ["You are Wren.", "Where is it?"]


def test_what_tools_returned_is_compared_but_for_its_time() -> None:
    look = message(2, tool_calls=[call("look")])
    success, failure = (
        the_run(ASKED, look, letta_return(value, "09:00"), message(4, reply=value)) for value in ("here", "nowhere")
    )
    (_, _, chosen), (_, _, rejected) = (side(run) for run in (success, failure))
    assert preference(chosen, rejected) is None
