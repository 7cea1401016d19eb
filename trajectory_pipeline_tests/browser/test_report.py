"""The demonstration's report in a real browser: light, dark, on a phone, by keyboard, for screen readers."""

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route

from trajectory_pipeline_tests.browser.conftest import Demonstration, screenshot

pytestmark = [pytest.mark.process, pytest.mark.timeout(1200)]

WINDOWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 1400}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 1400}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


@pytest.fixture(params=WINDOWS)
def page(request: pytest.FixtureRequest, browser: Browser, demonstration: Demonstration) -> Iterator[Page]:
    """The report in one window; a request to anything but the file fails the test."""
    context = browser.new_context(**WINDOWS[request.param])
    page = context.new_page()
    requested: list[str] = []

    def refuse(route: Route) -> None:
        requested.append(route.request.url)
        route.abort()

    page.route(re.compile("^(?!file:)"), refuse)
    page.goto(demonstration.report.as_uri())
    screenshot(page, f"report-{request.param}")
    yield page
    context.close()
    assert requested == []


def window_name(page: Page) -> str:
    """The name of the window in ``WINDOWS``."""
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    return "phone" if page.evaluate("window.innerWidth") < 600 else "dark" if dark else "light"


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
    dark = window_name(page) == "dark"
    brightness = [sum(map(int, re.findall(r"\d+", value)[:3])) for value in (color, ground)]
    assert (brightness[0] > brightness[1]) is dark


def test_report_draws_every_chart_with_labels_that_can_be_read(page: Page) -> None:
    boxes = page.locator("figure svg:visible").all()
    assert len(boxes) == 4
    for box in boxes:
        bounds = box.bounding_box()
        assert bounds is not None
        assert bounds["width"] > 200
        assert bounds["height"] > 60
        labels = [each.bounding_box() for each in box.locator("text").all()]
        assert min(label["height"] for label in labels if label and label["height"]) >= 9


def test_report_says_how_far_verdicts_can_be_trusted(page: Page) -> None:
    page.get_by_role("navigation").get_by_role("link", name="Can the verdicts be trusted?").click()
    for name in ("Gates", "Agreement with people", "Corrected rates"):
        assert page.get_by_role("region", name=name).get_by_role("row").count() > 1
    assert page.get_by_text("its agreement says nothing of a judge").is_visible()
    heading = page.get_by_role("heading", name="Can the verdicts be trusted?").bounding_box()
    assert heading is not None
    assert abs(heading["y"]) < 100
    screenshot(page, f"report-quality-{window_name(page)}")


def test_link_to_a_run_leads_to_its_turns_by_keyboard(page: Page) -> None:
    link = page.locator("ol.runs a").first
    target = str(link.get_attribute("href"))
    link.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/*{target}")
    article = page.locator(f"article[id='{target[1:]}']")
    assert article.is_visible()
    summary = article.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert article.locator("section.turn").first.is_visible()
    screenshot(page, f"report-run-{window_name(page)}")


def test_link_to_evidence_opens_the_cited_message(page: Page) -> None:
    for link in page.locator("blockquote a").all():
        target = str(link.get_attribute("href"))[1:]
        message = page.locator(f"[id='{target}']")
        if message.count():
            link.click()
            assert message.is_visible()
            return
    pytest.fail("no citation leads to a message")
