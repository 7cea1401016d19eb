"""URLs as libpq reads them, and how errors show them."""

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from trajectory_pipeline.letta.connection import SnapshotConnection, source_error
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline_tests.letta import snapshots

OURS = {"application_name", "connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:pw@host/letta",
        "postgres://me@host:6543/letta?sslmode=verify-full&sslrootcert=/etc/ca%20certs/root.crt",
        "postgresql://me:p%40ss%20word%25%2F%3A@[::1]:5432/letta",
        "postgresql:///letta?host=/var/run/postgresql&port=5433",
        "postgresql://me@%2Fvar%2Frun%2Fpostgresql/letta",
        "postgresql://me@one:5432,two:5433/letta?target_session_attrs=standby",
        "postgresql://me@host/letta?options=-c%20search_path%3Dletta%2Cpublic",
        "postgresql://me@host/letta?application_name=mine&connect_timeout=1",
        "postgresql://me@host/letta?application_name=a%2Bb+c",
        "postgresql://me@host/letta?",
        "postgresql://me@host/letta?sslmode=require&",
    ],
)
def test_libpq_url_keeps_its_parameters_and_adds_defaults(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Stop(Exception):
        pass

    def remember(target: str) -> None:
        asked.append(target)
        raise Stop

    monkeypatch.setattr("trajectory_pipeline.letta.connection.open_connection", remember)
    with pytest.raises(Stop), SnapshotConnection(url).transaction(timeout_seconds=1):
        pass
    given, used = conninfo_to_dict(url.rstrip("?&")), conninfo_to_dict(asked[0])
    assert used | given == used
    assert used.keys() - given.keys() == OURS - given.keys()


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            'IO: [libpq] Failed to connect: connection to server at "localhost" (::1), port 5432 failed: Connection'
            ' refused\n\tIs the server running?\nconnection to server at "localhost" (127.0.0.1), port 5432 failed:'
            ' FATAL:  password authentication failed for user "me"\n',
            'password authentication failed for user "me" — the password is wrong',
        ),
        (
            "IO: [libpq] Failed to connect: FATAL:  sorry, too many clients already",
            "already — the server has no connection",
        ),
        ("IO: FATAL:  the database system is starting up\n", "starting up — the server is starting or stopping"),
        ('IO: FATAL:  no pg_hba.conf entry for host "10.0.0.1", no encryption', "— this user may not log in"),
        ("IO: server does not support SSL, but SSL was required", "— check sslmode"),
        ("IO: SSL SYSCALL error: EOF detected", "— the connection was lost"),
        ("IO: SSL error: certificate verify failed", "— check sslmode"),
        ("", "no reason was given — check LETTA_PG_URI and the server's log"),
        (
            "IO: FEHLER:  Tabelle fehlt\nZEILE 1: SELECT 1\nQuery was: SELECT 1. SQLSTATE: 42P01",
            "FEHLER:  Tabelle fehlt —",
        ),
        ("NOT_FOUND: ERROR:  x Query was: SELECT 'geheim'", "letta: x —"),
    ],
)
def test_driver_error_is_reduced_to_the_servers_message(message: str, expected: str) -> None:
    text = str(source_error("postgresql://me:geheim@host/letta", "Reading", RuntimeError(message)))
    assert expected in text
    assert "geheim" not in text
    assert text.startswith("Reading failed at the source host:5432/letta: ")


def test_connect_with_url_parameters_succeeds(untouched_sample: str) -> None:
    for query in ("sslmode=prefer", "connect_timeout=3&application_name=a%20b", "options=-c%20search_path%3Dpublic"):
        assert len(snapshots.all_runs(snapshots.changed(untouched_sample, query=query))) == 317


def test_connect_as_letta_and_libpq_do_reads_the_source(
    letta_database: str, trajectory_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver in the scheme, Letta's TLS parameter, several hosts of which the first is down, and a service."""
    source, sink = conninfo_to_dict(letta_database), conninfo_to_dict(trajectory_database)
    services = tmp_path / "services.conf"
    services.write_text(
        "\n".join(
            f"[{name}]\n" + "\n".join(f"{key}={value}" for key, value in given.items())
            for name, given in (("source", source), ("sink", sink))
        )
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))

    def forms(name: str, given: dict[str, object]) -> list[str]:
        login, place = f"{given['user']}:{given['password']}", f"{given['host']}:{given['port']}"
        return [
            f"postgresql+asyncpg://{login}@{place}/{given['dbname']}?ssl=prefer&statement_cache_size=0",
            f"postgresql+pg8000://{login}@127.0.0.1:1,{place}/{given['dbname']}",
            f"postgresql+asyncpg://{login}@/{given['dbname']}?host=127.0.0.1:1&host={place}",
            f"postgresql:///?service={name}",
        ]

    for url in forms("source", dict(source)):
        assert len(snapshots.all_runs(url)) == 317
    for url in forms("sink", dict(sink)):
        assert TrajectoryDatabase(url).ledger("trajectories") == {}
