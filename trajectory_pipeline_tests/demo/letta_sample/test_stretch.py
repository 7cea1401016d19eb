"""Moving runs: whole hours, one distance for all rows of a run, nothing but times touched, the same every time.

The original is not kept in the project, so the sample itself is what gets moved here, once more.
"""

from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from trajectory_pipeline.demo.letta_sample import dump, stretch
from trajectory_pipeline.demo.letta_sample.load import SAMPLE_FILE

TIMES = ("created_at", "updated_at", "completed_at", "callback_sent_at", "last_message_at", "last_run_completion")
BEFORE = dump.read(SAMPLE_FILE)
AFTER = stretch.stretch(BEFORE)


def pairs(table: str) -> list[tuple[dict[str, str | None], dict[str, str | None]]]:
    before, after = (
        next(block for block in dump.copy_blocks(parts) if block.table == f"public.{table}")
        for parts in (BEFORE, AFTER)
    )
    return list(zip(before.records(), after.records(), strict=True))


def shifts(before: dict[str, str | None], after: dict[str, str | None]) -> set[timedelta]:
    found = {
        datetime.fromisoformat(value) - datetime.fromisoformat(str(after[name]))
        for name in TIMES
        if (value := before.get(name))
    }
    if start := before.get("run_start_ns"):
        found.add(timedelta(microseconds=(int(start) - int(str(after["run_start_ns"]))) / 1000))
    return found


def test_all_rows_of_a_run_move_back_by_the_same_whole_hours() -> None:
    by_run: dict[str | None, set[timedelta]] = defaultdict(set)
    run_of_step = {before["id"]: before["run_id"] for before, _ in pairs("steps")}
    for table in ("runs", "run_metrics", "steps", "step_metrics", "messages"):
        for before, after in pairs(table):
            if table in ("runs", "run_metrics"):
                run_id = before["id"]
            else:
                run_id = run_of_step[before["id"]] if table == "step_metrics" else before["run_id"]
            if run_id:
                by_run[run_id] |= shifts(before, after)
    assert len(by_run) == len(pairs("runs"))
    for run_id, moved in by_run.items():
        (distance,) = moved
        assert distance >= timedelta(0), run_id
        assert distance % timedelta(hours=1) == timedelta(0), run_id
    assert len({frozenset(moved) for moved in by_run.values()}) > 10


def test_nothing_but_times_changes() -> None:
    for before, after in zip(BEFORE, AFTER, strict=True):
        if not isinstance(before, dump.CopyBlock):
            assert before == after
            continue
        assert isinstance(after, dump.CopyBlock)
        kept = [i for i, name in enumerate(before.columns) if name not in TIMES and not name.endswith("_start_ns")]
        assert [[row[i] for i in kept] for row in before.rows] == [[row[i] for i in kept] for row in after.rows]


def test_runs_of_one_agent_keep_their_order() -> None:
    by_agent: dict[str | None, list[tuple[str, str]]] = defaultdict(list)
    for before, after in pairs("runs"):
        by_agent[before["agent_id"]].append((str(before["created_at"]), str(after["created_at"])))
    for times in by_agent.values():
        assert sorted(range(len(times)), key=lambda i: times[i][0]) == sorted(
            range(len(times)), key=lambda i: times[i][1]
        )


def test_the_same_original_gives_the_same_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one.sql.gz", tmp_path / "other.sql.gz"
    for out in (one, other):
        stretch.main([str(SAMPLE_FILE), str(out)])
    assert one.read_bytes() == other.read_bytes()
    assert dump.render(dump.read(one)) == dump.render(AFTER)


def test_a_table_whose_times_are_not_known_is_refused() -> None:
    unknown = dump.CopyBlock("COPY public.provider_traces (id) FROM stdin;", "public.provider_traces", ("id",), ())
    with pytest.raises(stretch.StretchError, match=r"no rule for the times of public\.provider_traces"):
        stretch.stretch([*BEFORE, unknown])


def test_a_dump_in_another_time_zone_is_refused() -> None:
    def elsewhere(part: dump.Part) -> dump.Part:
        if not isinstance(part, dump.CopyBlock):
            return part
        rows = tuple(tuple(field.replace("+00", "-05") for field in row) for row in part.rows)
        return dump.CopyBlock(part.statement, part.table, part.columns, rows)

    with pytest.raises(stretch.StretchError, match="a dump in UTC is needed"):
        stretch.stretch([elsewhere(part) for part in BEFORE])
