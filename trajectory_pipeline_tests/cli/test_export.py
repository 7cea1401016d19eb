"""The command ``export``: a dataset in a new folder, and an error for each wrong option that says what is right."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trajectory_pipeline.storage.export_target import location_of
from trajectory_pipeline.storage.postgres.export_registry import Export, register_export, registered_exports
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.cli.test_maintenance import captured


def test_export_writes_a_dataset(run_command: Command, databases: dict[str, str], tmp_path: Path) -> None:
    runs = captured(databases).ask("SELECT count(*) AS runs FROM trajectory.outcomes")[0]["runs"]
    result = run_command("export", "sft", "all-runs", "--splits", "1", "0", "0", **databases)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "all-runs" / "manifest.json").read_bytes())
    left_out = sum(manifest["left_out"].values())
    assert manifest["selected"] == runs == manifest["records"]["train"] + left_out
    assert f"{runs} runs selected" in squeezed(result)
    again = run_command("export", "sft", "all-runs", **databases)
    assert (again.exit_code, "is there already" in squeezed(again)) == (2, True)
    pairs = run_command("exports", "pairs", **databases)
    assert pairs.exit_code == 0, pairs.output
    assert "family successes failures tasks pairs part at" in " ".join(re.findall(r"\w+", pairs.output))
    for command in (("export", "sft", "none"), ("exports", "pairs")):
        empty = run_command(*command, "--agent", "nobody", **databases)
        assert (empty.exit_code, "No run passes the filters" in squeezed(empty)) == (1, True), empty.output
        assert f"Of {runs} runs, each by itself leaves: 0 --agent nobody." in squeezed(empty)


_SLOW = """if True:
    import time
    from trajectory_pipeline.cli.main import main
    from trajectory_pipeline.pipeline.export import DatasetFiles
    DatasetFiles.write = lambda *_: time.sleep(60)
    main()
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_export_leaves_nothing(databases: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    captured(databases)
    target = tmp_path / "exports" / "all-runs"
    target.parent.mkdir()
    command = [sys.executable, "-c", _SLOW, "export", "sft", str(target)]
    with subprocess.Popen(command, env={**os.environ, **databases}, stderr=subprocess.PIPE, text=True) as process:
        while not any(target.parent.glob(".*/*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate()
    assert (process.returncode, "Interrupted." in said) == (128 + number, True), said
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("atif", "x", "--version", "9"), "--version 9 of atif is not known; there is 1.8 or 1.7"),
        (("csv", "x", "--version", "1"), "the format has no versions"),
        (("csv", "x", "--endpoint", "http://host:4318"), "--endpoint and --openinference are of otel"),
        (("otel", "x", "--endpoint", "host:4318"), "write it as http://host:4318"),
        (("sft", "x", "--images"), "sft has no place for images. These formats have: atif, scout, otel, openai."),
        (("csv", "x", "--splits", "0.5", "0.5", "0.5"), "add up to 1"),
        (("csv", "x", "--splits", "nan", "0.5", "0.5"), "nan is not a number"),
        (("csv", "x", "--min-confidence", "nan"), "nan is not a number"),
        (("csv", "x", "--near-duplicates", "nan"), "nan is not a number"),
        (("csv", "x", "--from", "2026-11-03", "--to", "2026-11-01"), "must be after --completed-from"),
        (("sft", "x", "--across-agents"), "--across-agents is of dpo"),
        (("csv", "x", "--from", "soon"), "soon"),
        (("yaml", "x"), "'yaml' is not one of 'atif'"),
        (("csv", "x", "--outcome", "good"), "'good' is not one of"),
    ],
)
def test_wrong_option_is_named(run_command: Command, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = run_command("export", *options)
    assert (result.exit_code, words in squeezed(result)) == (2, True), result.output
    assert not (tmp_path / "x").exists()


def test_pruned_runs_are_counted_and_named(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    assert run_command("export", "sft", "all-runs", **databases).exit_code == 0
    (run, *_) = pipeline.ask("SELECT run_id FROM trajectory.export_runs ORDER BY 1")
    pipeline.do(f"DELETE FROM trajectory.trajectories WHERE run_id = '{run['run_id']}'")
    listed = run_command("exports", "list", **databases)
    assert "0 erased, 0 deleted, 1 pruned since" in squeezed(listed)
    assert "pruned since" in squeezed(run_command("exports", "holding", run["run_id"], **databases))


def test_dataset_that_an_asset_keeps_is_not_forgotten(run_command: Command, databases: dict[str, str]) -> None:
    pipeline = captured(databases)
    export = Export(f"{location_of(str(pipeline.folder / 'exports'))}/sft", "sft", True, {})
    with pipeline.database.connect() as connection:
        register_export(connection, export)
    kept = run_command("exports", "forget", export.export_id, **databases, TRAJECTORY_EXPORTS="sft,atif")
    assert kept.exit_code == 2
    assert f"The asset exports/sft keeps {export.export_id} up to date. To end that, take sft out of" in squeezed(kept)
    assert len(registered_exports(pipeline.database)) == 1
    assert run_command("exports", "forget", export.export_id, **databases, TRAJECTORY_EXPORTS="atif").exit_code == 0
    assert registered_exports(pipeline.database) == []
