"""Sockets that listen before the process that answers on them is started: nobody can take their ports meanwhile."""

import socket

import click

from trajectory_pipeline.errors import PipelineError

HOST = "127.0.0.1"
PORT = click.IntRange(0, 65535)
"""The type of an option ``--port``; 0 is any free one."""
_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on this port, with 0 on any free one.

    Raises:
        PipelineError: the address cannot be listened on.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise PipelineError(
            f"{host}:{port} cannot be listened on: {error}. Stop what listens there, or give another port by --port (0:"
            " any free one)."
        ) from None


def listen_nearby(port: int) -> socket.socket:
    """Return a socket that listens on this port of this machine alone; where it is in use, on any free one."""
    try:
        return listen(HOST, port)
    except PipelineError:
        return listen(HOST, 0)


def port_of(listening: socket.socket) -> int:
    """Return the port that a socket listens on."""
    return int(listening.getsockname()[1])
