"""The commands ``label``, ``labels`` and ``quality``, used as a person would: through a terminal, and by files."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.labels import read_labels
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

pytestmark = pytest.mark.process

HOUR = max((size, hour) for hour, size in sample_partitions().items())[1]


class Terminal:
    """A child process at a terminal of its own: what it prints, and keys for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def expect(self, words: str, seconds: float = 60) -> str:
        """Wait until the words are printed, and return all that was printed since the last time."""
        end = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < end, f"no {words!r} in: {self.text[-2000:]}"
            if select.select([self._descriptor], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._descriptor, 65536).decode(errors="replace")
                except OSError:  # the child ended
                    assert words in self.text, self.text[-2000:]
        before, _, self.text = self.text.partition(words)
        return before

    def press(self, keys: str) -> None:
        """Press a key, or type a line, when the child waits for it: what comes too early is dropped."""
        end = time.monotonic() + 30
        for_line = keys.endswith("\r")
        while bool(termios.tcgetattr(self._descriptor)[3] & termios.ICANON) is not for_line:
            assert time.monotonic() < end, f"it does not wait for {keys!r}"
            time.sleep(0.02)
        os.write(self._descriptor, keys.encode())


@contextmanager
def at_a_terminal(databases: dict[str, str], *arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = {**os.environ, **databases, "COLUMNS": "160", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "trajectory_pipeline.cli.main", "label", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


@pytest.fixture
def database(databases: dict[str, str]) -> TrajectoryDatabase:
    folder = Path(databases["TRAJECTORY_DATA_FOLDER"]) / "parquet"
    Pipeline(databases["LETTA_PG_URI"], databases["TRAJECTORY_DATABASE_URL"], folder).capture(HOUR)
    return TrajectoryDatabase(databases["TRAJECTORY_DATABASE_URL"])


def run_ids(database: TrajectoryDatabase) -> list[str]:
    return [row["run_id"] for row in database.rows("SELECT run_id FROM trajectory.trajectories ORDER BY 1")]


def held(database: TrajectoryDatabase) -> list[tuple[str, str, str]]:
    return [(label.criterion, label.annotator, label.value) for label in read_labels(database)]


def test_label_shows_the_run_and_hides_the_verdict_until_answered(
    databases: dict[str, str], database: TrajectoryDatabase, run_command: Command
) -> None:
    assert run_command("labels", "sample", "--count", "3", "--seed", "7", **databases).exit_code == 0
    with at_a_terminal(databases, "--annotator", "ann") as terminal:
        terminal.expect("Labelling as ann: 3 runs")
        shown = terminal.expect("What came of it?")
        assert "Turn 1" in shown
        assert "heuristic" not in shown
        assert "judge" not in shown.lower()
        terminal.press("w")
        terminal.expect("You are ann.")
        terminal.press("f")
        terminal.expect("Who caused the failure?")
        terminal.press("a")
        terminal.expect("Failure mode")
        terminal.press("no_verification\r")
        terminal.expect("Why (empty: no note)")
        terminal.press("nothing was checked\r")
        terminal.expect("Stored.")
        terminal.expect("What came of it?")
        terminal.press("k")
        terminal.expect("Run 3 of 3")
        terminal.expect("What came of it?")
        terminal.press("q")
        terminal.expect("1 runs labelled.")
    assert held(database) == [
        ("failure_mode", "ann", "no_verification"),
        ("failure_owner", "ann", "agent"),
        ("outcome", "ann", "failure"),
    ]
    outcome = read_labels(database, ["outcome"])[0]
    assert (outcome.note, outcome.source, outcome.sampling_design) == ("nothing was checked", "terminal", "random")
    assert outcome.inclusion_probability == pytest.approx(3 / sample_partitions()[HOUR])
    # Going on later: what was skipped comes again, what was labelled does not.
    with at_a_terminal(databases, "--annotator", "ann") as terminal:
        terminal.expect("Labelling as ann: 2 runs")
        terminal.expect("What came of it?")
        terminal.press("\x03")
        terminal.expect("0 runs labelled.")


def test_label_undone_is_withdrawn_and_asked_again(databases: dict[str, str], database: TrajectoryDatabase) -> None:
    first, second = [row["run_id"] for row in database.rows("SELECT run_id FROM trajectory.trajectories ORDER BY 1")][
        :2
    ]
    with at_a_terminal(databases, first, second, "--annotator", "ann") as terminal:
        for key, words in (("s", "Why"), ("\r", "Run 2 of 2"), ("b", "Run 1 of 2"), ("u", "Why"), ("\r", "Run 2 of 2")):
            if len(key.strip()) == 1:
                terminal.expect("What came of it?")
            terminal.press(key)
            terminal.expect(words)
        terminal.expect("What came of it?")
        terminal.press("q")
        terminal.expect("1 runs labelled.")
    assert held(database) == [("outcome", "ann", "unknown")]
    rows = database.rows("SELECT value, revision FROM trajectory.labels ORDER BY revision")
    assert [(row["value"], row["revision"]) for row in rows] == [("success", 1), ("unknown", 2)]


def test_label_without_a_terminal_says_what_to_do(run_command: Command, databases: dict[str, str]) -> None:
    result = run_command("label", **databases)
    assert result.exit_code == 2
    assert "Labelling needs a terminal: use `trajectory-pipeline labels import`" in squeezed(result)


def test_samples_never_draw_a_run_twice(
    run_command: Command, databases: dict[str, str], database: TrajectoryDatabase
) -> None:
    size = sample_partitions()[HOUR]
    for seed in (1, 2):
        assert run_command("labels", "sample", "--count", "2", "--seed", str(seed), **databases).exit_code == 0
    assert len(database.rows("SELECT DISTINCT run_id FROM trajectory.label_samples")) == 4
    again = run_command("labels", "sample", "--count", "2", "--seed", "2", **databases)
    assert "there is a sample 'random-2' already" in squeezed(again)
    too_many = run_command("labels", "sample", "--count", str(size), "--name", "more", **databases)
    assert f"{size} runs cannot be drawn from {size - 4}" in squeezed(too_many)
    listed = run_command("labels", "sample", **databases)
    assert "random-1" in listed.output


def test_export_and_import_bring_labels_back(
    run_command: Command, databases: dict[str, str], database: TrajectoryDatabase, tmp_path: Path
) -> None:
    runs = run_ids(database)
    file = tmp_path / "mine.csv"
    lines = [f"{run_id},outcome,success,ann,because" for run_id in runs]
    file.write_text("\n".join(["run_id,criterion,value,annotator,note", *lines]))
    first = run_command("labels", "import", str(file), **databases)
    assert f"{len(runs)} added" in first.output
    assert (
        f"0 added, 0 changed, 0 withdrawn, {len(runs)} unchanged"
        in run_command("labels", "import", str(file), **databases).output
    )
    before = read_labels(database)
    for kind, name in (("csv", "a.csv"), ("label-studio", "a.json"), ("scout", "b.yaml")):
        exported = run_command("labels", "export", str(tmp_path / name), "--format", kind, **databases)
        assert exported.exit_code == 0, exported.output
    for kind, name in (("csv", "a.csv"), ("label-studio", "a.json")):
        result = run_command("labels", "import", str(tmp_path / name), "--format", kind, **databases)
        assert f"{len(runs)} unchanged" in result.output
    assert read_labels(database) == before
    file.write_text(
        "\n".join(["run_id,criterion,value,annotator", f"{runs[0]},outcome,failure,bob", "run-9,outcome,x,bob"])
    )
    wrong = run_command("labels", "import", str(file), **databases)
    assert wrong.exit_code == 2
    assert "line 3: value 'x' of outcome is none of" in squeezed(wrong)
    assert read_labels(database) == before


def test_quality_prints_what_it_measured(
    run_command: Command, databases: dict[str, str], database: TrajectoryDatabase, tmp_path: Path
) -> None:
    none = run_command("quality", **databases)
    assert "There are no labels: give some with `trajectory-pipeline label`" in squeezed(none)
    runs = run_ids(database)
    file = tmp_path / "both.csv"
    lines = [
        f"{run_id},outcome,{value},{who}" for run_id in runs for who, value in (("a", "success"), ("b", "failure"))
    ]
    file.write_text("\n".join(["run_id,criterion,value,annotator", *lines]))
    run_command("labels", "import", str(file), **databases)
    result = run_command("quality", "--slices", "--confusion", **databases)
    assert result.exit_code == 0, result.output
    assert "people a, b" in squeezed(result)
    assert f"{2 * len(runs)} labels of {len(runs)} runs" in squeezed(result)
