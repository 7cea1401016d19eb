"""The report in a real browser: light, dark, on a phone, by keyboard, and for screen readers; without network."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.report.page import build_report
from trajectory_pipeline_tests.browser.conftest import screenshot
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

WINDOWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 1400}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 1400}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


@pytest.fixture(scope="session")
def report_file(story: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(build_report(story.database, Redactor(key=b"of these tests")).html)
    return path


@pytest.fixture(params=WINDOWS)
def page(request: pytest.FixtureRequest, browser: Browser, report_file: Path) -> Iterator[Page]:
    """The report in one window; a request to anything but the file fails the test."""
    context = browser.new_context(**WINDOWS[request.param])
    page = context.new_page()
    requested: list[str] = []

    def refuse(route: Route) -> None:
        requested.append(route.request.url)
        route.abort()

    page.route(re.compile("^(?!file:)"), refuse)
    page.goto(report_file.as_uri())
    screenshot(page, f"report-{request.param}")
    yield page
    context.close()
    assert requested == []


def test_report_fits_the_width(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_report_has_no_accessibility_violation(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in violations] == []


def test_report_text_contrasts_with_its_ground(page: Page) -> None:
    color, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    dark = "dark" in str(page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'"))
    brightness = [sum(map(int, re.findall(r"\d+", value)[:3])) for value in (color, ground)]
    assert (brightness[0] > brightness[1]) is dark


def test_report_draws_every_chart(page: Page) -> None:
    boxes = page.locator("figure svg").all()
    assert len(boxes) == 4
    for box in boxes:
        bounds = box.bounding_box()
        assert bounds is not None
        assert bounds["width"] > 200
        assert bounds["height"] > 60


def test_link_to_a_run_leads_to_its_turns_by_keyboard(page: Page) -> None:
    link = page.locator("ol.runs a").first
    target = str(link.get_attribute("href"))
    link.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith(target)
    article = page.locator(f"article[id='{target[1:]}']")
    assert article.is_visible()
    summary = article.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert article.locator("section.turn").first.is_visible()
    screenshot(page, "report-run")


def test_link_to_evidence_opens_the_cited_message(page: Page) -> None:
    for link in page.locator("blockquote a").all():
        target = str(link.get_attribute("href"))[1:]
        message = page.locator(f"[id='{target}']")
        if message.count():
            link.click()
            assert message.is_visible()
            return
    pytest.fail("no citation leads to a message")
