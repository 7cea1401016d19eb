"""The commands ``tokens``: what they print is enough to revoke a token, and says which database it is in."""

import re

import pytest

from trajectory_pipeline.cli import console
from trajectory_pipeline.urls import describe_postgres
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.serve.tenancy import insert_run

ORGANIZATIONS = ("org-e7802658-9624-43b0-b11e-a47969ef2839", "org-11111111-2222-3333-4444-555555555555")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_token_is_revoked_by_what_was_shown(
    run_command: Command, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    tenants = [text for name in ORGANIZATIONS for text in ("--organization", name)]
    made = run_command("tokens", "create", "a team with a long name, which takes room", *tenants, **databases)
    assert made.exit_code == 0, made.output
    assert re.fullmatch(r"trajectory_\w+_[\w-]+\n", made.stdout), "the token alone, for a script"
    (shown,) = re.findall(r"Token (\w+) is stored in (\S+)\. ", made.stderr)
    assert shown[1] == describe_postgres(databases["TRAJECTORY_DATABASE_URL"])
    monkeypatch.setattr(console.out, "width", width)
    listed = run_command("tokens", "list", **databases).output
    assert all(name in listed for name in (shown[0], *ORGANIZATIONS))
    assert run_command("tokens", "revoke", shown[0], **databases).exit_code == 0
    assert "revoked" in squeezed(run_command("tokens", "list", **databases))
    again = run_command("tokens", "revoke", shown[0], **databases)
    assert (again.exit_code, "There is no token" in squeezed(again)) == (2, True)


def test_tenant_without_runs_is_reported(run_command: Command, databases: dict[str, str]) -> None:
    """A token for a misspelled organization would find nothing, and no one would know why."""
    insert_run(databases["TRAJECTORY_DATABASE_URL"], "run-1", "org-there")
    named = ["--organization", "org-there", "--organization", "org-tehre", "--agent", "org-there"]
    made = run_command("tokens", "create", "team", *named, **databases)
    assert made.exit_code == 0, made.output
    assert "No run of org-tehre, org-there is stored so far" in squeezed(made)
    assert "No run" not in run_command("tokens", "create", "team", *named[:2], **databases).stderr


def test_command_says_that_it_made_new_databases(
    run_command: Command, databases: dict[str, str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a URL it would else be silent about where a token went."""
    made: list[object] = []

    class Made:
        """Stands for the databases of the embedded server, which takes seconds to start."""

        database_url = databases["TRAJECTORY_DATABASE_URL"]
        embedded = True

    monkeypatch.setattr("trajectory_pipeline.cli.connections.resolve_databases", lambda *_: made.append(1) or Made)
    folder = f"{tmp_path}/mine"
    result = run_command("tokens", "list", TRAJECTORY_DATA_FOLDER=folder)
    assert f"New, empty databases were made in {folder}/postgres" in squeezed(result)
    assert "TRAJECTORY_DATA_FOLDER" in result.stderr
    assert made
