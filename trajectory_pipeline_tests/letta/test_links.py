"""Rows that refer to other rows, or to none: other runs' steps, steps without a run, names of what is gone.

A message belongs to the run that its ``run_id`` names. The step that it names may be another run's (the answer to an
approval request): then that step is read as a foreign one. What is gone is left out, and nothing is invented for it.
"""

from trajectory_pipeline_tests.letta.snapshots import Row, all_runs, ask, do
from trajectory_pipeline_tests.letta_sample import sample_terminal_run_ids

FOREIGN = (
    "SELECT DISTINCT m.run_id, s.id FROM messages m JOIN steps s ON s.id = m.step_id"
    " WHERE m.run_id IS DISTINCT FROM s.run_id AND m.run_id IS NOT NULL"
)


def ids(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def test_foreign_steps_that_messages_name_are_read(untouched_sample: str) -> None:
    expected = {pair for pair in ask(untouched_sample, FOREIGN) if pair[0] in sample_terminal_run_ids()}
    runs = all_runs(untouched_sample)
    found = {(run_id, step["id"]) for run_id, run in runs.items() for step in run["foreign_steps"]}
    assert found == expected
    assert len(found) >= 5
    own = {step["id"]: step for run in runs.values() for step in run["steps"]}
    for run_id, run in runs.items():
        for step in run["foreign_steps"]:
            assert step == own[step["id"]]
            assert step["run_id"] != run_id
            assert step["id"] not in ids(run["steps"])


def test_foreign_step_of_another_partition_is_read(letta_database: str) -> None:
    run_id, step_id = min(ask(letta_database, FOREIGN))
    do(letta_database, f"UPDATE runs SET status = 'running' WHERE id <> '{run_id}'")
    runs = all_runs(letta_database)
    assert list(runs) == [run_id]
    assert ids(runs[run_id]["foreign_steps"]) == [step_id]


def test_step_of_a_deleted_run_is_foreign(letta_database: str) -> None:
    run_id, step_id = min(ask(letta_database, FOREIGN))
    (asking,) = ask(letta_database, f"SELECT run_id FROM steps WHERE id = '{step_id}'")[0]
    do(letta_database, f"DELETE FROM runs WHERE id = '{asking}'")
    runs = all_runs(letta_database)
    assert asking not in runs
    (foreign,) = runs[run_id]["foreign_steps"]
    assert (foreign["id"], foreign["run_id"]) == (step_id, None)
    assert len(runs) == 316


def test_messages_of_a_deleted_run_are_not_read(letta_database: str) -> None:
    (run_id,) = ask(letta_database, "SELECT min(run_id) FROM messages")[0]
    gone = {message_id for (message_id,) in ask(letta_database, f"SELECT id FROM messages WHERE run_id = '{run_id}'")}
    do(letta_database, f"DELETE FROM runs WHERE id = '{run_id}'")
    assert gone
    assert not gone & {message["id"] for run in all_runs(letta_database).values() for message in run["messages"]}


def test_message_of_a_deleted_step_is_read(letta_database: str) -> None:
    (message_id, run_id, step_id) = ask(
        letta_database, "SELECT id, run_id, step_id FROM messages WHERE role = 'assistant' AND run_id IS NOT NULL"
    )[0]
    do(
        letta_database,
        "ALTER TABLE messages DROP CONSTRAINT fk_messages_step_id",
        f"DELETE FROM steps WHERE id = '{step_id}'",
    )
    run = all_runs(letta_database)[run_id]
    (message,) = [message for message in run["messages"] if message["id"] == message_id]
    assert message["step_id"] == step_id
    assert step_id not in ids(run["steps"]) + ids(run["foreign_steps"]) + ids(run["step_metrics"])


def test_metrics_are_found_by_their_id_alone(untouched_sample: str) -> None:
    """A race in Letta sometimes leaves ``step_metrics.run_id`` empty."""
    lost = {row[0] for row in ask(untouched_sample, "SELECT id FROM step_metrics WHERE run_id IS NULL")}
    found = {metrics["id"] for run in all_runs(untouched_sample).values() for metrics in run["step_metrics"]}
    assert lost
    assert lost <= found


def test_run_without_any_other_rows_is_read(letta_database: str) -> None:
    do(
        letta_database,
        "ALTER TABLE runs DROP CONSTRAINT runs_agent_id_fkey",
        "INSERT INTO runs (id, status, completed_at, agent_id, organization_id)"
        " SELECT 'run-bare', 'failed', '2030-01-01', 'agent-gone', organization_id FROM agents LIMIT 1",
    )
    run = all_runs(letta_database)["run-bare"]
    assert {name: run[name] for name in ("run_metrics", "agent", "context")} == dict.fromkeys(
        ("run_metrics", "agent", "context")
    )
    for name in ("steps", "foreign_steps", "step_metrics", "messages", "agent_tags"):
        assert run[name] == []


def test_tags_are_sorted_and_of_the_runs_agent(letta_database: str) -> None:
    one, other = (row[0] for row in ask(letta_database, "SELECT DISTINCT agent_id FROM runs ORDER BY 1 LIMIT 2"))
    do(
        letta_database,
        "DELETE FROM agents_tags",
        "INSERT INTO agents_tags (agent_id, tag)"
        f" VALUES ('{one}', 'b'), ('{one}', 'Ä'), ('{one}', 'a'), ('{other}', 'z')",
    )
    tags = {run["run"]["agent_id"]: run["agent_tags"] for run in all_runs(letta_database).values()}
    assert tags[one] == ["a", "b", "Ä"]
    assert tags[other] == ["z"]
    assert {tuple(each) for agent, each in tags.items() if agent not in (one, other)} == {()}
