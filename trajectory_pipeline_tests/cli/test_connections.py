"""Which databases a command opens: one that reads or changes only what was captured needs no other."""

import pytest

from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.cli.conftest import Command


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "run-0"),
        ("search", "refund"),
        ("export", "csv", "dataset"),
        ("exports", "list"),
        ("families",),
        ("labels", "sample"),
        ("erase",),
        ("prune",),
        ("plan",),
        ("report",),
        ("quality",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_command_on_the_sinks_makes_no_embedded_server(
    run_command: Command, settings: Settings, arguments: tuple[str, ...]
) -> None:
    sinks = {
        "TRAJECTORY_DATABASE_URL": str(settings.storage.database_url),
        "TRAJECTORY_DATA_FOLDER": str(settings.storage.data_folder),
    }
    result = run_command(*arguments, **sinks)
    assert "Usage:" not in result.output, result.output
    assert not settings.storage.embedded_folder.exists(), result.output
