"""Runs that a source found: one whose records are odd is quarantined alone, whatever is raised."""

import json
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.partition_keys import at_source
from trajectory_pipeline.source_protocol import BadRecord, SourceIdentity
from trajectory_pipeline.sources.atif import AtifSource
from trajectory_pipeline.sources.found_runs import FoundRun, FoundRuns, unreadable
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline.sources.raw_rows import Row, RunRows
from trajectory_pipeline_tests.sources import letta_code_files as files
from trajectory_pipeline_tests.sources.conformance import Sinks

AT = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
HOUR = AT.replace(minute=0)


def found(**reads: Callable[[], RunRows]) -> list[Row]:
    runs = FoundRuns(
        source="one",
        identity=SourceIdentity("one"),
        described="/a/folder",
        taken_at=AT,
        runs=[FoundRun(native_id, AT, "1", read) for native_id, read in reads.items()],
    )
    hour = at_source(HOUR, "one")
    return [row for batch in runs.terminal_runs(hour, hour + timedelta(hours=1)) for row in batch.to_pylist()]


def good(native_id: str) -> RunRows:
    return RunRows(run={"id": native_id, "status": "completed", "agent_id": "agent"}, messages=[{"id": "m"}])


def raising() -> RunRows:
    raise AttributeError("'list' object has no attribute 'get'")


ODD: dict[str, Callable[[], RunRows]] = {
    "raises": raising,
    "a value of another type": lambda: RunRows(run={"id": "odd", "status": {"is": "no text"}}, messages=[]),
    "a number beyond all": lambda: RunRows(run={"id": "odd", "ttft_ns": 10**30}, messages=[]),
    "a text that is no text": lambda: RunRows(run={"id": "odd"}, messages=[{"id": "m", "content": 5}]),
}


@pytest.mark.parametrize("read", ODD.values(), ids=ODD)
def test_odd_run_is_quarantined_alone(read: Callable[[], RunRows]) -> None:
    rows = found(before=lambda: good("before"), odd=read, zafter=lambda: good("zafter"))
    assert [row["run"]["status"] for row in rows] == ["completed", "unknown", "completed"]
    (message,) = rows[1]["messages"]
    assert message["id"].startswith("/a/folder: odd: cannot be read: a defect of trajectory-pipeline: ")
    assert message["role"] is None


def test_run_with_the_id_of_another_is_named() -> None:
    runs = FoundRuns(
        source="one",
        identity=SourceIdentity("one"),
        described="/a/folder",
        taken_at=AT,
        runs=[FoundRun(native_id, AT, "1", lambda: good("same")) for native_id in ("caf\udce9", "caf\\udce9", "other")],
    )
    assert runs.run_ids(AT.replace(minute=0), AT) == ["one:caf\\udce9", "one:other"]
    (record,) = runs.bad_records
    assert record.place == "/a/folder: caf\\udce9"
    assert "has the id of another run" in record.problem


def test_what_cannot_be_read_is_a_remark_whether_the_source_names_it_or_not() -> None:
    records = [BadRecord(f"/a/folder/{name}", "is no JSON") for name in ("one", "two")]
    runs = FoundRuns(
        source="one",
        identity=SourceIdentity("one"),
        described="/a/folder",
        taken_at=AT,
        runs=[unreadable(record.place, record, AT) for record in records],
        bad_records=records[:1],
    )
    assert runs.remarks == ["/a/folder/one is no JSON", "/a/folder/two is no JSON"]
    assert runs.unreadable == records


LONG = "".join(random.Random(1).choices("abcdefgh", k=4000))
"""Longer than an index of Postgres can hold, however it is compressed."""
NAMES = {"no UTF-8": b"caf\xe9", "long": f"{'a' * 200}/{LONG[:200]}/".encode() * 8 + b"t", "plain": b"good"}


@pytest.mark.parametrize("many", [2, pytest.param(300, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("content", ["good", ""])
def test_odd_names_of_files_cost_no_other_run(
    trajectory_database: str, tmp_path: Path, content: str, many: int
) -> None:
    folder = tmp_path / "runs"
    for number in range(many):
        write_atif(folder / f"{number}.json", "good")
    for name in NAMES.values():
        write_atif(folder / os.fsdecode(name + b".json"), content)
    sinks = Sinks(trajectory_database, tmp_path / "sinks")
    source = AtifSource("files", str(folder))
    sinks.sync(source)
    captured = len(NAMES) if content else 0
    assert (len(sinks.rows()), len(sinks.quarantine())) == (many + captured, len(NAMES) - captured)
    assert all(len(run_id.encode()) < 1100 for run_id in (*sinks.rows(), *sinks.quarantine()))
    assert all(run_id.endswith(":unreadable") for run_id in sinks.quarantine())
    with source.snapshot() as snapshot:
        assert all(remark.encode() for remark in snapshot.remarks)
    # Mended: what stood for it leaves.
    for name in NAMES.values():
        write_atif(folder / os.fsdecode(name + b".json"), "good")
    sinks.sync(source)
    assert (len(sinks.rows()), len(sinks.quarantine())) == (many + len(NAMES), 0)


def write_atif(path: Path, message: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    step = {"step_id": 1, "source": "agent", "message": message, "timestamp": AT.isoformat()}
    document = {"schema_version": "ATIF-v1.7", "agent": {"name": "a", "version": "1"}, "steps": [step]}
    path.write_text(json.dumps(document) if message else "")


@pytest.mark.parametrize("odd", [LONG, "a\0b", "a\ud800b"], ids=["long", "NUL", "lone surrogate"])
def test_odd_ids_in_files_cost_no_other_run(trajectory_database: str, tmp_path: Path, odd: str) -> None:
    for name, message_id, agent in (("message", odd, "agent-1"), ("agent", "m", odd), ("plain", "m", "agent-1")):
        path = files.write_conversation(tmp_path, name, [])
        path.with_name("conversation.json").write_text(json.dumps({"id": name, "agent_id": agent}))
        asked = {**files.user(1, "go", AT), "id": message_id, "otid": name}
        path.write_text(files.lines([asked, files.answer(2, "done", AT)]))
    sinks = Sinks(trajectory_database, tmp_path / "sinks")
    sinks.sync(LettaCodeSource("code", (tmp_path,)))
    assert {"code:agent-1:plain:m:plain"} <= sinks.rows().keys()
    assert len(sinks.rows()) + len(sinks.quarantine()) == 3


def test_source_that_cannot_be_read_is_no_odd_run() -> None:
    def unreachable() -> RunRows:
        raise SourceError("The server is down.")

    with pytest.raises(SourceError, match="down"):
        found(one=unreachable)


def test_file_of_odd_values_leaves_the_others_readable(tmp_path: Path) -> None:
    text = '{"schema_version": "ATIF-v1.7", "agent": {"name": "a", "version": "1"}, "steps": ['
    step = '{"step_id": 1, "source": "agent", "message": "m", "timestamp": "2026-11-20T10:30:00Z"'
    (tmp_path / "good.json").write_text(f"{text}{step}}}]}}")
    (tmp_path / "odd.json").write_text(f'{text}{step}, "observation": {{"results": [{{"content": 5}}]}}}}]}}')
    deep = f"{text}{step}}}]"
    (tmp_path / "deep.json").write_text(f'{deep}, "subagent_trajectories": [' * 400 + f"{deep}}}" + "]}" * 400)
    with AtifSource("files", str(tmp_path)).snapshot() as snapshot:
        hours = snapshot.runs_by_hour()
        rows = [
            row
            for hour in hours
            for batch in snapshot.terminal_runs(hour, hour + timedelta(hours=1))
            for row in batch.to_pylist()
        ]
    assert {"one" for row in rows if row["run_id"].endswith("good.json") and row["steps"]} == {"one"}
    assert any(row["run_id"].endswith("odd.json") for row in rows)


def test_agent_id_that_is_no_file_name_hides_no_other_conversation(tmp_path: Path) -> None:
    for name, record in {"one": {"agent_id": "a" * 5_000}, "two": {"agent_id": "agent-1"}}.items():
        folder = tmp_path / "conversations" / name
        folder.mkdir(parents=True)
        (folder / "conversation.json").write_text(json.dumps({"id": name, **record}))
        (folder / "messages.jsonl").write_text(
            "".join(
                json.dumps(
                    {"id": f"{name}-{number}", "role": role, "content": "text", "timestamp": AT.isoformat(), **more}
                )
                + "\n"
                for number, (role, more) in enumerate((("user", {}), ("assistant", {"stopReason": "stop"})))
            )
        )
    with LettaCodeSource("code", (tmp_path,)).snapshot() as snapshot:
        assert sum(snapshot.runs_by_hour().values()) == 2
        assert any("name would be too long" in remark for remark in snapshot.remarks)
