"""Runs that a source found: one whose records are odd is quarantined alone, whatever is raised."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.partition_keys import at_source
from trajectory_pipeline.source_protocol import SourceIdentity
from trajectory_pipeline.sources.atif import AtifSource
from trajectory_pipeline.sources.found_runs import FoundRun, FoundRuns
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline.sources.raw_rows import Row, RunRows

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
