"""Dagster's webserver with a guard against web pages; run as a program, with Dagster's own options.

Before these, ``--fd N`` names a listening socket that it inherits, in place of one that it would open by itself.
"""

import socket
import sys
from typing import Any

import uvicorn
from dagster_webserver import app
from dagster_webserver.cli import main
from dagster_webserver.webserver import DagsterWebserver
from starlette.middleware import Middleware

from trajectory_pipeline.runtime.browser_guard import BrowserGuard


class GuardedWebserver(DagsterWebserver[Any, Any]):
    """Dagster's webserver behind the guard."""

    def build_middleware(self) -> list[Middleware]:
        """Return Dagster's middleware, with the guard first."""
        return [Middleware(BrowserGuard), *super().build_middleware()]


def _answer_on(listening: socket.socket) -> None:
    """Have Dagster's webserver answer on a socket that listens already."""

    def run(application: Any, *, log_level: str, **_: Any) -> None:
        uvicorn.Server(uvicorn.Config(application, log_level=log_level)).run([listening])

    uvicorn.run = run  # type: ignore[assignment]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fd"]:
        _answer_on(socket.socket(fileno=int(sys.argv[2])))
        del sys.argv[1:3]
    app.DagsterWebserver = GuardedWebserver  # type: ignore[attr-defined]
    main()  # type: ignore[no-untyped-call]
