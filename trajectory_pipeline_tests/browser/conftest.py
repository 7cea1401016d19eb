"""A real Chromium and a demonstration for the tests of pages: ``make browser``. Pictures go to ``data/screenshots``."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.settings import setting_fields
from trajectory_pipeline_tests.serve.conftest import guarded, tenant_settings, tokens  # noqa: F401 - fixtures

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROJECT = Path(__file__).parents[2]
SCREENSHOTS = PROJECT / "data" / "screenshots"
STARTED = re.compile(r"Dagster UI +(http://127\.0\.0\.1:\d+)/")
START_SECONDS = 900
"""It takes two minutes on two idle cores."""


@dataclass(frozen=True)
class Demonstration:
    """A demonstration that is running: its address, the URL of its trajectory database, and the report's file."""

    address: str
    database_url: str
    report: Path


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser that is installed on this machine."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(f"no browser is installed: one of {', '.join(NAMES)} must be on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demonstration]:
    """The command ``demo`` with its webserver, daemon, run workers, Postgres and judge."""
    folder: Path = tmp_path_factory.mktemp("demonstration")
    ours = {*setting_fields(), "DAGSTER_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "trajectory_pipeline.cli.main", "demo", "--port", "0"],
            env={**environment, "TRAJECTORY_DATA_FOLDER": str(folder), "PYTHONPATH": str(PROJECT)},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        deadline = Timer(START_SECONDS, process.terminate)
        deadline.start()
        try:
            assert process.stdout is not None
            found = next(filter(None, map(STARTED.search, process.stdout)), None)
            deadline.cancel()
            output.seek(0)
            assert found is not None, f"the demonstration did not start:\n{output.read()[-3000:]}"
            server = embedded_postgres.running(folder / "postgres")
            assert server is not None
            report = folder / "parquet" / "trajectory_report" / "report.html"
            yield Demonstration(found[1], server.url("trajectory"), report)
        finally:
            deadline.cancel()
            process.send_signal(signal.SIGINT)
            assert process.wait(120) in (0, 130)
    embedded_postgres.remove(folder / "postgres")


def screenshot(page: Page, name: str) -> None:
    """Leave a picture of what the page shows, after its animations."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")
