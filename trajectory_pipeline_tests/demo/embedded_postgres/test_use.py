"""Using an embedded server.

One folder is one server, whoever asks for it and how often. It lets in nobody without its password, keeps its
address from start to start, ignores the user's settings for other servers, and is gone when its last user is.
"""

import socket
import stat
from pathlib import Path

import psutil
import psycopg
import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import launch
from trajectory_pipeline.errors import EmbeddedPostgresError
from trajectory_pipeline_tests.demo.embedded_postgres.processes import (
    SETTINGS,
    Owner,
    nothing_is_left,
    postmaster_pid,
    rows,
    within,
    write_a_row,
)
from trajectory_pipeline_tests.server_databases import drop_database

pytestmark = pytest.mark.process


def test_start_twice_creates_once_and_keeps_data_and_address(new_folder):
    messages = []
    with embedded_postgres.start(new_folder, report=messages.append) as first:
        write_a_row(first)
    assert messages == ["Creating the embedded Postgres (first time only) ..."]
    with embedded_postgres.start(new_folder, report=messages.append) as second:
        assert second.url("postgres") == first.url("postgres")
        assert rows(second) == [("stored",)]
    assert len(messages) == 1


def test_start_by_three_processes_shares_one_server(new_folder):
    with Owner(new_folder) as one, Owner(new_folder) as two, Owner(new_folder) as three:
        heard = [owner.hears() for owner in (one, two, three)]
        assert heard[0] == heard[1] == heard[2]


def test_server_runs_until_both_users_of_a_process_release_it(folder):
    first = embedded_postgres.start(folder, settings=SETTINGS)
    second = embedded_postgres.start(folder, settings=SETTINGS)
    assert first == second
    first.release()
    first.release()
    assert embedded_postgres.running(folder) == second
    second.release()
    assert within(1, lambda: nothing_is_left(folder))


def test_server_survives_one_of_two_killed_processes(folder):
    with Owner(folder) as one, Owner(folder) as two:
        one.hears()
        two.hears()
        one.process.kill()
        one.process.wait()
        assert not within(0.5, lambda: embedded_postgres.running(folder) is None)


def test_running_neither_starts_nor_holds_the_server(folder):
    assert embedded_postgres.running(folder / "absent") is None
    assert not (folder / "absent").exists()
    assert embedded_postgres.running(folder) is None
    server = embedded_postgres.start(folder, settings=SETTINGS)
    seen = embedded_postgres.running(folder)
    assert seen == server
    seen.release()
    assert rows_of(seen.url("postgres"), "SELECT 1") == [(1,)]
    server.release()
    assert embedded_postgres.running(folder) is None


def test_wrong_password_is_refused(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{server.port}/postgres")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", dbname="postgres", password="")


def test_password_is_private_and_not_in_repr(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert server.password not in repr(server)
        assert stat.S_IMODE((folder / "cluster" / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE((folder / "cluster" / "data").stat().st_mode) == 0o700


def test_server_listens_on_loopback_without_a_socket_file(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert rows_of(server.url("postgres"), "SHOW listen_addresses") == [("127.0.0.1",)]
        assert rows_of(server.url("postgres"), "SHOW unix_socket_directories") == [("",)]


def test_server_settings_have_safe_defaults_and_overrides(folder):
    with embedded_postgres.start(folder) as server:
        for name, value in {
            "fsync": "on",
            "max_connections": "200",
            "TimeZone": "UTC",
            "server_encoding": "UTF8",
            "password_encryption": "scram-sha-256",
        }.items():
            assert rows_of(server.url("postgres"), f"SHOW {name}") == [(value,)]
    with embedded_postgres.start(folder, settings={"max_connections": "17"}) as server:
        assert rows_of(server.url("postgres"), "SHOW max_connections") == [("17",)]


def test_start_with_previous_port_in_use_takes_another(folder):
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        former = server.port
    with socket.create_server(("127.0.0.1", former)), embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert server.port != former


def test_start_with_port_lost_before_launch_takes_another(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        really = launch._free_port
        answers = iter([taken, taken])
        monkeypatch.setattr(launch, "_free_port", lambda port: next(answers, None) or really(port))
        with embedded_postgres.start(folder, settings=SETTINGS) as server:
            assert server.port != taken


def test_users_pg_variables_reach_neither_server_nor_client(folder):
    hostile = {
        "PGDATA": "/nonexistent",
        "PGHOST": "192.0.2.1",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGUSER": "somebody",
        "PGPASSWORD": "else",
        "PGDATABASE": "theirs",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c default_transaction_read_only=on",
    }
    with Owner(folder, env=hostile) as owner:
        heard = owner.hears()
        with psycopg.connect(
            host="127.0.0.1", port=heard["port"], user="postgres", password=heard["password"], dbname="postgres"
        ) as connection:
            assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
        for pid in (postmaster_pid(folder), *watchdog_pids_of(folder)):
            assert not set(hostile) & set(psutil.Process(pid).environ())


def test_start_in_a_path_over_100_characters_works(folder):
    deep = folder.parent / ("long " * 15).strip() / ("longer " * 10).strip()
    deep.mkdir(parents=True)
    (folder / "cluster").rename(deep / "cluster")
    with embedded_postgres.start(deep, settings=SETTINGS) as server:
        assert rows_of(server.url("postgres"), "SELECT 1") == [(1,)]
    (deep / "cluster").rename(folder / "cluster")


def test_ensure_database_creates_it_once_whatever_its_name(folder):
    name = 'an "odd" näme/with?signs'
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        drop_database(server, name)
        server.ensure_database(name)
        with psycopg.connect(server.url(name)) as connection:
            connection.execute("CREATE TABLE numbers AS SELECT 1 AS number")
        server.ensure_database(name)
        assert rows_of(server.url(name), "TABLE numbers") == [(1,)]
        drop_database(server, name)


def test_ensure_database_error_names_database_and_log(folder):
    with (
        embedded_postgres.start(folder, settings=SETTINGS) as server,
        pytest.raises(EmbeddedPostgresError, match=r"(?s)could not create the database ''.*See its log: .*server\.log"),
    ):
        server.ensure_database("")


def test_start_renames_a_large_log(folder):
    (folder / "server.log").write_bytes(b"x" * 10_000_001)
    with embedded_postgres.start(folder, settings=SETTINGS) as server:
        assert server.log.stat().st_size < 100_000
        assert (folder / "server.log.1").stat().st_size > 10_000_000


def test_remove_refuses_a_used_folder_and_leaves_other_files(own_folder):
    (own_folder / "mine.txt").write_text("mine")
    with (
        embedded_postgres.start(own_folder, settings=SETTINGS),
        pytest.raises(EmbeddedPostgresError, match="in use and is not removed"),
    ):
        embedded_postgres.remove(own_folder)
    embedded_postgres.remove(own_folder)
    assert [path.name for path in own_folder.iterdir()] == ["mine.txt"]
    (own_folder / "mine.txt").unlink()
    own_folder.rmdir()


def test_remove_stops_a_server_without_user_and_watchdog(own_folder):
    with Owner(own_folder) as owner:
        owner.hears()
        for pid in watchdog_pids_of(own_folder):
            psutil.Process(pid).kill()
        pid = postmaster_pid(own_folder)
    assert psutil.pid_exists(pid)
    embedded_postgres.remove(own_folder)
    assert within(5, lambda: not psutil.pid_exists(pid))


def rows_of(url: str, query: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def watchdog_pids_of(folder: Path) -> list[int]:
    from trajectory_pipeline_tests.demo.embedded_postgres.processes import watchdog_pids

    found = watchdog_pids(folder)
    assert len(found) == 1
    return found
