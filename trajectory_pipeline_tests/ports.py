"""Ports for servers that tests start."""

from trajectory_pipeline.cli.listening import HOST, listen, port_of


def free_port() -> int:
    """Return a port that is free now."""
    with listen(HOST, 0) as listening:
        return port_of(listening)
