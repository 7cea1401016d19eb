"""The embedded server and the system's users.

Postgres refuses to run as root, so root runs it as another user, who may be unable to enter the folder; no mode of a
folder that is not ours is changed for it. A folder of another user is refused with a sentence. Some of these tests need
root; what concerns ordinary users is tested in a process that gives up root's rights.
"""

import contextlib
import os
import pwd
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import psycopg
import pytest

from trajectory_pipeline.cli.dagster_processes import dagster_home
from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import placement
from trajectory_pipeline.demo.embedded_postgres.account import account_for
from trajectory_pipeline.errors import EmbeddedPostgresError, SettingsError
from trajectory_pipeline_tests.demo.embedded_postgres.processes import (
    PYTHON_PATH,
    SETTINGS,
    Owner,
    location,
    nothing_is_left,
    postmaster_pid,
    rows,
    within,
    write_a_row,
)

pytestmark = [pytest.mark.process, pytest.mark.heavy]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root does; the suite is also run as root")


@pytest.fixture
def bases(reachable_base, monkeypatch, request):
    """Fallback places of the test's own instead of those under /var."""
    own = tuple(reachable_base / f"{request.node.name[:40]}-{number}" for number in (1, 2))
    monkeypatch.setattr(placement, "_FALLBACK_BASES", own)
    return own


@pytest.fixture
def closed_folder(tmp_path, bases):
    """A folder whose parent only its owner can enter, as a clone in root's home."""
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o700)
    folder = parent / "postgres"
    yield folder
    embedded_postgres.remove(folder)
    assert not folder.exists()


@pytest.fixture
def ordinary_user():
    """The uid and gid of an ordinary user who can run this Python and read this tree: without root, the present one."""
    if os.geteuid() != 0:
        return {"python": sys.executable, "user": os.geteuid()}
    entry = pwd.getpwnam("daemon")
    as_that_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # The Python of the virtual environment may be a link into a closed home; the system's own reads its packages too.
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import trajectory_pipeline.demo.embedded_postgres.server, psycopg"]
            if subprocess.run(command, env=PYTHON_PATH, cwd="/", capture_output=True, **as_that_user).returncode == 0:
                return {"python": python, **as_that_user}
    pytest.skip("the tree, or every Python of this version, lies where no other user can read it")


@needs_root
def test_root_runs_the_server_as_a_user_that_owns_only_the_data(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert psutil.Process(postmaster_pid(folder)).username() == "nobody"
        assert location(folder) == folder
        write_a_row(server)
    assert (folder / "cluster").stat().st_uid == 0
    assert (folder / "cluster" / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@needs_root
def test_closed_folder_stores_data_elsewhere_and_changes_no_mode(closed_folder, bases):
    with embedded_postgres.start(closed_folder, settings=SETTINGS) as server:
        write_a_row(server)
        place = location(closed_folder)
        assert place.parent == bases[0]
        assert (closed_folder / placement.NOTE).read_text().startswith(f"{place}\n")
        assert server.log.parent == closed_folder
        assert server.log.stat().st_size > 0
    with embedded_postgres.start(closed_folder, settings=SETTINGS) as server:
        assert rows(server) == [("stored",)]
    assert stat.S_IMODE(closed_folder.parent.stat().st_mode) == 0o700
    embedded_postgres.remove(closed_folder)
    assert not bases[0].exists()


@needs_root
def test_unreachable_programs_are_copied_for_each_version(closed_folder, bases, tmp_path, monkeypatch):
    carried = placement.installed_binaries()
    closed = tmp_path / "closed-site-packages"
    closed.mkdir(mode=0o700)
    for part in carried._parts():
        (closed / part).parent.mkdir(exist_ok=True)
        (closed / part).symlink_to(carried.root / part)
    for version in ("0.6.0", "0.6.1"):
        there = type(carried)(closed, version)
        monkeypatch.setattr(placement, "installed_binaries", lambda there=there: there)
        with embedded_postgres.start(closed_folder, settings=SETTINGS):
            place = location(closed_folder)
            assert [path.name for path in place.glob("binaries-*")] == [f"binaries-{version}"]
            assert str(place) in psutil.Process(postmaster_pid(closed_folder)).exe()


@needs_root
def test_fallback_folder_of_another_user_is_not_used(closed_folder, bases):
    bases[0].mkdir()
    os.chown(bases[0], pwd.getpwnam("daemon").pw_uid, -1)
    bases[1].symlink_to("/tmp")
    with pytest.raises(EmbeddedPostgresError, match="not a folder that only root can write") as refused:
        embedded_postgres.start(closed_folder, settings=SETTINGS)
    assert "run as an ordinary user" in str(refused.value)
    bases[1].unlink()
    place, _ = placement.choose(closed_folder, account_for(None))
    assert place.parent == bases[1]
    bases[0].rmdir()


@needs_root
def test_moved_folder_with_data_elsewhere_is_refused(closed_folder, bases):
    closed_folder.mkdir()
    placement.write_note(closed_folder, bases[0] / "of-its-former-name")
    with pytest.raises(EmbeddedPostgresError, match="give the folder its former name"):
        embedded_postgres.start(closed_folder, settings=SETTINGS)
    assert location(closed_folder) == closed_folder


@needs_root
def test_folder_of_root_is_refused_to_an_ordinary_user(folder, ordinary_user):
    with Owner(folder, stderr=subprocess.PIPE, **ordinary_user) as owner:
        error = owner.process.communicate(timeout=20)[1].splitlines()[-1]
    assert "cannot be used by the user daemon" in error
    assert "belongs to the user root" in error
    assert "choose another folder" in error


@needs_root
def test_ordinary_user_shares_a_server_that_root_refuses(new_folder, ordinary_user):
    os.chown(new_folder.parent, ordinary_user["user"], -1)
    with Owner(new_folder, **ordinary_user) as one, Owner(new_folder, **ordinary_user) as two:
        heard = one.hears()
        assert two.hears() == heard
        assert psutil.Process(postmaster_pid(new_folder)).username() == "daemon"
        two.release()
        url = f"postgresql://postgres:{heard['password']}@127.0.0.1:{heard['port']}/postgres"
        psycopg.connect(url).close()
    assert within(5, lambda: nothing_is_left(new_folder))
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to the user daemon.*Run as the folder's owner"):
        embedded_postgres.start(new_folder, settings=SETTINGS)
    with Owner(new_folder, **ordinary_user) as owner:
        assert owner.hears() == heard


@needs_root
@pytest.mark.parametrize("what", ["folder", "parent", "link", "open folder", "open parent", "group"])
def test_folder_that_others_can_change_is_refused_to_root(what, reachable_base):
    parent = Path(tempfile.mkdtemp(dir=reachable_base))
    parent.chmod(0o755)
    folder, elsewhere = parent / "postgres", parent / "elsewhere"
    daemon = pwd.getpwnam("daemon")
    if what == "link":
        elsewhere.mkdir()
        folder.symlink_to(elsewhere)
        os.chown(folder, daemon.pw_uid, -1, follow_symlinks=False)
    else:
        folder.mkdir()
        changed = parent if "parent" in what else folder
        if "open" in what:
            changed.chmod(0o777)
        elif what == "group":
            os.chown(changed, -1, daemon.pw_gid)
            changed.chmod(0o775)
        else:
            os.chown(changed, daemon.pw_uid, -1)
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to the user daemon|can be written by other users"):
        embedded_postgres.start(folder, settings=SETTINGS)
    with pytest.raises(SettingsError, match=r"belongs to the user daemon|can be written by other users"):
        dagster_home(folder)
    assert not list((elsewhere if what == "link" else folder).iterdir())


@pytest.mark.parametrize("name", ["start.lock", "in-use.lock", "server.lock", "watchdog.lock", "server.log", "port"])
def test_link_in_the_folder_is_not_followed(name, reachable_base):
    """A link that somebody left before the folder became this user's."""
    parent = Path(tempfile.mkdtemp(dir=reachable_base))
    parent.chmod(0o755)
    folder, victim = parent / "postgres", parent / "victim"
    folder.mkdir()
    victim.write_text("mine")
    for target, kind in ((victim, "is a link"), (parent / "absent", "is a link")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        with pytest.raises(EmbeddedPostgresError, match=kind):
            embedded_postgres.start(folder, settings=SETTINGS)
        assert victim.read_text() == "mine"
        assert not (parent / "absent").exists()
    (folder / name).unlink()
    embedded_postgres.remove(folder)


@needs_root
def test_data_owned_by_root_is_refused_with_advice(folder):
    data = folder / "cluster" / "data"
    former = data.stat()
    os.chown(data, 0, 0)
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to root.*chown -R nobody"):
        embedded_postgres.start(folder)
    os.chown(data, former.st_uid, former.st_gid)


@pytest.mark.parametrize("name", ["postgres", "."])
def test_folder_that_cannot_be_written_is_refused(name, reachable_base, ordinary_user):
    closed = Path(tempfile.mkdtemp(dir=reachable_base))
    closed.chmod(0o500)
    os.chown(closed, ordinary_user["user"], -1)
    with Owner(closed / name, stderr=subprocess.PIPE, **ordinary_user) as owner:
        error = owner.process.communicate(timeout=20)[1].splitlines()[-1]
    assert re.search(r"cannot be used by the user .*choose another folder", error)
    assert not list(closed.iterdir())


@needs_root
@pytest.mark.parametrize("what", ["data", "folder", "open folder"])
def test_what_belongs_to_another_user_is_refused_to_an_ordinary_user(what, reachable_base, ordinary_user):
    folder = Path(tempfile.mkdtemp(dir=reachable_base))
    folder.chmod(0o777 if what == "open folder" else 0o755)
    data = folder / "cluster" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    for path in (folder, data.parent, data):
        os.chown(path, ordinary_user["user"], -1)
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(data if what == "data" else folder, nobody, -1)
    with Owner(folder, stderr=subprocess.PIPE, **ordinary_user) as owner:
        error = owner.process.communicate(timeout=20)[1].splitlines()[-1]
    expected = "can be written by other users" if what == "open folder" else "belongs to the user nobody"
    assert re.search(rf"EmbeddedPostgresError: .* {expected}", error), error
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]
    assert what == "data" or [path.name for path in folder.iterdir()] == ["cluster"]


def test_ordinary_user_runs_the_server_as_itself(new_folder, ordinary_user):
    os.chown(new_folder.parent, ordinary_user["user"], -1)
    with Owner(new_folder, **ordinary_user) as owner:
        owner.hears()
        assert psutil.Process(postmaster_pid(new_folder)).uids().real == ordinary_user["user"]
        assert location(new_folder) == new_folder
    assert within(5, lambda: nothing_is_left(new_folder))
