"""TLS to both databases, with certificates of the test's own: what ``sslmode`` asks for is what happens, or a sentence.

Before a server of Debian's Postgres that refuses plain connections, and by way of PgBouncer, which does too. The
embedded server is built without TLS. Where a package is not installed, its tests are not defined.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trajectory_pipeline.errors import SinkError, SourceError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.urls import normalize_postgres_url, sqlalchemy_url
from trajectory_pipeline_tests.letta_sample import load_sample, sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.pipeline.test_poolers import PGBOUNCER, running_pgbouncer
from trajectory_pipeline_tests.ports import free_port
from trajectory_pipeline_tests.server_databases import create_database, drop_database

pytestmark = [pytest.mark.process, pytest.mark.heavy]
HOUR = min(hour for hour, runs in sample_partitions().items() if runs >= 3)
POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
SERVERS = [name for name, there in (("postgres", POSTGRES_BIN), ("pgbouncer", PGBOUNCER)) if there is not None]


@dataclass(frozen=True)
class Certificates:
    """Files of PEM: a server's certificate for ``localhost`` and no other name, its key, and two authorities."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def other_authority(self) -> Path:
        return self.folder / "other.pem"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.now(UTC)
    is_authority = subject == issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if not is_authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    # In a folder that the servers' own users can enter.
    folder = Path(tempfile.mkdtemp(prefix="certificates-", dir="/tmp"))
    folder.chmod(0o755)
    made = Certificates(folder)
    pem = serialization.Encoding.PEM
    authority, other, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    made.authority.write_bytes(certificate("An authority", authority, "An authority", authority).public_bytes(pem))
    made.other_authority.write_bytes(certificate("Another", other, "Another", other).public_bytes(pem))
    made.server.write_bytes(certificate("localhost", server, "An authority", authority).public_bytes(pem))
    made.key.write_bytes(server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    yield made
    shutil.rmtree(folder)


def moved(url: str, port: int) -> str:
    """Return the URL of the same database at another port of ``localhost``."""
    login = urlsplit(url).netloc.rpartition("@")[0]
    return urlunsplit(urlsplit(url)._replace(netloc=f"{login}@localhost:{port}"))


@contextmanager
def postgres_with_tls(certificates: Certificates) -> Iterator[str]:
    """The URL of a server of Debian's Postgres, without a database's name."""
    assert POSTGRES_BIN is not None
    user = "postgres" if os.geteuid() == 0 else None
    folder, port = Path(tempfile.mkdtemp(prefix="tls-", dir="/tmp")), free_port()
    if user:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(POSTGRES_BIN / program), "-D", str(data), *arguments]
        result = subprocess.run(command, user=user, capture_output=True, text=True, check=False, cwd="/")
        assert result.returncode == 0, result.stdout + result.stderr

    run("initdb", "-U", "letta", "-A", "trust", "-E", "UTF8", "--no-sync")
    for source, target in ((certificates.server, "server.crt"), (certificates.key, "server.key")):
        shutil.copy(source, data / target)
        (data / target).chmod(0o600)
        if user:
            shutil.chown(data / target, user)
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust\nhostssl all all ::1/128 trust\n")
    options = f"-c port={port} -c listen_addresses=localhost -c unix_socket_directories='' -c ssl=on -c fsync=off"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://letta@localhost:{port}"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@contextmanager
def pgbouncer_with_tls(url: str, folder: Path, certificates: Certificates) -> Iterator[int]:
    """The port of a pooler that wants TLS of its clients."""
    parts, port = urlsplit(url), free_port()
    config = certificates.folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={parts.hostname} port={parts.port} user={parts.username} password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        f"default_pool_size = 3\nunix_socket_dir =\nclient_tls_sslmode = require\n"
        f"client_tls_cert_file = {certificates.server}\nclient_tls_key_file = {certificates.key}\n"
    )
    if os.geteuid() == 0:
        shutil.chown(certificates.key, "nobody")
    with running_pgbouncer(config, f"{moved(url, port)}?sslmode=require"):
        yield port


@dataclass(frozen=True)
class Databases:
    """URLs of Letta's and of the trajectory database, where only TLS is spoken."""

    letta: str
    trajectory: str

    def with_parameters(self, **parameters: object) -> "Databases":
        text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
        return Databases(f"{self.letta}?{text}", f"{self.trajectory}?{text}")

    @property
    def by_address(self) -> "Databases":
        """The same, under a name that is not in the certificate."""
        return Databases(*(url.replace("@localhost:", "@127.0.0.1:") for url in (self.letta, self.trajectory)))


@pytest.fixture(scope="module", params=SERVERS)
def databases(
    request: pytest.FixtureRequest, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Databases]:
    if request.param == "postgres":
        with postgres_with_tls(certificates) as server:
            with psycopg.connect(f"{server}/postgres?sslmode=require", autocommit=True) as connection:
                connection.execute("CREATE DATABASE source TEMPLATE template0 ENCODING 'UTF8'")
                connection.execute("CREATE DATABASE sink TEMPLATE template0 ENCODING 'UTF8'")
            load_sample(f"{server}/source?sslmode=require")
            yield Databases(f"{server}/source", f"{server}/sink")
    else:
        server = request.getfixturevalue("_templates")
        names = {f"tls_{os.getpid()}_{each}": template for each, template in (("a", "template_letta"), ("b", None))}
        for each, template in names.items():
            create_database(server, each, template)
        letta, trajectory = map(server.url, names)
        with pgbouncer_with_tls(letta, tmp_path_factory.mktemp("pooler"), certificates) as port:
            yield Databases(moved(letta, port), moved(trajectory, port))
        for each in names:
            drop_database(server, each)


def refusals(databases: Databases) -> tuple[str, str]:
    """Return why the source, and why the sink, cannot be used."""
    with pytest.raises(SinkError) as sink:
        migrate(databases.trajectory)
    with pytest.raises(SourceError) as source, LettaSource(databases.letta).snapshot():
        pass
    return str(source.value), str(sink.value)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_all_stages_work_over_tls(databases: Databases, certificates: Certificates, mode: str, tmp_path: Path) -> None:
    parameters = {"sslmode": mode, **({"sslrootcert": certificates.authority} if mode != "require" else {})}
    secure = databases.with_parameters(**parameters)
    migrate(secure.trajectory)
    pipeline = Pipeline(secure.letta, secure.trajectory, tmp_path / "parquet")
    pipeline.capture(HOUR)
    assert reconcile_partition(HOUR, pipeline.storage).differences == ()
    # Dagster's storage has a driver of its own.
    engine = sa.create_engine(sqlalchemy_url(normalize_postgres_url(secure.trajectory), "psycopg2"))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM trajectory.trajectories")).scalar() == len(
            pipeline.run_ids(HOUR)
        )
    engine.dispose()


def test_plain_connection_is_refused_with_advice(databases: Databases) -> None:
    for text in refusals(databases.with_parameters(sslmode="disable")):
        assert "sslmode=require" in text


@pytest.mark.parametrize("case", ["another authority", "another name", "no authority"])
def test_server_that_cannot_be_verified_is_refused_with_advice(
    databases: Databases, certificates: Certificates, case: str
) -> None:
    root = {
        "another authority": certificates.other_authority,
        "another name": certificates.authority,
        "no authority": certificates.folder / "nothing.pem",
    }[case]
    place = databases.by_address if case == "another name" else databases
    for text in refusals(place.with_parameters(sslmode="verify-full", sslrootcert=root)):
        assert "certificate" in text
        assert "check sslmode and sslrootcert in " in text
