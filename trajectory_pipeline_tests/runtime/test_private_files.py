"""Files with content: for this user alone whatever the umask, never through a link, removed when their process died."""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trajectory_pipeline.runtime import private_files

PROGRAM = """
import os, signal
from trajectory_pipeline.runtime.private_files import temp_file
with temp_file() as path:
    path.write_text("content of a run")
    print(path, flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _own_temp_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_have_their_mode_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    private_files.make_folder(tmp_path / "a" / "b")
    private_files.create_file(tmp_path / "a" / "b" / "file").close()
    assert [mode_of(tmp_path / name) for name in ("a", "a/b", "a/b/file")] == [0o700, 0o700, 0o600]
    with private_files.temp_file() as path:
        assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert not path.exists()


def test_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir(mode=0o750)
    private_files.make_folder(tmp_path / "given" / "made")
    assert mode_of(tmp_path / "given") == 0o750


@pytest.mark.parametrize("exists", [True, False])
def test_link_is_never_followed(tmp_path: Path, *, exists: bool) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    if exists:
        victim.write_text("mine")
    link.symlink_to(victim)
    for attempt in (
        lambda: private_files.create_file(link),
        lambda: private_files.open_log(link),
        lambda: private_files.write_text(link, "theirs"),
        lambda: private_files.read_text(link),
    ):
        with pytest.raises(OSError, match=r"File exists|symbolic links"):
            attempt()
    assert (victim.read_text() == "mine") if exists else not victim.exists()


def test_temp_folder_with_a_name_taken_by_others_is_refused(tmp_path: Path) -> None:
    folder = private_files.temp_folder()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        private_files.temp_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        private_files.temp_folder()


def test_temp_folder_of_another_user_or_a_file_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody else may open it."""
    folder = private_files.temp_folder()
    uid = os.geteuid()
    folder.rmdir()
    folder.touch(0o600)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        private_files.temp_folder()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        private_files.temp_folder()


@pytest.mark.process
def test_file_of_a_killed_process_is_removed_and_of_a_living_one_stays(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        left = Path(worker.stdout.readline().strip())
        with private_files.temp_file():
            assert left.read_text() == "content of a run"
        worker.stdin.write("\n")
        worker.stdin.flush()
        worker.wait(30)
    assert left.exists()
    with private_files.temp_file() as path:
        assert list(path.parent.iterdir()) == [path]


def test_file_taken_for_a_leftover_before_its_lock_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    flock = fcntl.flock

    def after_a_cleaner(file: object, flags: int) -> None:
        if not made:
            made.extend(private_files.temp_folder().iterdir())
            made[0].unlink()
        flock(file, flags)  # type: ignore[arg-type]  # the fake takes any

    monkeypatch.setattr(fcntl, "flock", after_a_cleaner)
    with private_files.temp_file() as path:
        assert path.exists()
        assert path != made[0]


def test_other_writer_names_who_could_change_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert private_files.other_writer(folder) is None
    folder.mkdir()
    folder.chmod(0o707)
    assert "data can be written by other users (its mode is 707)" in str(private_files.other_writer(folder))
    folder.chmod(0o1777)
    assert private_files.other_writer(folder) is not None
    # As /tmp: others may add to it, and cannot replace what is there.
    (folder / "own").mkdir(mode=0o700)
    assert private_files.other_writer(folder / "own") is None


FOLDER_PROGRAM = """
import pathlib, sys, time
from trajectory_pipeline.runtime.private_files import temp_folder_in
with temp_folder_in(pathlib.Path(sys.argv[1]), ".made.partial-") as path:
    (path / "texts").write_text("content of runs")
    print(path, flush=True)
    input()
"""


def test_folder_whose_process_was_killed_is_removed_by_the_next_and_a_live_one_is_not(tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", FOLDER_PROGRAM, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (alive, used) = start(), start()
    killed.kill()
    killed.communicate()
    (tmp_path / ".made.partial-of-another-machine").mkdir()
    assert left.is_dir()
    with private_files.temp_folder_in(tmp_path, ".made.partial-"):
        assert (left.exists(), used.is_dir()) == (False, True)
        assert (tmp_path / ".made.partial-of-another-machine").is_dir()
    alive.communicate("")
    assert not used.exists()


def test_folder_that_was_renamed_stays(tmp_path: Path) -> None:
    with private_files.temp_folder_in(tmp_path / "parent", ".made.partial-") as path:
        assert mode_of(path) == 0o700
        path.replace(tmp_path / "parent" / "made")
    assert [entry.name for entry in (tmp_path / "parent").iterdir()] == ["made"]


def test_folder_is_made_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with private_files.temp_folder_in(tmp_path, ".a-") as first, private_files.temp_folder_in(tmp_path, ".a-"):
        assert first.is_dir()
