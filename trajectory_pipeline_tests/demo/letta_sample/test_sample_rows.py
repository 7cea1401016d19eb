"""What holds in the sample's rows: true of the real rows they were, and still true after their runs were moved.

The bounds in seconds are those of the original capture, rounded up.
"""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline_tests.letta_sample import (
    SAMPLE_FILE,
    sample_counts,
    sample_partitions,
    sample_terminal_run_ids,
    sample_window,
)

Record = dict[str, str | None]

BLOCKS = {block.table.removeprefix("public."): block for block in dump.copy_blocks(dump.read(SAMPLE_FILE))}
ROWS: dict[str, list[Record]] = {table: list(block.records()) for table, block in BLOCKS.items()}
RUNS = {str(run["id"]): run for run in ROWS["runs"]}
STEPS = {str(step["id"]): step for step in ROWS["steps"]}
AGENTS = {str(agent["id"]): agent for agent in ROWS["agents"]}
OF_A_RUN = [message for message in ROWS["messages"] if message["run_id"]]
WITHOUT_RUN = [message for message in ROWS["messages"] if not message["run_id"]]
TIME_COLUMNS = ("created_at", "updated_at", "completed_at", "callback_sent_at", "last_message_at")


def at(row: Record, column: str = "created_at") -> datetime:
    parsed = datetime.fromisoformat(str(row[column]))
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def ended(run: Record) -> datetime:
    return at(run, "completed_at")


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def chains() -> set[tuple[str, str]]:
    """(asking run, answering run): the answer's first messages carry a step of the run that asked."""
    return {
        (str(STEPS[str(message["step_id"])]["run_id"]), str(message["run_id"]))
        for message in OF_A_RUN
        if STEPS[str(message["step_id"])]["run_id"] != message["run_id"]
    }


def runs_by_agent() -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for run in sorted(RUNS.values(), key=at):
        found[str(run["agent_id"])].append(run)
    return found


def test_runs_spread_unevenly_over_days_and_partitions() -> None:
    partitions = sample_partitions()
    assert len(partitions) >= 24
    assert len({hour.date() for hour in partitions}) >= 4
    assert max(partitions.values()) > 30
    assert sum(count == 1 for count in partitions.values()) >= 3
    first, last = sample_window()
    assert len(partitions) < (last - first) / timedelta(hours=1)
    assert all((hour.minute, hour.second, hour.tzinfo) == (0, 0, UTC) for hour in partitions)


def test_sample_counts_equal_the_rows() -> None:
    counts = sample_counts()
    assert (counts.runs, counts.steps, counts.messages) == (len(RUNS), len(STEPS), len(ROWS["messages"]))
    assert counts.terminal_runs == len(sample_terminal_run_ids()) == sum(sample_partitions().values())
    assert counts.partitions == len(sample_partitions())
    assert sample_terminal_run_ids() == {run_id for run_id, run in RUNS.items() if run["completed_at"]}
    assert not counts.already_loaded


def test_readme_states_the_counts_of_the_file() -> None:
    counts = sample_counts()
    readme = " ".join(Path(SAMPLE_FILE).with_name("README.md").read_text(encoding="utf-8").split())
    runs = f"{counts.runs} runs, of which {counts.terminal_runs} are terminal"
    assert f"- {runs}, with {counts.steps} steps and {counts.messages:,} messages - " in readme
    agents = f"{counts.agents} agents (six agent types) in {counts.organizations} organizations"
    assert f"- {agents}, with {counts.conversations} conversations - " in readme
    first, last = sample_window()
    hours = f"{counts.partitions} hours (partitions) between {first:%Y-%m-%d} and {last:%Y-%m-%d}"
    assert f"- The terminal runs ended in {hours}, UTC " in readme
    assert len({agent["agent_type"] for agent in AGENTS.values()}) == 6


def test_data_file_is_small() -> None:
    assert SAMPLE_FILE.stat().st_size < 1_000_000


def test_times_are_before_the_day_of_the_capture() -> None:
    times = [at(row, name) for rows in ROWS.values() for row in rows for name in TIME_COLUMNS if row.get(name)]
    assert max(times) < datetime(2026, 11, 22, tzinfo=UTC)


def test_runs_last_minutes_at_most() -> None:
    for run in RUNS.values():
        if run["completed_at"]:
            assert seconds(0) < ended(run) - at(run) < seconds(300), run["id"]
            assert seconds(-1) < at(run, "updated_at") - ended(run) < seconds(5), run["id"]
        if run["callback_sent_at"]:
            assert seconds(0) < at(run, "callback_sent_at") - ended(run) < seconds(2), run["id"]


def test_messages_are_within_their_run_or_seconds_after() -> None:
    for message in OF_A_RUN:
        run = RUNS[str(message["run_id"])]
        assert at(message) >= at(run), message["id"]
        assert at(message, "updated_at") >= at(message), message["id"]
        if run["completed_at"]:
            assert at(message) < ended(run) + seconds(5), message["id"]


def test_steps_and_metrics_are_within_their_run() -> None:
    for step in STEPS.values():
        run = RUNS[str(step["run_id"])]
        assert at(step) >= at(run), step["id"]
        if run["completed_at"]:
            assert at(step) <= ended(run), step["id"]
    for metrics in ROWS["step_metrics"]:
        assert seconds(0) <= at(metrics) - at(STEPS[str(metrics["id"])]) < seconds(5), metrics["id"]


def test_run_metrics_are_close_to_their_run() -> None:
    for metrics in ROWS["run_metrics"]:
        run = RUNS[str(metrics["id"])]
        started = datetime.fromtimestamp(int(str(metrics["run_start_ns"])) / 1e9, UTC)
        assert seconds(0) <= at(metrics) - at(run) < seconds(2), run["id"]
        assert seconds(0) <= started - at(run) < seconds(10), run["id"]
        if run["completed_at"]:
            assert at(metrics, "updated_at") < ended(run) + seconds(10), run["id"]


def test_sequence_ids_follow_time_except_for_summaries() -> None:
    exceptions = 0
    by_run: dict[str, list[Record]] = defaultdict(list)
    for message in sorted(OF_A_RUN, key=lambda message: int(str(message["sequence_id"]))):
        by_run[str(message["run_id"])].append(message)
    for messages in by_run.values():
        for before, after in pairwise(messages):
            if at(before) > at(after):
                assert before["role"] == "summary" or "system_alert" in str(before["content"]), before["id"]
                exceptions += 1
    assert exceptions > 0


def test_consecutive_runs_of_an_agent_have_rising_sequence_ids() -> None:
    sequence_ids: dict[str, list[int]] = defaultdict(list)
    latest: dict[str, datetime] = {}
    for message in OF_A_RUN:
        run_id = str(message["run_id"])
        sequence_ids[run_id].append(int(str(message["sequence_id"])))
        latest[run_id] = max(at(message, "updated_at"), latest.get(run_id, at(message)))
    for runs in runs_by_agent().values():
        for before, after in pairwise([run for run in runs if run["id"] in latest]):
            if latest[str(before["id"])] < at(after):
                assert max(sequence_ids[str(before["id"])]) < min(sequence_ids[str(after["id"])]), after["id"]


def test_approval_answers_come_the_same_hour_to_days_later() -> None:
    distances = []
    for asking, answering in chains():
        assert RUNS[asking]["agent_id"] == RUNS[answering]["agent_id"]
        assert at(RUNS[answering]) > ended(RUNS[asking])
        distances.append((hour(ended(RUNS[answering])) - hour(ended(RUNS[asking]))) / timedelta(hours=1))
    kinds = Counter(distances)
    assert kinds[0] >= 3
    assert kinds[1] >= 2
    assert max(distances) >= 24


def hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def test_runs_that_others_wait_for_are_close_to_them() -> None:
    started_by_other = [
        run
        for run in RUNS.values()
        if "sleeptime" in str(run["metadata_"])
        or any("Incoming message from agent" in str(m["content"]) for m in OF_A_RUN if m["run_id"] == run["id"])
    ]
    assert len(started_by_other) >= 2
    for run in started_by_other:
        assert any(
            at(other) <= at(run) <= ended(other)
            for other in RUNS.values()
            if other["agent_id"] != run["agent_id"] and other["completed_at"]
        ), run["id"]


def test_agents_are_created_before_and_updated_after_their_runs() -> None:
    for agent_id, runs in runs_by_agent().items():
        agent = AGENTS[agent_id]
        assert at(agent) < at(runs[0]), agent_id
        terminal = [ended(run) for run in runs if run["completed_at"]]
        assert not terminal or at(agent, "updated_at") > max(terminal) - seconds(10), agent_id
    for agent in AGENTS.values():
        organization = next(row for row in ROWS["organizations"] if row["id"] == agent["organization_id"])
        assert at(organization) < at(agent), agent["id"]
        assert at(agent) <= at(agent, "updated_at"), agent["id"]


def test_conversations_span_their_messages() -> None:
    for conversation in ROWS["conversations"]:
        times = [at(message) for message in ROWS["messages"] if message["conversation_id"] == conversation["id"]]
        assert at(AGENTS[str(conversation["agent_id"])]) < at(conversation), conversation["id"]
        assert at(conversation) <= min(times), conversation["id"]
        assert at(conversation, "last_message_at") <= at(conversation, "updated_at")
        assert max(times) <= at(conversation, "updated_at") + seconds(10), conversation["id"]


def test_messages_without_a_run_follow_their_agents_creation() -> None:
    assert WITHOUT_RUN
    for message in WITHOUT_RUN:
        assert at(message) >= at(AGENTS[str(message["agent_id"])]), message["id"]


def test_sample_has_every_kind_of_recorded_error() -> None:
    endings = {(run["status"], run["stop_reason"]) for run in RUNS.values()}
    assert {
        ("completed", "end_turn"),
        ("completed", "requires_approval"),
        ("completed", "llm_api_error"),
        ("completed", "max_steps"),
        ("failed", None),
        ("cancelled", "cancelled"),
        ("created", None),
        ("running", None),
    } <= endings
    # A lone surrogate, which Postgres keeps in json and cannot read as jsonb.
    assert any("\\ud83d" in str(message["content"]) for message in ROWS["messages"])
    assert any(metrics["run_id"] is None for metrics in ROWS["step_metrics"])


@pytest.mark.parametrize("table", ["runs", "run_metrics", "steps", "step_metrics", "messages", "agents"])
def test_ids_are_unique(table: str) -> None:
    ids = [row["id"] for row in ROWS[table]]
    assert len(set(ids)) == len(ids)
