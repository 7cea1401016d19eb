"""Letta Code's local backend: the conformance suite, and what is odd in its files."""

import json
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.partition_keys import HOUR, at_source, partition_key, source_run_id
from trajectory_pipeline.sources.found_runs import FoundRuns
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline_tests.sources import letta_code_files as files
from trajectory_pipeline_tests.sources.conformance import FIRST, PLAIN, Shape, Sinks, SourceConformance, World
from trajectory_pipeline_tests.sources.letta_code_files import AGENT, answer, call, entry, finished, result, user
from trajectory_pipeline_tests.sources.opened_files import opened_files

Row = dict[str, Any]
NAME = "laptop"


class LettaCodeWorld(World):
    """Each run is a conversation of its own, in the folder of the first of two machines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "one"
        self.other = folder / "two"
        self.source = LettaCodeSource(NAME, (self.folder, self.other))
        self.twins: dict[str, str] = {}
        for each in (self.folder, self.other):
            (each / "conversations").mkdir(parents=True)

    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        files.write_conversation(self.folder, key, list(map(entry, finished(asked, answered, at, shape=shape))))

    def write_twin(self, key: str, of: str, asked: str, answered: str, at: datetime) -> None:
        """A conversation of the same agent and number on another machine, which counts its messages alike."""
        self.twins[key] = of
        rows = finished(asked, answered, at)
        rows[0]["otid"] = files.otid(key, "ui-msg-1")
        files.write_conversation(self.other, of, list(map(entry, rows)))

    def run_id(self, key: str) -> str:
        return source_run_id(NAME, f"{AGENT}:{self.twins.get(key, key)}:ui-msg-1:{files.otid(key, 'ui-msg-1')[:8]}")

    def path(self, key: str) -> Path:
        return self.folder / "conversations" / files.encoded(f"conversation:{key}")

    def remove_run(self, key: str) -> None:
        for path in self.path(key).iterdir():
            path.unlink()
        self.path(key).rmdir()

    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        files.write_conversation(self.folder, key, list(map(entry, finished(asked, "", at)[:2])))

    def cut_run(self, key: str, share: float) -> None:
        path = self.path(key) / "messages.jsonl"
        written = path.read_bytes()
        path.write_bytes(written[: int(share * len(written))])

    def break_run(self, key: str) -> str:
        path = self.path(key) / "messages.jsonl"
        written = path.read_text().splitlines(keepends=True)
        written[2] = written[2][:40] + "\n"
        path.write_text("".join(written))
        return f"{path}:3"

    def damages(self, key: str) -> dict[str, Callable[[], object]]:
        folder = self.path(key)
        agent = self.folder / "agents" / f"{files.encoded(AGENT)}.json"

        def written(path: Path, content: bytes, mode: str = "wb") -> Callable[[], object]:
            def write() -> None:
                with path.open(mode) as file:
                    file.write(content)

            return write

        zeros = b"\0" * 50
        beside = [agent, *(folder / f"{name}.json" for name in ("conversation", "manifest", "system-prompt"))]
        return {
            **super().damages(key),
            **{f"empty {path.name}": written(path, b"") for path in beside},
            **{f"cut {path.name}": written(path, path.read_bytes()[:20]) for path in beside},
            "no time": written(folder / "conversation.json", b'{"id": "run", "created_at": ""}'),
            "zeros at the end": written(folder / "messages.jsonl", zeros, "ab"),
            "a line of zeros": written(folder / "messages.jsonl", zeros + b"\n", "ab"),
            "all zeros": written(folder / "messages.jsonl", zeros),
        }

    def vanish(self) -> None:
        self.folder.parent.rename(self.folder.parent.with_name("gone"))

    def return_(self) -> None:
        self.folder.parent.with_name("gone").rename(self.folder.parent)


@pytest.fixture
def world(tmp_path: Path) -> LettaCodeWorld:
    return LettaCodeWorld(tmp_path / "lc-local-backend")


class TestLettaCode(SourceConformance):
    """The suite."""


def read(*folders: Path) -> tuple[FoundRuns, dict[str, Row]]:
    """Read folders, and convert all of their runs; none may be quarantined."""
    with LettaCodeSource(NAME, folders).snapshot() as snapshot:
        rows: dict[str, Row] = {}
        for hour in snapshot.runs_by_hour():
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                conversion = convert_batch(batch, partition_key(hour))
                assert not conversion.quarantined
                rows |= {row["run_id"]: row for row in conversion.rows}
        return snapshot, rows


def messages_of(row: Row) -> list[Row]:
    return [message for turn in row["turns"] for message in turn["messages"]]


def texts_of(row: Row) -> list[tuple[str, str]]:
    return [(m["kind"], "".join(part["text"] or "" for part in m["content"])) for m in messages_of(row)]


def test_conversation_is_cut_by_what_the_user_sent(tmp_path: Path) -> None:
    rows = [*finished("first", "one", FIRST), *finished("second", "two", FIRST + timedelta(minutes=5), first=5)]
    files.write_conversation(tmp_path, "c", list(map(entry, rows)))
    _, found = read(tmp_path)
    assert [dict(texts_of(row))["user"] for row in found.values()] == ["first", "second"]
    for row in found.values():
        assert (row["step_count"], row["message_count"], row["status"], row["stop_reason"]) == (
            2,
            5,
            "completed",
            "end_turn",
        )
        assert (row["agent_name"], row["conversation_id"], row["tags"]) == ("Blank", "c", ["origin:letta-code"])
        # Cached tokens are among those of the prompt, as in Letta.
        assert (row["input_tokens"], row["cached_input_tokens"], row["total_tokens"]) == (280, 80, 320)
        assert row["context"]["system_prompt"] == "You are a coder."


def test_what_no_person_wrote_is_no_message_of_the_user(tmp_path: Path) -> None:
    files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    (row,) = read(tmp_path)[1].values()
    assert texts_of(row)[:2] == [("system", files.REMINDER), ("user", "first")]


def test_tool_that_reports_no_error_may_have_failed(tmp_path: Path) -> None:
    rows = finished("first", "one", FIRST)
    files.write_conversation(tmp_path, "c", list(map(entry, rows)))
    rows[2] = result(3, "no such tool", FIRST, is_error=True)
    files.write_conversation(tmp_path, "d", list(map(entry, rows)))
    by_conversation = {row["conversation_id"]: row for row in read(tmp_path)[1].values()}
    (unknown,), (failed,) = (
        [item for message in messages_of(by_conversation[name]) for item in message["tool_returns"]] for name in "cd"
    )
    assert (unknown["status"], json.loads(unknown["json"])["isError"]) == (None, False)
    assert failed["status"] == "error"
    assert [by_conversation[name]["signals"]["last_tool_call_failed"] for name in "cd"] == [None, True]


def test_newest_snapshot_of_a_message_counts_at_its_first_place(tmp_path: Path) -> None:
    rows = finished("first", "par", FIRST)
    files.write_conversation(tmp_path, "c", list(map(entry, [*rows, answer(2, "I looked.", FIRST, call(folder="/"))])))
    (row,) = read(tmp_path)[1].values()
    assert texts_of(row)[2] == ("assistant", "I looked.")
    assert row["message_count"] == 5


def test_compaction_between_two_runs_belongs_to_the_next_and_changes_no_run_that_ended(tmp_path: Path) -> None:
    first, later = finished("first", "one", FIRST), finished("second", "two", FIRST + HOUR, first=6)
    path = files.write_conversation(tmp_path, "c", list(map(entry, first)))
    before, _ = read(tmp_path)
    with path.open("a") as file:
        file.write(files.lines([files.compaction(5, "all was listed", FIRST)]))
    after, found = read(tmp_path)
    hour = at_source(FIRST, NAME)
    assert before.fingerprints(hour, hour + HOUR) == after.fingerprints(hour, hour + HOUR)
    assert len(found) == 1
    with path.open("a") as file:
        file.write(files.lines(list(map(entry, later))))
    _, found = read(tmp_path)
    assert [texts_of(row)[0] for row in found.values()] == [("system", files.REMINDER), ("summary", "all was listed")]


@pytest.mark.parametrize(
    ("stop", "ending"),
    [
        ("stop", ("completed", None)),
        ("length", ("truncated", "token_limit")),
        ("error", ("failed", "server")),
        ("aborted", ("cancelled", "user")),
    ],
)
def test_run_ends_as_the_last_answer_says(tmp_path: Path, stop: str, ending: tuple[str, str | None]) -> None:
    more = {"errorMessage": "502 Bad Gateway"} if stop == "error" else {}
    files.write_conversation(
        tmp_path, "c", [entry(user(1, "go", FIRST)), entry(answer(2, "", FIRST, stop=stop, **more))]
    )
    (row,) = read(tmp_path)[1].values()
    assert (row["execution_status"], row["execution_cause"]) == ending
    assert (row["error"] or {}).get("message") == more.get("errorMessage")


def test_run_that_the_next_one_cut_off_ended_nobody_knows_how(tmp_path: Path) -> None:
    rows = [user(1, "go", FIRST), answer(2, "", FIRST, call()), *finished("stop that", "yes", FIRST, first=3)]
    files.write_conversation(tmp_path, "c", list(map(entry, rows)))
    _, found = read(tmp_path)
    first = next(row for row in found.values() if ("user", "go") in texts_of(row))
    assert (first["status"], first["execution_status"], first["heuristic_outcome"]) == ("unknown", "unknown", "unknown")
    # A call without a return: nothing is made up for it.
    assert [message["role"] for message in messages_of(first)] == ["system", "user", "assistant"]


def test_version_1_files_give_the_same_run(tmp_path: Path) -> None:
    rows = finished("first", "one", FIRST)
    files.write_conversation(tmp_path / "new", "c", list(map(entry, rows)))
    files.write_conversation(tmp_path / "old", "c", rows, version=1)
    assert read(tmp_path / "new")[1] == read(tmp_path / "old")[1]


def test_unknown_version_is_quarantined_and_leaves_it_when_it_is_migrated(tmp_path: Path) -> None:
    files.write_conversation(tmp_path, "c", [], version=9)
    with LettaCodeSource(NAME, (tmp_path,)).snapshot() as snapshot:
        (hour,) = snapshot.runs_by_hour()
        (batch,) = snapshot.terminal_runs(hour, hour + HOUR)
        (bad,) = convert_batch(batch, partition_key(hour)).quarantined
        assert "manifest.json: has version 9" in bad.json_path
    files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    with LettaCodeSource(NAME, (tmp_path,)).snapshot() as snapshot:
        location = snapshot.run_locations([bad.run_id])[bad.run_id]
        assert (location.exists, location.terminal) == (True, False)


def quarantined(*folders: Path) -> tuple[FoundRuns, dict[str, Row], dict[str, str]]:
    """Read folders; returns the view, the trajectories, and the places that were quarantined by run id."""
    with LettaCodeSource(NAME, folders).snapshot() as snapshot:
        rows: dict[str, Row] = {}
        bad: dict[str, str] = {}
        for hour in snapshot.runs_by_hour():
            for batch in snapshot.terminal_runs(hour, hour + HOUR):
                conversion = convert_batch(batch, partition_key(hour))
                rows |= {row["run_id"]: row for row in conversion.rows}
                bad |= {run.run_id: run.json_path for run in conversion.quarantined}
        return snapshot, rows, bad


@pytest.mark.parametrize("content", ["", '{"id": "c", "agent_id": "age', "[]", '{"id": "c", "created_at": ""}', None])
def test_conversation_of_which_nobody_knows_whose_it_is_has_no_runs_under_other_ids(
    tmp_path: Path, content: str | None
) -> None:
    rows = finished("first", "one", FIRST)
    rows[0]["metadata"]["agent_id"] = AGENT
    path = files.write_conversation(tmp_path, "c", list(map(entry, rows)))
    files.write_conversation(tmp_path, "d", list(map(entry, finished("other", "two", FIRST))))
    _, found = read(tmp_path)
    record = path.with_name("conversation.json")
    whole = record.read_text()
    if content is None:
        # Not there at one reading: the messages say whose they are.
        record.unlink()
    else:
        record.write_text(content)
    snapshot, rest, bad = quarantined(tmp_path)
    (missing,) = found.keys() - rest.keys()
    assert not rest.keys() - found.keys()
    assert snapshot.run_locations([missing])[missing].unproven
    assert list(bad) == [f"{NAME}:conversation:c:unreadable"]
    assert str(record) in bad[f"{NAME}:conversation:c:unreadable"]
    record.write_text(whole)
    assert read(tmp_path)[1] == found


@pytest.mark.parametrize("record", [None, {"id": "c", "agent_id": None}])
def test_conversation_without_an_agent_has_its_runs(tmp_path: Path, record: Row | None) -> None:
    path = files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    path.with_name("conversation.json").unlink()
    if record is not None:
        path.with_name("conversation.json").write_text(json.dumps(record))
    (row,) = read(tmp_path)[1].values()
    assert row["agent_id"] == "agent-free"


@pytest.mark.parametrize(
    "garbage",
    ["\0" * 50, "\0" * 50 + "\n", "{oops\n", "oops", "5\n"],
    ids=["zeros", "line of zeros", "cut line", "word", "number"],
)
def test_garbage_after_the_last_answer_is_named_and_takes_no_run_away(tmp_path: Path, garbage: str) -> None:
    path = files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    _, found = read(tmp_path)
    with path.open("a") as file:
        file.write(garbage)
    snapshot, rows, bad = quarantined(tmp_path)
    assert rows == found
    assert not snapshot.unfinished
    (place,) = bad.values()
    assert f"{path}:6" in place
    assert [record.place for record in snapshot.unreadable] == [f"{path}:6"]
    # The program goes on after it. Of an answer without a question nobody knows what was asked.
    with path.open("a") as file:
        file.write("\n" if not garbage.endswith("\n") else "")
        file.write(files.lines([entry(answer(6, "to what?", FIRST + HOUR))]))
        file.write(files.lines(list(map(entry, finished("third", "three", FIRST + HOUR, first=7)))))
    _, rows, bad = quarantined(tmp_path)
    assert {dict(texts_of(row))["user"] for row in rows.values()} == {"first", "third"}
    assert {run_id: row for run_id, row in rows.items() if run_id in found} == found
    assert len(bad) == 1


def test_line_that_is_lost_before_the_last_answer_is_named_though_the_run_goes_on(tmp_path: Path) -> None:
    rows = finished("first", "one", FIRST)
    path = files.write_conversation(tmp_path, "c", list(map(entry, rows[:2])))
    with path.open("a") as file:
        file.write("\0" * 50 + "\n")
    snapshot, found, bad = quarantined(tmp_path)
    assert not found
    assert [run_id.endswith(":unreadable") for run_id in bad] == [True]
    assert [record.problem for record in snapshot.unreadable] == ["is no message"]


def test_copy_that_can_be_read_is_read_where_the_other_is_damaged_and_went_no_further(tmp_path: Path) -> None:
    rows = list(map(entry, finished("first", "one", FIRST)))
    for folder in ("a", "b"):
        path = files.write_conversation(tmp_path / folder, "c", rows)
    before = read(tmp_path / "a", tmp_path / "b")[1]
    written = path.read_bytes()
    path.write_bytes(written.replace(b"I look.", b"I \0\0\0\0."))
    snapshot, found, bad = quarantined(tmp_path / "a", tmp_path / "b")
    assert (found, bad) == (before, {})
    assert [record.place for record in snapshot.bad_records] == [f"{path}:3"]


def test_several_folders_are_one_source_and_a_copied_conversation_is_one_run(tmp_path: Path) -> None:
    rows = finished("first", "one", FIRST)
    for folder in ("a", "b"):
        files.write_conversation(tmp_path / folder, "c", list(map(entry, rows)))
    files.write_conversation(tmp_path / "b", "d", list(map(entry, finished("other", "two", FIRST))))
    folders = (tmp_path / "a", tmp_path / "b")
    _, found = read(*folders)
    assert sorted(row["conversation_id"] for row in found.values()) == ["c", "d"]
    # One of the copies goes on: it is the one that is read, whichever folder is named first.
    rows[3] = answer(4, "one, and more", FIRST)
    files.write_conversation(tmp_path / "b", "c", list(map(entry, rows)))
    for order in (folders, folders[::-1]):
        snapshot, found = read(*order)
        assert ("assistant", "one, and more") in texts_of(
            next(r for r in found.values() if r["conversation_id"] == "c")
        )
        assert [bad for bad in snapshot.bad_records if "another version of the run" in bad.problem]


def test_fork_of_a_conversation_has_only_the_runs_that_came_after_it(tmp_path: Path) -> None:
    """The program copies all messages before a fork, with new ids, and with the client's ids and times as they were."""
    before = finished("first", "one", FIRST)
    open_run = [user(5, "second", FIRST + timedelta(minutes=1)), answer(6, "", FIRST, call())]
    copied = [
        {**row, "id": f"ui-msg-{number}", **({"otid": files.otid("z", row["id"])} if row["role"] == "user" else {})}
        for number, row in enumerate([*before, *open_run], 20)
    ]
    own = finished("third", "three", FIRST + timedelta(minutes=2), first=30)
    files.write_conversation(tmp_path, "z", list(map(entry, [*before, *open_run])), created_at=FIRST)
    later = FIRST + timedelta(minutes=2)
    files.write_conversation(tmp_path, "a", list(map(entry, [*copied, *own])), created_at=later)
    snapshot, found = read(tmp_path)
    assert sorted((row["conversation_id"], dict(texts_of(row))["user"]) for row in found.values()) == [
        ("a", "third"),
        ("z", "first"),
    ]
    assert len(snapshot.unfinished) == 1


@pytest.mark.parametrize("made", ["by its record", "by its manifest"])
def test_fork_whose_original_is_away_has_its_own_runs_alone(
    trajectory_database: str, tmp_path: Path, made: str
) -> None:
    folder = tmp_path / "files"
    minute = timedelta(minutes=1)
    before = [*finished("first", "one", FIRST), *finished("second", "two", FIRST + minute, first=5)]
    original = files.write_conversation(folder, "z", list(map(entry, before)), created_at=FIRST)
    copied = [
        {**row, "id": f"ui-msg-{number}", **({"otid": files.otid("z", row["id"])} if row["role"] == "user" else {})}
        for number, row in enumerate(before, 20)
    ]
    own = [*copied, *finished("third", "three", FIRST + 3 * minute, first=40)]
    fork = files.write_conversation(folder, "a", list(map(entry, own)), created_at=FIRST + 2 * minute)
    if made == "by its manifest":
        record = json.loads(fork.with_name("conversation.json").read_text())
        fork.with_name("conversation.json").write_text(json.dumps({**record, "created_at": None}))
        manifest = json.loads(fork.with_name("manifest.json").read_text())
        manifest["created_at"] = files.stamp(FIRST + 2 * minute)
        fork.with_name("manifest.json").write_text(json.dumps(manifest))
    source = LettaCodeSource(NAME, (folder,))
    sinks = Sinks(trajectory_database, tmp_path / "sinks")
    sinks.sync(source)
    captured = {run_id: row["data"] for run_id, row in sinks.rows().items()}
    assert len(captured) == 3
    original.parent.rename(tmp_path / "away")
    for _ in ("away", "back"):
        sinks.sync(source)
        assert {run_id: row["data"] for run_id, row in sinks.rows().items()} == captured
        with source.snapshot() as snapshot:
            assert ["begins with 2 runs that a fork copied" in note for note in snapshot.notes] == (
                [] if original.exists() else [True]
            )
        if not original.exists():
            (tmp_path / "away").rename(original.parent)
    # Its messages are damaged: what was captured of it stays, and the fork has no more than before.
    original.write_bytes(b"\0" * 100)
    sinks.sync(source)
    assert {run_id: row["data"] for run_id, row in sinks.rows().items()} == captured


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(seconds=2)])
def test_clock_that_is_set_back_makes_no_run_a_copy(tmp_path: Path, back: timedelta) -> None:
    rows = [*finished("first", "one", FIRST), *finished("second", "two", FIRST - back, first=5)]
    files.write_conversation(tmp_path, "c", list(map(entry, rows)), created_at=FIRST - timedelta(seconds=3))
    assert len(read(tmp_path)[1]) == 2


def test_conversation_that_was_migrated_is_no_fork(tmp_path: Path) -> None:
    """Its record may be younger than its messages; its manifest is as old as they are."""
    path = files.write_conversation(
        tmp_path, "c", list(map(entry, finished("first", "one", FIRST))), created_at=FIRST + HOUR
    )
    manifest = json.loads(path.with_name("manifest.json").read_text())
    manifest |= {"created_at": files.stamp(FIRST - timedelta(seconds=3)), "migrated_from": "letta-python-postgres"}
    path.with_name("manifest.json").write_text(json.dumps(manifest))
    assert len(read(tmp_path)[1]) == 1


@pytest.mark.parametrize("file", ["conversation.json", "manifest.json"])
def test_fork_of_a_conversation_that_cannot_be_read_has_its_own_runs_alone(tmp_path: Path, file: str) -> None:
    before = finished("first", "one", FIRST)
    original = files.write_conversation(tmp_path, "z", list(map(entry, before)), created_at=FIRST)
    copied = [{**row, "id": f"ui-msg-{number}"} for number, row in enumerate(before, 20)]
    copied[0]["otid"] = files.otid("z", "ui-msg-1")
    own = finished("third", "three", FIRST + timedelta(minutes=2), first=30)
    files.write_conversation(tmp_path, "a", list(map(entry, [*copied, *own])), created_at=FIRST + timedelta(minutes=2))
    _, found = read(tmp_path)
    original.with_name(file).write_text("")
    _, rows, bad = quarantined(tmp_path)
    assert {dict(texts_of(row))["user"] for row in rows.values()} == {"third"}
    assert rows.keys() < found.keys()
    assert list(bad) == [f"{NAME}:conversation:z:unreadable"]


def test_folder_that_is_not_there_now_says_nothing_of_its_runs(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        files.write_conversation(tmp_path / folder, folder, list(map(entry, finished("first", "one", FIRST))))
    _, found = read(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "unplugged")
    snapshot, rest = read(tmp_path / "a", tmp_path / "b")
    (missing,) = found.keys() - rest.keys()
    assert snapshot.run_locations([missing])[missing].unproven
    assert [bad.place for bad in snapshot.bad_records] == [str(tmp_path / "b")]


def test_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    more = files.lines([entry(user(5, "second", FIRST)), entry(answer(6, "two", FIRST))])
    with path.open("a") as file:
        file.write(more[:50])
    snapshot, found = read(tmp_path)
    assert len(found) == 1
    assert "its last line has no end" in snapshot.bad_records[0].problem
    with path.open("a") as file:
        file.write(more[50:])
    assert len(read(tmp_path)[1]) == 2


def test_file_that_is_rewritten_while_it_is_read_is_refused(tmp_path: Path) -> None:
    files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    with LettaCodeSource(NAME, (tmp_path,)).snapshot() as snapshot:
        files.write_conversation(tmp_path, "c", list(map(entry, finished("other", "two", FIRST))))
        (hour,) = snapshot.runs_by_hour()
        with pytest.raises(SourceError, match="was rewritten while it was read"):
            list(snapshot.terminal_runs(hour, hour + HOUR))


def test_image_and_unknown_parts_and_entries_pass_through(tmp_path: Path) -> None:
    image = {"type": "image", "data": "iVBORw0KGgo=", "mimeType": "image/png"}
    odd = {"type": "hologram", "beams": 3}
    rows = [user(1, "see", FIRST, content=[{"type": "text", "text": "see"}, image, odd]), answer(2, "seen", FIRST)]
    files.write_conversation(tmp_path, "c", [*map(entry, rows), {"type": "label", "id": "x", "label": "mine"}])
    snapshot, found = read(tmp_path)
    (row,) = found.values()
    parts = messages_of(row)[0]["content"]
    assert [(part["type"], part["media_type"]) for part in parts] == [
        ("text", None),
        ("image", "image/png"),
        ("hologram", None),
    ]
    assert json.loads(parts[2]["json"]) == odd
    assert snapshot.unknown_columns == ["entry.label"]


def test_secrets_beside_the_conversations_are_never_opened(tmp_path: Path) -> None:
    files.write_conversation(tmp_path, "c", list(map(entry, finished("first", "one", FIRST))))
    secrets = tmp_path / "providers" / "auth.json"
    secrets.parent.mkdir()
    secrets.write_text("{}")
    with opened_files() as opened:
        read(tmp_path)
    of_ours = [Path(path) for path in opened if path.startswith(str(tmp_path))]
    assert {path.name for path in of_ours} >= {"messages.jsonl", "conversation.json"}
    assert {path.parent.parent.name for path in of_ours} <= {"conversations", tmp_path.name}
    assert secrets not in of_ours


@pytest.mark.heavy
def test_long_conversation_is_read_line_by_line(tmp_path: Path) -> None:
    """200 MB in one conversation: what is remembered of it is small, and a run is read alone."""
    rows = [
        entry(m)
        for n in range(400)
        for m in finished("x" * 500_000, "one", FIRST + timedelta(seconds=n), first=4 * n + 1)
    ]
    files.write_conversation(tmp_path, "c", rows)
    del rows
    tracemalloc.start()
    with LettaCodeSource(NAME, (tmp_path,)).snapshot() as snapshot:
        (hour,) = snapshot.runs_by_hour()
        batches = snapshot.terminal_runs(hour, hour + HOUR)
        assert sum(batch.num_rows for batch in batches) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
