"""A real Chromium for the tests of pages: ``make browser``. Screenshots are left in ``data/screenshots``."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = Path(__file__).parents[2] / "data" / "screenshots"


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


def screenshot(page: Page, name: str) -> None:
    """Leave a picture of what the page shows."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
