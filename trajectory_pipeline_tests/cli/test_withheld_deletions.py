"""Withheld deletions on the command line: the sentence, who shows it, and how a person accepts them."""

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.cli.test_maintenance import HOUR, KEY, captured


def test_materialize_stops_until_deletions_are_accepted(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    erasing = {**databases, "TRAJECTORY_DELETED_CONTENT": "erase", "TRAJECTORY_START": HOUR.isoformat()}
    assert "✓ source identity: cluster " in squeezed(run_command("doctor", **erasing))
    pipeline.change_source("TRUNCATE runs, steps, messages CASCADE")
    stopped = run_command("materialize", "--partition", KEY, **erasing)
    assert stopped.exit_code == 1
    assert f"{KEY} was not captured from " in squeezed(stopped)
    assert f"`trajectory-pipeline materialize --partition {KEY} --accept-deletions`" in squeezed(stopped)
    for command in ("doctor", "check"):
        shown = run_command(command, **erasing)
        assert shown.exit_code == 1
        assert f"{KEY} was not captured from " in squeezed(shown)
    done = run_command("materialize", "--partition", KEY, "--accept-deletions", **erasing)
    assert done.exit_code == 0, done.output
    rows = pipeline.ask("SELECT * FROM trajectory.trajectories WHERE partition_key = %s", partition_key(HOUR))
    assert rows
    assert all(row["deleted_at"] and row["erased"] for row in rows)
    assert "withheld" not in run_command("doctor", **erasing).output


def test_doctor_names_an_unknown_and_another_source(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    pipeline.do("UPDATE trajectory.sources SET identity = 'cluster 1, timeline 1, database letta (1)'")
    shown = squeezed(run_command("doctor", **databases))
    assert "runs were captured from cluster 1, timeline 1, database letta (1), so nothing counts as deleted" in shown
    pipeline.do("DELETE FROM trajectory.sources")
    pipeline.change_source("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    pipeline.change_source("CREATE ROLE some_reader LOGIN PASSWORD 'pw'", "GRANT pg_read_all_data TO some_reader")
    try:
        user = databases["LETTA_PG_URI"].partition("//")[2].partition("@")[0]
        reader = databases["LETTA_PG_URI"].replace(user, "some_reader:pw")
        shown = squeezed(run_command("doctor", **{**databases, "LETTA_PG_URI": reader}))
        assert "which cluster it is cannot be read" in shown
        assert "GRANT EXECUTE ON FUNCTION pg_control_system()" in shown
    finally:
        pipeline.change_source("DROP OWNED BY some_reader", "DROP ROLE some_reader")
