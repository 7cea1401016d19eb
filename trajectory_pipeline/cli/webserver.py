"""Dagster's webserver with a guard against web pages; run as a program, with Dagster's own options."""

from typing import Any

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


if __name__ == "__main__":
    app.DagsterWebserver = GuardedWebserver  # type: ignore[attr-defined]
    main()  # type: ignore[no-untyped-call]
