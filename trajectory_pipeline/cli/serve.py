"""The command ``serve``: the service over HTTP."""

import contextlib
import ipaddress
import logging
import os
import shlex
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err
from trajectory_pipeline.cli.listening import HOST, PORT, listen, port_of
from trajectory_pipeline.cli.subprocesses import SupervisedProcess
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.pipeline.configured_models import build_embedder
from trajectory_pipeline.runtime.memory import limit_arenas
from trajectory_pipeline.storage.postgres.service_tokens import has_tokens

SERVICE_PORT = 8321
_START_SECONDS = 60
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
IDLE_CONNECTIONS = 40
"""As many as threads of the service can wait for the database at once."""


@click.command("serve")
@click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
@click.option("--port", default=SERVICE_PORT, show_default=True, type=PORT, help="Port to listen on. 0: any free one.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Processes that answer, at most as many as there are cores.",
)
@click.option("--mcp-stdio", is_flag=True, help="Speak MCP over stdin and stdout instead, for one local agent.")
@click.option("--fd", type=int, hidden=True, help="A socket of this process that listens already; the demonstration's.")
def command(host: str, port: int, workers: int, fd: int | None, *, mcp_stdio: bool) -> None:
    """Serve trajectories: pages at /, REST below /v1 (described at /docs), MCP at /mcp, metrics and health.

    On 127.0.0.1 the service can be read without a token as long as there is none. On any other address it needs one.
    Over stdin and stdout it needs none: whoever starts it can read the database.
    """
    with contextlib.ExitStack() as stack:
        if workers > 1 and not mcp_stdio:
            # Before the modules of metrics are imported.
            os.environ[_METRICS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="trajectory-metrics-"))
        _serve(host, port, workers, fd, mcp_stdio=mcp_stdio)


def _serve(host: str, port: int, workers: int, fd: int | None, *, mcp_stdio: bool) -> None:
    try:
        import uvicorn

        from trajectory_pipeline.serve.app import create_app
        from trajectory_pipeline.serve.http_protocol import server_config
        from trajectory_pipeline.serve.mcp_tools import create_mcp_server
        from trajectory_pipeline.serve.metrics import forget_process
        from trajectory_pipeline.serve.problems import LOG
        from trajectory_pipeline.serve.service import make_service
        from trajectory_pipeline.serve.workers import Workers
    except ModuleNotFoundError as error:
        raise PipelineError(f"The service needs {error.name}: pip install 'trajectory-pipeline[serve]'.") from error

    limit_arenas()
    loopback = _is_loopback(host)
    opened = open_sinks()
    if not mcp_stdio and not loopback and not has_tokens(opened.storage.postgres):
        raise PipelineError(
            f"{host} can be reached from other machines, and there is no token yet: make one with"
            " `trajectory-pipeline tokens create`, or serve on 127.0.0.1."
        )
    settings = opened.settings
    embedder, reason = build_embedder(settings.embedding, settings.judge, settings.privacy, settings.budget)
    if embedder is not None and settings.embedding.is_local:
        from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama

        # Now, so that all workers share it.
        load_wordllama()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    LOG.setLevel(logging.INFO)

    with opened.storage.postgres.pooled(IDLE_CONNECTIONS) as postgres:
        service = make_service(
            settings,
            replace(opened.storage, postgres=postgres),
            loopback=loopback,
            embedder=embedder,
            no_embedder=reason,
        )
        if mcp_stdio:
            create_mcp_server(service).run("stdio")
            return
        app = create_app(service)
        listening = listen(host, port) if fd is None else socket.socket(fileno=fd)
        # With port 0, it is known only now.
        port = port_of(listening)
        err.print(
            f"Serving on http://{host}:{port} (Ctrl-C stops it): pages at /, MCP at /mcp, REST described at /docs"
        )
        config = server_config(app, host, port)
        if workers == 1:
            uvicorn.Server(config).run([listening])
            return
        # Two processes must not speak over one connection.
        postgres.close_idle()
        Workers(workers, lambda: uvicorn.Server(config).run([listening]), forget_process).run()


def start_service(environment: Mapping[str, str], listening: socket.socket, log: Path) -> SupervisedProcess:
    """Start the service in a process of its own, hand it the socket to answer on, and wait until it does.

    Raises:
        PipelineError: it ended, or did not answer within a minute; the text names the log.
    """
    port, served = port_of(listening), ["trajectory_pipeline.cli.main", "serve", "--fd", str(listening.fileno())]
    with listening:
        command = [sys.executable, "-W", "ignore", "-m", *served]
        process = SupervisedProcess(command, environment, Path.cwd(), log, listening)
    until = time.monotonic() + _START_SECONDS
    while process.exit_code is None and time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return process
        time.sleep(0.3)
    process.stop()
    raise PipelineError(f"The service did not start; see {log}.")


def commands_to_try(address: str) -> dict[str, str]:
    """Return commands for a shell, by how they ask the service; the last one is an address for a browser."""
    return {
        "REST": f"curl '{address}/v1/search?q=refund+refused&k=3'",
        "MCP": f"{shlex.quote(_shown(Path(sys.executable)))} -m trajectory_pipeline.serve.mcp_call {address}/mcp"
        """ contrast_runs '{"query": "refund refused", "limit": 2}'""",
        "Browser": f"{address}/?q=refund+refused",
    }


def _shown(path: Path) -> str:
    """Return a path as short as it can be typed in the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
