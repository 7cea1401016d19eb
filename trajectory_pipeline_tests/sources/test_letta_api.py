"""Letta's REST API: the conformance suite against a server with the oddities of a real one, and these one by one."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.errors import SourceError, WithheldDeletionsError
from trajectory_pipeline.partition_keys import HOUR, at_source, floor_to_hour, partition_key, source_run_id
from trajectory_pipeline.sources import letta_api
from trajectory_pipeline.sources.found_runs import FoundRuns
from trajectory_pipeline.sources.letta_api import LettaApiSource
from trajectory_pipeline_tests.sources.conformance import FIRST, IMAGE, PLAIN, Shape, Sinks, SourceConformance, World
from trajectory_pipeline_tests.sources.letta_server import LettaServer, serving

Row = dict[str, Any]
NAME = "cloud"
AGENT = "agent-1"


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def put_run(
    server: LettaServer, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN, **more: Any
) -> None:
    """Put a run into a server, as its API shows it: times of messages cut to seconds, ``completed_at`` without zone."""
    run_id, day = f"run-{key}", stamp(at.replace(microsecond=0))
    content: str | list[Row] = asked.replace("\0", "")
    if shape.has_image:
        source = {"type": "base64", "media_type": "image/png", "data": IMAGE}
        content = [{"type": "text", "text": asked}, {"type": "image", "source": source}]
    server.agents[AGENT] = {
        "id": AGENT,
        "name": "Ada",
        "agent_type": "memgpt_agent",
        "tags": ["x"],
        "system": "Be kind.",
    }
    server.runs[run_id] = {
        "id": run_id,
        "agent_id": AGENT,
        "status": "completed",
        "stop_reason": "end_turn",
        "created_at": stamp(at - shape.took),
        "completed_at": at.replace(tzinfo=None).isoformat(),
        "metadata": {"run_type": "send_message"},
        **({shape.extra: "odd"} if shape.extra else {}),
        **more,
    }
    server.steps[run_id] = [
        {"id": f"step-{key}-{n}", "run_id": run_id, "agent_id": AGENT, "status": "success", "model": "gpt-5",
         "provider_name": "openai", "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        for n in (1, 2)
    ]  # fmt: skip
    first, last = ({"step_id": f"step-{key}-{n}", "date": day} for n in (1, 2))
    messages: list[Row] = [{"id": f"message-{key}-1", "message_type": "user_message", "content": content, **first}]
    for number in range(shape.rounds):
        call_id, row = f"call_{number + 1}", {"id": f"message-{key}-{2 * number + 2}", **first}
        call = {"name": "look", "arguments": '{"folder": "/"}', "tool_call_id": call_id}
        # One row of the database, as three messages of its id.
        messages += [
            {**row, "message_type": "reasoning_message", "reasoning": "I think."},
            {**row, "message_type": "assistant_message", "content": "I look."},
            {**row, "message_type": "tool_call_message", "tool_call": call},
        ]
        back = {"tool_return": shape.returned(number), "status": "success", "tool_call_id": call_id}
        if shape.has_return:
            message = {"id": f"message-{key}-{2 * number + 3}", "message_type": "tool_return_message"}
            messages.append({**message, **back, **first})
    ended = {"id": f"message-{key}-{2 * shape.rounds + 2}", "message_type": "assistant_message", "content": answered}
    server.messages[run_id] = [*messages, {**ended, **last}]


class LettaApiWorld(World):
    """A server with a page of two runs, so that each walk has several."""

    def __init__(self, server: LettaServer) -> None:
        self.server = server
        self.source = LettaApiSource(NAME, server.url, "key-1", 1_000_000, fresh_seconds=0, runs_per_page=2)
        self.written: Counter[str] = Counter()

    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        # A change that leaves the run's own row alone would not be seen: the source says so.
        self.written[key] += 1
        metadata = {"run_type": "send_message", "revision": self.written[key]}
        put_run(self.server, key, asked, answered, at, shape, conversation_id="conv-1", metadata=metadata)

    def run_id(self, key: str) -> str:
        return source_run_id(NAME, f"run-{key}")

    def remove_run(self, key: str) -> None:
        for held in (self.server.runs, self.server.steps, self.server.messages):
            del held[f"run-{key}"]

    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        put_run(self.server, key, asked, "", at, status="running", completed_at=None, stop_reason=None)

    def cut_run(self, key: str, share: float) -> None:
        written = self.server.messages[f"run-{key}"]
        del written[int(share * len(written)) :]
        self.server.runs[f"run-{key}"] |= {"status": "running", "completed_at": None, "stop_reason": None}

    def break_run(self, key: str) -> str:
        self.server.messages[f"run-{key}"][0]["message_type"] = None
        self.server.messages[f"run-{key}"][0]["content"] = [5]
        return f"message-{key}-1"

    def vanish(self) -> None:
        self.server.circles = True
        self.server.failures += [503] * 30

    def return_(self) -> None:
        self.server.circles = False
        self.server.failures.clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LettaServer]:
    monkeypatch.setattr(letta_api, "_retry_after", lambda *_: 0.0)
    letta_api._WALKS.clear()
    with serving(LettaServer()) as running:
        yield running


@pytest.fixture
def world(server: LettaServer) -> LettaApiWorld:
    return LettaApiWorld(server)


@pytest.mark.heavy
class TestLettaApi(SourceConformance):
    """The suite."""

    def test_refused_run_is_quarantined_alone_and_what_was_captured_stays(
        self, world: LettaApiWorld, sinks: Sinks
    ) -> None:
        for key in ("a", "b"):
            world.write_run(key, "go", "done", FIRST)
        sinks.sync(world.source)
        captured = sinks.rows()
        for key in ("b", "c", "d"):
            world.write_run(key, "go", "done again", FIRST)
        world.server.instead = lambda path, query: (
            (500, {})
            if path in ("/v1/runs/run-b/messages", "/v1/runs/run-c/steps")
            else world.server.answer(path, query)
        )
        sinks.sync(world.source)
        assert sinks.rows().keys() == {world.run_id(key) for key in "abd"}
        assert sinks.rows()[world.run_id("b")]["content_digest"] == captured[world.run_id("b")]["content_digest"]
        assert sinks.quarantine().keys() == {world.run_id("b:unreadable"), world.run_id("c:unreadable")}
        assert "answered 500" in sinks.quarantine()[world.run_id("c:unreadable")]["json_path"]
        world.server.instead = None
        for key in ("b", "c"):
            world.write_run(key, "go", "done again", FIRST)
        sinks.sync(world.source)
        assert sinks.rows().keys() == {world.run_id(key) for key in "abcd"}
        assert sinks.rows()[world.run_id("b")]["content_digest"] != captured[world.run_id("b")]["content_digest"]
        assert not sinks.quarantine()

    def test_run_that_loses_all_messages_stops_its_hour(self, world: LettaApiWorld, sinks: Sinks) -> None:
        for key in ("a", "b", "c", "d", "e"):
            world.write_run(key, "go", "done", FIRST)
        sinks.sync(world.source)
        captured = sinks.rows()
        world.write_run("b", "go", "done", FIRST)
        world.server.messages["run-b"], world.server.steps["run-b"] = [], []
        with pytest.raises(WithheldDeletionsError, match="would have no messages or steps any more"):
            sinks.sync(world.source)
        assert sinks.rows() == captured


def source(server: LettaServer, **options: Any) -> LettaApiSource:
    return LettaApiSource(
        NAME, server.url, "key-1", **{"requests_per_minute": 1_000_000, "fresh_seconds": 0, **options}
    )


def read(source: LettaApiSource) -> tuple[FoundRuns, dict[str, Row]]:
    with source.snapshot() as snapshot:
        rows: dict[str, Row] = {}
        for hour in snapshot.runs_by_hour():
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                conversion = convert_batch(batch, partition_key(hour))
                assert not conversion.quarantined
                rows |= {row["run_id"]: row for row in conversion.rows}
        return snapshot, rows


def test_rows_of_the_api_become_the_trajectory(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    _, rows = read(source(server))
    row = rows[f"{NAME}:run-a"]
    messages = [message for turn in row["turns"] for message in turn["messages"]]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    # The API has taken inner thought and reply apart already: an agent's type must not do so again.
    assert [message["assistant_text"] for message in messages] == [None, "I look.", None, "done"]
    assert [part["type"] for part in messages[1]["content"]] == ["reasoning", "text"]
    assert row["tools_used"] == ["look"]
    assert (row["run_type"], row["agent_name"], row["tags"]) == ("send_message", "Ada", ["x"])
    assert (row["step_count"], row["input_tokens"], row["end_time"]) == (2, 200, FIRST)
    assert (row["heuristic_outcome"], row["context"]["system_prompt"]) == ("success", "Be kind.")
    assert server.keys == {"Bearer key-1"}


@pytest.mark.parametrize("inverted", [True, False])
def test_all_runs_are_found_whichever_way_the_pages_go(server: LettaServer, *, inverted: bool) -> None:
    server.inverted = inverted
    for number in range(7):
        put_run(server, str(number), "go", "done", FIRST + timedelta(minutes=number))
    snapshot, rows = read(source(server, runs_per_page=2))
    assert set(rows) == {f"{NAME}:run-{number}" for number in range(7)}
    assert bool(snapshot.notes) == inverted


def test_pages_that_go_in_circles_are_an_error(server: LettaServer) -> None:
    for number in range(4):
        put_run(server, str(number), "go", "done", FIRST)
    server.circles = True
    with pytest.raises(SourceError, match="cannot be walked"):
        read(source(server, runs_per_page=2))


def test_walk_that_broke_off_goes_on_where_it_stopped(server: LettaServer) -> None:
    server.inverted = False
    for number in range(6):
        put_run(server, str(number), "go", "done", FIRST + timedelta(minutes=number))
    one = source(server, runs_per_page=2)
    server.instead = lambda path, query: (503, {}) if query.get("after") == "run-3" else server.answer(path, query)
    with pytest.raises(SourceError, match="goes on from there"):
        read(one)
    server.instead = None
    server.requests.clear()
    _, rows = read(one)
    assert len(rows) == 6
    walked = [query.get("after") for path, query in server.requests if path == "/v1/runs/"]
    assert walked == ["run-3", "run-5"]


def test_walk_whose_place_was_deleted_begins_anew(server: LettaServer) -> None:
    server.inverted = False
    for number in range(6):
        put_run(server, str(number), "go", "done", FIRST + timedelta(minutes=number))
    one = source(server, runs_per_page=2)
    server.instead = lambda path, query: (503, {}) if query.get("after") == "run-3" else server.answer(path, query)
    with pytest.raises(SourceError, match="goes on from there"):
        read(one)
    server.instead = None
    del server.runs["run-3"]
    with pytest.raises(SourceError, match="The next reading begins anew"):
        read(one)
    assert len(read(one)[1]) == 5


def test_server_that_gives_smaller_pages_than_asked_for_is_read_to_its_end(server: LettaServer) -> None:
    for number in range(7):
        put_run(server, str(number), "go", "done", FIRST + timedelta(minutes=number))
    server.instead = lambda path, query: server.answer(path, {**query, "limit": "3"} if path == "/v1/runs/" else query)
    assert len(read(source(server))[1]) == 7


def test_messages_behind_a_page_that_lacks_some_are_read(server: LettaServer) -> None:
    """A row without content makes no message: the page that it was in is shorter, and not the last one."""
    put_run(server, "a", "go", "done", FIRST)
    message = server.messages["run-a"][0]
    server.messages["run-a"] = [{**message, "id": f"message-{n}"} for n in range(250)]

    def without_some(path: str, query: dict[str, str]) -> Any:
        status, rows = server.answer(path, query)
        silent = ("message-7", "message-130")
        return status, [row for row in rows if row["id"] not in silent] if path.endswith("/messages") else rows

    server.instead = without_some
    (row,) = read(source(server))[1].values()
    assert row["message_count"] == 248


@pytest.mark.parametrize("limit", [1, 20])
def test_messages_and_steps_of_a_server_that_gives_smaller_pages_are_read_to_their_end(
    server: LettaServer, limit: int
) -> None:
    put_run(server, "a", "go", "done", FIRST, Shape(rounds=30))
    server.instead = lambda path, query: server.answer(path, {**query, "limit": str(limit)})
    (row,) = read(source(server))[1].values()
    assert (row["message_count"], row["step_count"]) == (62, 2)


def test_run_without_an_agent_is_quarantined_alone(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST, agent_id=None)
    put_run(server, "b", "go", "done", FIRST)
    hour = at_source(floor_to_hour(FIRST), NAME)
    with source(server).snapshot() as snapshot:
        (batch,) = snapshot.terminal_runs(hour, hour + HOUR)
    conversion = convert_batch(batch, partition_key(hour))
    assert [run.json_path for run in conversion.quarantined] == ["runs[cloud:run-a].agent_id"]
    assert [row["run_id"] for row in conversion.rows] == ["cloud:run-b"]
    # The API has no agent of such a name, and would refuse the whole run.
    assert not any(path.endswith("/None") for path, _ in server.requests)


def test_answer_that_breaks_off_is_asked_for_again(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    server.broken_off = 2
    assert len(read(source(server))[1]) == 1
    assert server.broken_off == 0


def test_message_of_a_kind_that_is_not_known_is_kept(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    server.messages["run-a"][1] |= {"message_type": "hologram_message", "content": "three beams"}
    (row,) = read(source(server))[1].values()
    texts = [part["text"] for turn in row["turns"] for message in turn["messages"] for part in message["content"]]
    assert "three beams" in texts


def test_walk_begins_anew_where_the_server_refuses_the_run_that_it_stopped_at(server: LettaServer) -> None:
    server.inverted = False
    for number in range(4):
        put_run(server, str(number), "go", "done", FIRST + timedelta(minutes=number))
    one = source(server, runs_per_page=2)
    for status, said in ((503, "goes on from there"), (404, "answered 404")):
        answer = (status, {})
        server.instead = lambda path, query, answer=answer: answer if "after" in query else server.answer(path, query)
        with pytest.raises(SourceError, match=said):
            read(one)
    server.instead = None
    assert len(read(one)[1]) == 4


def test_requests_are_paced_and_a_fresh_list_is_not_walked_again(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    slow = source(server, requests_per_minute=600, fresh_seconds=60)
    started = time.monotonic()
    read(slow)
    # The list, the agent, steps and messages: three pauses of 0.1 s between them.
    assert time.monotonic() - started >= 0.3
    server.requests.clear()
    with slow.snapshot() as snapshot:
        assert sum(snapshot.runs_by_hour().values()) == 1
    assert server.requests == []


def test_busy_server_is_asked_again_and_a_refusal_says_what_to_set(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    server.failures += [429, 503]
    assert len(read(source(server))[1]) == 1
    server.failures.append(401)
    with pytest.raises(SourceError, match="TRAJECTORY_LETTA_API_KEY"):
        read(source(server))


def test_more_than_a_page_of_steps_and_messages_is_read_to_its_end(server: LettaServer) -> None:
    put_run(server, "a", "go", "done", FIRST)
    server.steps["run-a"] = [{**server.steps["run-a"][0], "id": f"step-{n}"} for n in range(250)]
    message = server.messages["run-a"][0]
    server.messages["run-a"] = [{**message, "id": f"message-{n}", "step_id": "step-0"} for n in range(250)]
    (row,) = read(source(server))[1].values()
    assert (row["step_count"], row["message_count"]) == (250, 250)


def test_answer_to_an_approval_carries_the_step_of_the_run_that_asked(server: LettaServer) -> None:
    put_run(server, "asked", "go", "may I?", FIRST)
    put_run(server, "answered", "go", "done", FIRST + timedelta(minutes=1))
    decision = {"type": "approval", "tool_call_id": "call_1", "approve": False, "reason": "no"}
    server.messages["run-answered"][0] |= {
        "message_type": "approval_response_message",
        "approvals": [decision],
        "content": None,
        "step_id": "step-asked-2",
    }
    row = read(source(server))[1][f"{NAME}:run-answered"]
    assert row["continues_run_id"] == f"{NAME}:run-asked"
    (said,) = row["turns"][0]["messages"][0]["approvals"]
    assert (said["approve"], said["reason"]) == (False, "no")


def test_answer_that_is_no_list_of_runs_names_the_server(server: LettaServer) -> None:
    server.instead = lambda *_: (200, {"runs": json.dumps([])})
    with pytest.raises(SourceError, match="is it a Letta server"):
        read(source(server))
