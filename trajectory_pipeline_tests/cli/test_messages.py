"""Help, and errors that name the wrong setting and what to set."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from trajectory_pipeline.cli.main import COMMANDS, main
from trajectory_pipeline.settings import setting_fields
from trajectory_pipeline_tests.cli.conftest import Command, squeezed


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_every_command_and_shows_examples(run_command: Command, option: str) -> None:
    result = run_command(option)
    assert result.exit_code == 0
    for name in COMMANDS:
        [line] = [line for line in result.output.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3, line
    assert "Try it, with nothing installed and no key:\n    trajectory-pipeline demo\n" in result.output
    assert "    export LETTA_PG_URI=postgresql://reader:" in result.output
    assert "trajectory-pipeline materialize --from 2026-11-20 --to 2026-11-21" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_describes_every_option(run_command: Command, name: str) -> None:
    result = run_command(name, "--help")
    assert result.exit_code == 0
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.name == name
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


def test_materialize_help_states_exit_codes_and_range(run_command: Command) -> None:
    words = squeezed(run_command("materialize", "--help"))
    for part in (
        "A range is half-open. A time without an offset is UTC.",
        "Exit code 0 done (quarantined runs and failed verdicts are reported)"
        " 1 a partition failed 2 bad input; nothing was started",
        "trajectory-pipeline materialize --partition 2026-11-21-09:00",
        "every hour it touches is included",
    ):
        assert part in words


@pytest.mark.process
def test_help_imports_neither_dagster_nor_pyarrow() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom trajectory_pipeline.cli.main import main\n"
            "try: main(['--help'])\nexcept SystemExit: pass\nassert not {'dagster', 'pyarrow'} & set(sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_version_option_prints_the_version(run_command: Command) -> None:
    assert run_command("--version").output.startswith("trajectory-pipeline, version 0.")


def test_settings_lists_every_variable_with_its_description(run_command: Command) -> None:
    result = run_command("settings")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(setting_fields())
    for field in setting_fields().values():
        assert str(field.description) in squeezed(result)


WRONG: list[tuple[dict[str, str], str]] = [
    ({"LETTA_PG_URI": "mysql://db/letta"}, "LETTA_PG_URI must look like postgresql://user:password@host:5432/database"),
    ({"TRAJECTORY_DATABASE_URL": "postgresql://db:5432"}, "TRAJECTORY_DATABASE_URL names no database"),
    ({"DAGSTER_PG_URL": "postgresql://u:p@h:port/d"}, "a port that is not a number"),
    ({"TRAJECTORY_START": "yesterday"}, "TRAJECTORY_START must be a time such as 2025-01-01"),
    ({"TRAJECTORY_START": "2025-01-01T00:30"}, "TRAJECTORY_START must be a whole hour, UTC"),
    ({"TRAJECTORY_BACKFILL_BATCH": "0"}, "TRAJECTORY_BACKFILL_BATCH"),
    ({"TRAJECTORY_DAILY_BUDGET_USD": "much"}, "TRAJECTORY_DAILY_BUDGET_USD"),
    ({"ENABLE_TRAJECTORY_CAPTURE": "perhaps"}, "ENABLE_TRAJECTORY_CAPTURE"),
]


@pytest.mark.parametrize(
    ("variables", "words"), WRONG, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
@pytest.mark.parametrize(
    "command", [("materialize", "--partition", "2026-11-20-14:00"), ("show", "run-1"), ("migrate",)]
)
def test_wrong_setting_is_named_with_exit_code_2(
    run_command: Command, variables: dict[str, str], words: str, command: tuple[str, ...]
) -> None:
    result = run_command(*command, **variables)
    assert result.exit_code == 2
    assert squeezed(result).startswith("Error: ")
    assert words in squeezed(result)
    assert squeezed(result).endswith(".")


@pytest.mark.parametrize("command", ["settings", "doctor", "check"])
def test_renamed_setting_in_dotenv_is_reported_with_new_name(run_command: Command, command: str) -> None:
    Path(".env").write_text("TRAJECTORY_HORIZON_DAYS=3\n")
    result = run_command(command)
    assert result.exit_code == (1 if command == "doctor" else 2)
    assert "TRAJECTORY_HORIZON_DAYS is now named TRAJECTORY_JUDGE_LOOKBACK_DAYS" in squeezed(result)


def test_several_wrong_settings_are_all_named(run_command: Command) -> None:
    message = squeezed(run_command("show", "run-1", TRAJECTORY_START="x", TRAJECTORY_JUDGE_ATTEMPTS="x"))
    assert "TRAJECTORY_START" in message
    assert "TRAJECTORY_JUDGE_ATTEMPTS" in message


def test_password_in_a_wrong_url_is_not_printed(run_command: Command) -> None:
    for url in ("postgresql://me:hunter2@host:port/db", "mysql://me:hunter2@host/db", "postgresql://me:hunter2@host"):
        assert "hunter2" not in run_command("show", "run-1", TRAJECTORY_DATABASE_URL=url).output


def test_unknown_command_exits_2(run_command: Command) -> None:
    result = run_command("materialise")
    assert result.exit_code == 2
    assert "No such command 'materialise'" in result.output


def test_dotenv_in_the_working_directory_is_read(run_command: Command) -> None:
    Path(".env").write_text("TRAJECTORY_START=nonsense\n")
    assert "TRAJECTORY_START must be a time" in squeezed(run_command("show", "run-1"))
