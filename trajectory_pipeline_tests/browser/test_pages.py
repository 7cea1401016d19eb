"""The service's pages in a real browser, without JavaScript: search, a run with its evidence, and signing in."""

from collections.abc import Iterator

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page

from trajectory_pipeline.serve.pages import COOKIE
from trajectory_pipeline_tests.browser.conftest import screenshot
from trajectory_pipeline_tests.serve.tenancy import MINE, OTHER, Tokens

WINDOWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 1000}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 1000}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}


@pytest.fixture(params=WINDOWS)
def window(
    request: pytest.FixtureRequest,
    browser: Browser,
    guarded: httpx2.Client,
    tokens: Tokens,
) -> Iterator[tuple[str, BrowserContext]]:
    context = browser.new_context(**WINDOWS[request.param])
    sign_in(context, guarded, tokens)
    yield request.param, context
    context.close()


def sign_in(context: BrowserContext, client: httpx2.Client, tokens: Tokens) -> None:
    context.add_cookies([{"name": COOKIE, "value": tokens.by_name["all"], "url": str(client.base_url)}])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1200, "height": 1000})
    yield context.new_page()
    context.close()


def base_of(client: httpx2.Client) -> str:
    return str(client.base_url).rstrip("/")


def violations(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:200]) for each in found]


def test_pages_fit_and_have_no_accessibility_violation(
    window: tuple[str, BrowserContext],
    guarded: httpx2.Client,
    tokens: Tokens,
) -> None:
    name, context = window
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    found = guarded.get("/v1/search", params={"q": "refund refused"}, headers=tokens.header("all"))
    run_id = found.json()["items"][0]["run_id"]
    for title, path in {
        "newest": "/",
        "search": "/?q=refund+refused&outcome=failure",
        "contrast": "/?q=refund&view=contrast",
        "nothing": "/?q=xylophone",
        "run": f"/runs/{run_id}",
        "families": "/families",
        "missing": "/runs/run-unknown",
        "login": "/login",
    }.items():
        page.goto(f"{base_of(guarded)}{path}")
        screenshot(page, f"pages-{title}-{name}")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), title
        assert page.locator("script").count() == 0
        assert violations(page) == [], title
    # The browser says of the missing run itself that it is not there.
    assert [problem for problem in problems if "axe" not in problem.lower() and "status of 404" not in problem] == []


def test_why_a_refund_was_refused_is_found_by_keyboard(
    page: Page,
    guarded: httpx2.Client,
    tokens: Tokens,
) -> None:
    sign_in(page.context, guarded, tokens)
    page.goto(str(guarded.base_url))
    page.locator("#q").focus()
    page.keyboard.type("refund refused")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=refund**")
    first = page.locator("ol.hits > li").first
    assert first.locator(".outcome").count() == 1
    first.locator("h3 a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/run-*")
    assert page.locator("section.turn").first.is_visible()
    citation = page.locator("blockquote a").first
    target = str(citation.get_attribute("href"))[1:]
    citation.focus()
    page.keyboard.press("Enter")
    cited = page.locator(f"[id='{target}']")
    assert cited.is_visible()
    assert cited.locator("mark").count() >= 1


def test_filters_and_older_runs_keep_what_was_asked(
    page: Page,
    guarded: httpx2.Client,
    tokens: Tokens,
) -> None:
    sign_in(page.context, guarded, tokens)
    page.goto(f"{base_of(guarded)}/?heuristic_outcome=success")
    seen = [link.get_attribute("href") for link in page.locator("ol.hits h3 a").all()]
    assert page.locator("#heuristic_outcome").input_value() == "success"
    page.get_by_role("link", name="Older runs").click()
    assert page.locator("#heuristic_outcome").input_value() == "success"
    older = [link.get_attribute("href") for link in page.locator("ol.hits h3 a").all()]
    assert older
    assert not set(seen) & set(older)


def test_wrong_filter_is_said_beside_the_form(
    page: Page,
    guarded: httpx2.Client,
    tokens: Tokens,
) -> None:
    sign_in(page.context, guarded, tokens)
    answer = page.goto(f"{base_of(guarded)}/?q=refund&completed_from=yesterday")
    assert answer is not None
    assert answer.status == 422
    assert "YYYY-MM-DD" in page.get_by_role("alert").inner_text()
    assert page.locator("#q").input_value() == "refund"


def test_token_is_asked_for_once_and_shows_its_tenant_alone(
    page: Page,
    guarded: httpx2.Client,
    tokens: Tokens,
) -> None:
    own, foreign = min(tokens.runs[MINE]), min(tokens.runs[OTHER])
    base = base_of(guarded)
    page.goto(f"{base}/runs/{own}")
    assert "/login" in page.url
    page.get_by_label("Token").fill(tokens.by_name["expired"])
    page.get_by_role("button", name="Sign in").click()
    assert "unknown, expired or revoked" in page.get_by_role("alert").inner_text()
    page.get_by_label("Token").fill(tokens.by_name["mine"])
    page.get_by_role("button", name="Sign in").click()
    assert page.url == f"{base}/runs/{own}"
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    answer = page.goto(f"{base}/runs/{foreign}")
    assert answer is not None
    assert answer.status == 404
    page.goto(f"{base}/?q=refund")
    shown = {str(link.get_attribute("href")).rpartition("/")[2] for link in page.locator("ol.hits h3 a").all()}
    assert shown <= tokens.runs[MINE]
    page.get_by_role("button", name="Sign out").click()
    page.goto(base)
    assert "/login" in page.url


@pytest.mark.parametrize("then", ["https://evil.example", "//evil.example", "/\\evil.example"])
def test_signing_in_leads_to_no_other_site(guarded: httpx2.Client, tokens: Tokens, then: str) -> None:
    answer = guarded.post("/login", data={"token": tokens.by_name["mine"], "then": then}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
