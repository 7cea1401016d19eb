"""The commands ``migrate`` and ``load-sample``: safe to run twice, and clear about what they found."""

import psycopg
import pytest

from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.defs.dagster_runs import execute, query


def test_migrate_twice_creates_then_finds_the_schema(run_command: Command, empty_database: str) -> None:
    first = run_command("migrate", TRAJECTORY_DATABASE_URL=empty_database)
    assert first.exit_code == 0
    assert "The schema trajectory in 127.0.0.1:" in squeezed(first)
    assert " went from nothing to revision " in squeezed(first)
    second = run_command("migrate", TRAJECTORY_DATABASE_URL=empty_database)
    assert second.exit_code == 0
    assert " is at revision " in squeezed(second)
    assert query(empty_database, "SELECT count(*) FROM trajectory.trajectories") == [(0,)]


def test_migrate_with_unreachable_server_hides_password(run_command: Command) -> None:
    result = run_command("migrate", TRAJECTORY_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/agents")
    assert result.exit_code == 2
    assert "127.0.0.1:1/agents" in squeezed(result)
    assert "hunter2" not in result.output


@pytest.mark.parametrize("how", ["url", "setting"])
def test_load_sample_twice_loads_once(run_command: Command, empty_database: str, how: str) -> None:
    others = {"TRAJECTORY_DATABASE_URL": empty_database, "DAGSTER_PG_URL": empty_database}
    arguments, variables = (
        (("load-sample", "--url", empty_database), {})
        if how == "url"
        else (("load-sample",), {"LETTA_PG_URI": empty_database, **others})
    )
    first = run_command(*arguments, **variables)
    assert first.exit_code == 0, first.output
    assert "The sample is loaded: 153 runs (152 terminal) in 36 partitions" in squeezed(first)
    second = run_command(*arguments, **variables)
    assert second.exit_code == 0
    assert "The sample was already loaded: 153 runs (152 terminal) in 36 partitions" in squeezed(second)
    assert query(empty_database, "SELECT count(*) FROM runs") == [(153,)]


def test_load_sample_into_a_database_with_other_runs_is_refused(run_command: Command, letta_database: str) -> None:
    execute(letta_database, "DELETE FROM runs WHERE id = (SELECT min(id) FROM runs)")
    result = run_command("load-sample", "--url", letta_database)
    assert result.exit_code == 2
    assert squeezed(result).split("Error: ")[1]
    assert query(letta_database, "SELECT count(*) FROM runs") == [(320,)]


def test_load_sample_creates_a_database_only_with_create(run_command: Command, empty_database: str) -> None:
    url = f"{empty_database}_new"
    refused = run_command("load-sample", "--url", url)
    assert refused.exit_code == 2
    assert "does not exist" in squeezed(refused)
    try:
        assert run_command("load-sample", "--url", url, "--create").exit_code == 0
        assert query(url, "SELECT count(*) FROM runs") == [(153,)]
    finally:
        with psycopg.connect(empty_database, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)'.encode())
