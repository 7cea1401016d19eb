"""A folder of ATIF files: the conformance suite, and what is particular to the format."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import atif
import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.partition_keys import HOUR, partition_key, source_run_id
from trajectory_pipeline.sources.atif import VERSIONS, AtifSource
from trajectory_pipeline.sources.found_runs import FoundRuns
from trajectory_pipeline_tests.object_store import s3_server, s3_variables
from trajectory_pipeline_tests.sources.conformance import FIRST, PLAIN, Shape, Sinks, SourceConformance, World
from trajectory_pipeline_tests.sources.opened_files import opened_files

Row = dict[str, Any]
NAME = "bench"


def agent_step(message: str, at: datetime | None, **more: Any) -> Row:
    return {"source": "agent", "message": message, "timestamp": at and at.isoformat(), **more}


def user_step(message: str | list[Row], at: datetime | None, **more: Any) -> Row:
    return {"source": "user", "message": message, "timestamp": at and at.isoformat(), **more}


def trajectory(*steps: Row, version: str = "ATIF-v1.8", **more: Any) -> Row:
    """Return a trajectory that the reference models accept."""
    numbered = [{"step_id": number, **step} for number, step in enumerate(steps, 1)]
    document = {
        "schema_version": version,
        "session_id": "session-1",
        "agent": {"name": "terminus-2", "version": "2.0", "model_name": "gpt-5"},
        "steps": numbered,
        **more,
    }
    atif.Trajectory.model_validate(document)
    return document


def finished(asked: str, answered: str, at: datetime, shape: Shape = PLAIN, **more: Any) -> Row:
    question: str | list[Row] = asked
    if shape.has_image:
        source = {"media_type": "image/png", "path": "shot.png"}
        question = [{"type": "text", "text": asked}, {"type": "image", "source": source}]
    steps = [user_step(question, at - shape.took)]
    for number in range(shape.rounds):
        call_id = f"call_{number + 1}"
        results = [{"source_call_id": call_id, "content": shape.returned(number)}]
        step = agent_step(
            "I look.",
            at - shape.took / 2,
            tool_calls=[{"tool_call_id": call_id, "function_name": "look", "arguments": {"folder": "/"}}],
            metrics={
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "cached_tokens": 40,
                "extra": {"reasoning_tokens": 3},
            },
        )
        steps.append({**step, "observation": {"results": results}} if shape.has_return else step)
    document = trajectory(*steps, agent_step(answered, at), **more)
    # The reference models refuse what they do not know.
    return {**document, **({shape.extra: "odd"} if shape.extra else {})}


class AtifWorld(World):
    """Each run is a file; all have one session id."""

    def __init__(self, location: str) -> None:
        self.source = AtifSource(NAME, location)
        self.filesystem, self.root = fsspec.core.url_to_fs(location)
        # A store without folders has this one as long as something is in it.
        self.write("notes", "none of ours", "readme.txt")

    def path(self, key: str, name: str = "trajectory.json") -> str:
        return f"{self.root}/{key}/{name}"

    def write(self, key: str, text: str, name: str = "trajectory.json") -> None:
        self.filesystem.makedirs(f"{self.root}/{key}", exist_ok=True)
        self.filesystem.pipe_file(self.path(key, name), text.encode())

    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        self.write(key, json.dumps(finished(asked, answered, at, shape)))

    def run_id(self, key: str) -> str:
        return source_run_id(NAME, f"{key}/trajectory.json")

    def remove_run(self, key: str) -> None:
        self.filesystem.rm_file(self.path(key))

    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        """A harness that has not written its file yet."""
        self.write(key, "", "trajectory.json.part")

    def cut_run(self, key: str, share: float) -> None:
        text = self.filesystem.cat_file(self.path(key)).decode()
        self.write(key, text[: int(share * len(text))])

    def break_run(self, key: str) -> str:
        text = self.filesystem.cat_file(self.path(key)).decode()
        self.write(key, text[: len(text) // 2])
        return f"{key}/trajectory.json: is no JSON"

    def damages(self, key: str) -> dict[str, Callable[[], object]]:
        return {
            **super().damages(key),
            "no object": lambda: self.write(key, "[1, 2]"),
            "of a later version": lambda: self.write(key, json.dumps({"schema_version": "ATIF-v9.0"})),
            "without steps": lambda: self.write(key, json.dumps({"schema_version": "ATIF-v1.8"})),
        }

    def vanish(self) -> None:
        self._move(self.root, f"{self.root}-gone")

    def return_(self) -> None:
        self._move(f"{self.root}-gone", self.root)

    def _move(self, root: str, to: str) -> None:
        for path in self.filesystem.find(root):
            target = f"{to}{path.removeprefix(root)}"
            self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.filesystem.mv(path, target)
        if self.filesystem.exists(root):
            self.filesystem.rm(root, recursive=True)


@pytest.fixture(scope="module")
def object_server() -> Iterator[str]:
    with s3_server() as url:
        yield url


class TestAtif(SourceConformance):
    """The suite on a folder of this machine."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> AtifWorld:
        return AtifWorld(str(tmp_path / "jobs"))


@pytest.mark.heavy
class TestAtifInMemory(SourceConformance):
    """The suite on a store that has no folders of this machine."""

    @pytest.fixture
    def world(self) -> Iterator[AtifWorld]:
        world = AtifWorld("memory://jobs")
        yield world
        world.filesystem.rm("/", recursive=True)


@pytest.mark.heavy
@pytest.mark.process
class TestAtifInS3(SourceConformance):
    """The suite on S3's own wire."""

    @pytest.fixture
    def world(self, object_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[AtifWorld]:
        with s3_variables(object_server, monkeypatch):
            S3FileSystem().makedirs("runs", exist_ok=True)
            yield AtifWorld(f"s3://runs/{tmp_path.name}/jobs")


def read(location: str) -> tuple[FoundRuns, dict[str, Row], dict[str, str]]:
    """Read a folder; returns the view, the trajectories by id, and what was quarantined with the reason."""
    with AtifSource(NAME, location).snapshot() as snapshot:
        rows: dict[str, Row] = {}
        bad: dict[str, str] = {}
        for hour in snapshot.runs_by_hour():
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                conversion = convert_batch(batch, partition_key(hour))
                rows |= {row["run_id"]: row for row in conversion.rows}
                bad |= {run.run_id: run.json_path for run in conversion.quarantined}
        return snapshot, rows, bad


def messages_of(row: Row) -> list[Row]:
    return [message for turn in row["turns"] for message in turn["messages"]]


def kinds_of(row: Row) -> list[tuple[str, str | None]]:
    return [(m["role"], m["content"][0]["text"] if m["content"] else None) for m in messages_of(row)]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gives_the_same_run(tmp_path: Path, version: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST, version=version)))
    _, rows, bad = read(str(tmp_path))
    (row,) = rows.values()
    assert not bad
    assert kinds_of(row) == [
        ("user", "go"), ("assistant", "I look."), ("tool", "no such folder"), ("assistant", "done"),
    ]  # fmt: skip
    assert (row["step_count"], row["input_tokens"], row["cached_input_tokens"], row["reasoning_tokens"]) == (
        2,
        100,
        40,
        3,
    )
    assert (row["agent_name"], row["conversation_id"], row["models"]) == ("terminus-2", "session-1", ["gpt-5"])
    # ATIF records neither how a run ended nor whether a tool succeeded.
    assert (row["status"], row["execution_status"], row["heuristic_outcome"]) == ("unknown", "unknown", "unknown")
    assert [item["status"] for message in messages_of(row) for item in message["tool_returns"]] == [None]


def test_sub_agents_are_runs_of_their_own(tmp_path: Path) -> None:
    inner = trajectory(user_step("inner", FIRST), agent_step("inner done", FIRST), trajectory_id="b")
    outer = trajectory(
        user_step("sub", FIRST), agent_step("sub done", FIRST), trajectory_id="a", subagent_trajectories=[inner]
    )
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST, subagent_trajectories=[outer])))
    _, rows, _ = read(str(tmp_path))
    assert {run_id: kinds_of(row)[0][1] for run_id, row in rows.items()} == {
        f"{NAME}:t.json": "go",
        f"{NAME}:t.json#0": "sub",
        f"{NAME}:t.json#0/0": "inner",
    }


def test_runs_of_a_file_that_cannot_be_read_stay_as_they_were_captured(tmp_path: Path) -> None:
    inner = trajectory(user_step("sub", FIRST), agent_step("sub done", FIRST), trajectory_id="a")
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST, subagent_trajectories=[inner])))
    _, rows, _ = read(str(tmp_path))
    (tmp_path / "t.json").write_text("")
    snapshot, _, bad = read(str(tmp_path))
    assert all(location.unproven for location in snapshot.run_locations(list(rows)).values())
    assert [record.place for record in snapshot.unreadable] == [f"{tmp_path}/t.json"]
    # Readable again: what stood for it is no run any more, and leaves the quarantine.
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST)))
    snapshot, rows, _ = read(str(tmp_path))
    assert list(rows) == [f"{NAME}:t.json"]
    assert [(each.exists, each.terminal) for each in snapshot.run_locations(list(bad)).values()] == [(True, False)]


def test_continuation_continues_the_run_whose_context_it_copied(tmp_path: Path) -> None:
    first = finished("go", "I stop here", FIRST, continued_trajectory_ref="t.cont-1.json")
    then = trajectory(
        user_step("go", FIRST, is_copied_context=True),
        agent_step("I look.", FIRST, is_copied_context=True),
        agent_step("done", FIRST + HOUR, metrics={"prompt_tokens": 7, "completion_tokens": 1}),
    )
    (tmp_path / "t.json").write_text(json.dumps(first))
    (tmp_path / "t.cont-1.json").write_text(json.dumps(then))
    _, rows, _ = read(str(tmp_path))
    row = rows[f"{NAME}:t.cont-1.json"]
    assert row["continues_run_id"] == f"{NAME}:t.json"
    assert (row["step_count"], row["input_tokens"]) == (1, 7)
    assert [turn["step_run_id"] for turn in row["turns"]] == [f"{NAME}:t.json", f"{NAME}:t.json", None]
    assert row["start_time"] == row["end_time"] == FIRST + HOUR


@pytest.mark.parametrize("name", ["t.cont-1.json", "then.json"])
@pytest.mark.parametrize("order", ["earlier first", "later first", "both"])
def test_continuation_is_linked_whichever_file_is_captured_first(
    trajectory_database: str, tmp_path: Path, name: str, order: str
) -> None:
    sinks = Sinks(trajectory_database, tmp_path / "sinks")
    source = AtifSource(NAME, str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    earlier, later = tmp_path / "runs" / "t.json", tmp_path / "runs" / name
    first = json.dumps(finished("go", "I stop here", FIRST, continued_trajectory_ref=name))
    copied = [user_step("go", FIRST, is_copied_context=True), agent_step("I look.", FIRST, is_copied_context=True)]
    writes: list[Callable[[], object]] = [
        lambda: earlier.write_text(first),
        lambda: later.write_text(json.dumps(trajectory(*copied, agent_step("done", FIRST + HOUR)))),
    ]
    for write in reversed(writes) if order == "later first" else writes:
        write()
        if order != "both":
            sinks.sync(source)
    sinks.sync(source)
    before = {run_id: row["data"] for run_id, row in sinks.rows().items()}
    assert sinks.rows()[f"{NAME}:{name}"]["continues_run_id"] == f"{NAME}:t.json"
    assert len(before) == 2
    # The link stays while the earlier file cannot be read.
    for content in ("", first[:100]):
        earlier.write_text(content)
        sinks.sync(source)
        assert {run_id: row["data"] for run_id, row in sinks.rows().items()} == before
    with source.snapshot() as snapshot:
        assert any("waits" in remark for remark in snapshot.remarks) == (name == "then.json")
    earlier.write_text(first)
    sinks.sync(source)
    assert {run_id: row["data"] for run_id, row in sinks.rows().items()} == before
    assert not sinks.quarantine()


def test_each_continuation_continues_the_one_before(tmp_path: Path) -> None:
    """By their names, also where the files before are not there: Harbor may write them elsewhere, or clean up."""
    for number in (1, 2, 12):
        steps = [user_step("go", FIRST, is_copied_context=True), agent_step("done", FIRST)]
        (tmp_path / f"t.cont-{number}.json").write_text(json.dumps(trajectory(*steps)))
    (tmp_path / "u.cont-1.json").write_text(json.dumps(trajectory(agent_step("without copied context", FIRST))))
    _, rows, _ = read(str(tmp_path))
    assert {run_id: row["continues_run_id"] for run_id, row in rows.items()} == {
        f"{NAME}:t.cont-1.json": f"{NAME}:t.json",
        f"{NAME}:t.cont-2.json": f"{NAME}:t.cont-1.json",
        f"{NAME}:t.cont-12.json": f"{NAME}:t.cont-11.json",
        f"{NAME}:u.cont-1.json": None,
    }


def test_images_pass_through_and_calls_without_return_stay_open(tmp_path: Path) -> None:
    image = {"type": "image", "source": {"media_type": "image/png", "path": "shot.png"}}
    call = {"tool_call_id": "c", "function_name": "look", "arguments": {}}
    document = trajectory(
        user_step([{"type": "text", "text": "see"}, image], FIRST),
        agent_step("", FIRST, tool_calls=[call], reasoning_content="hm"),
    )
    (tmp_path / "t.json").write_text(json.dumps(document))
    (row,) = read(str(tmp_path))[1].values()
    user, agent = messages_of(row)
    assert [(part["type"], part["media_type"]) for part in user["content"]] == [("text", None), ("image", "image/png")]
    assert json.loads(user["content"][1]["json"]) == image
    assert [(part["type"], part["reasoning"]) for part in agent["content"]] == [("reasoning", "hm")]
    assert row["tools_requested"] == ["look"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": "ATIF-v2.0"}, "is ATIF-v2.0"),
        ({"steps": {}}, "steps is missing, or no list"),
        ({"agent": {"version": "1"}}, "agent.name is missing"),
        ({"steps": [{"step_id": 1, "source": "robot", "message": "x"}]}, "step 1: source is 'robot'"),
        ({"steps": [{"step_id": 1, "source": "user", "message": 5}]}, "step 1: message is neither"),
    ],
)
def test_file_that_is_not_as_the_format_says_is_quarantined(tmp_path: Path, change: Row, problem: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps(finished("go", "done", FIRST)))
    (tmp_path / "bad.json").write_text(json.dumps({**finished("go", "done", FIRST), **change}))
    snapshot, rows, bad = read(str(tmp_path))
    assert list(rows) == [f"{NAME}:good.json"]
    (place,) = bad.values()
    # Not under the run's own id: what was captured of the file stays.
    assert list(bad) == [f"{NAME}:bad.json:unreadable"]
    assert f"{tmp_path}/bad.json: " in place
    assert problem in place
    assert [record.place for record in snapshot.bad_records] == [f"{tmp_path}/bad.json"]


def test_unknown_fields_are_read_past_and_named_and_other_json_is_none_of_ours(tmp_path: Path) -> None:
    document = finished("go", "done", FIRST)
    document["steps"][0]["mood"] = "good"
    (tmp_path / "t.json").write_text(json.dumps({**document, "weather": 1}))
    (tmp_path / "result.json").write_text('{"reward": 1.0}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "notes.txt").write_text("x")
    snapshot, rows, bad = read(str(tmp_path))
    assert (len(rows), bad) == (1, {})
    assert snapshot.unknown_columns == ["step.mood", "trajectory.weather"]


def test_file_without_times_is_found_by_its_own_time_and_says_none(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(trajectory(user_step("go", None), agent_step("done", None))))
    _, rows, _ = read(str(tmp_path))
    (row,) = rows.values()
    assert (row["start_time"], row["end_time"]) == (None, None)
    assert row["partition_key"][:10] == f"{datetime.now(UTC):%Y-%m-%d}"


def test_any_store_of_fsspec_can_be_read() -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/runs/a/t.json", json.dumps(finished("go", "done", FIRST)).encode())
    try:
        _, rows, _ = read("memory://runs")
        assert [kinds_of(row)[0] for row in rows.values()] == [("user", "go")]
        filesystem.pipe("/runs/a/t.json", json.dumps(finished("go on", "done", FIRST)).encode())
        _, rows, _ = read("memory://runs")
        assert [kinds_of(row)[0] for row in rows.values()] == [("user", "go on")]
    finally:
        filesystem.rm("/runs", recursive=True)


def test_logins_that_harnesses_keep_beside_their_runs_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST)))
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "auth.json").write_text("{}")
    with opened_files() as opened:
        _, rows, _ = read(str(tmp_path))
    assert len(rows) == 1
    assert any(path.endswith("t.json") for path in opened)
    assert not any("auth" in path for path in opened)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(finished("go", "done", FIRST)))
    with AtifSource(NAME, str(tmp_path)).snapshot() as snapshot:
        (tmp_path / "t.json").write_text(json.dumps(finished("no", "done", FIRST)))
        (hour,) = snapshot.runs_by_hour()
        with pytest.raises(SourceError, match=r"t\.json changed while it was read"):
            list(snapshot.terminal_runs(hour, hour + HOUR))


PART = st.one_of(
    st.text().map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image", "source": {"media_type": "image/png", "path": "x.png"}}),
)
MESSAGES = st.one_of(st.text(), st.lists(PART, max_size=2))
TIMES = st.none() | st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.isoformat())
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=3)
CALLS = st.fixed_dictionaries(
    {"tool_call_id": st.text(), "function_name": st.text(), "arguments": st.dictionaries(st.text(), JSON)}
)


@st.composite
def steps(draw: st.DrawFn) -> Row:
    source = draw(st.sampled_from(["user", "agent", "system"]))
    step: Row = {"source": source, "message": draw(MESSAGES), "timestamp": draw(TIMES)}
    if draw(st.booleans()):
        step["is_copied_context"] = draw(st.booleans())
    if source == "agent":
        calls = draw(st.lists(CALLS, max_size=2))
        step |= {"tool_calls": calls, "reasoning_content": draw(st.none() | st.text())}
        results = [{"source_call_id": call["tool_call_id"], "content": draw(MESSAGES)} for call in calls]
        step["observation"] = draw(st.sampled_from([None, {"results": results}]))
        counts = st.none() | st.integers(0, 10**9)
        step["metrics"] = draw(
            st.none() | st.fixed_dictionaries({"prompt_tokens": counts, "completion_tokens": counts})
        )
    return step


@given(st.lists(steps(), max_size=5))
@settings(max_examples=60, deadline=None)
def test_whatever_the_reference_models_accept_becomes_a_trajectory(written: list[Row]) -> None:
    """Except for text that no sink can hold in a name: it is quarantined."""
    document = trajectory(*written)
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/any/t.json", json.dumps(document).encode())
    try:
        _, rows, bad = read("memory://any")
    finally:
        filesystem.rm("/any", recursive=True)
    assert len(rows) + len(bad) == 1
    assert all("\\x00" in json.dumps(document) or "u0000" in json.dumps(document) for _ in bad)
    for row in rows.values():
        assert row["message_count"] >= sum(bool(step["message"]) for step in written)
