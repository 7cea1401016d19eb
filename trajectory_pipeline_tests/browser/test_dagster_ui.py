"""The Dagster UI of the demonstration in a real browser: what a person sees, and what they start from there.

The tests only wait for texts.
"""

import re
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from playwright.sync_api import Browser, Page

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline_tests.browser.conftest import Demonstration, screenshot
from trajectory_pipeline_tests.conftest import make_settings

RUN_MILLISECONDS = 600_000
"""Time for a run of Dagster: to be taken from the queue, to load its code and to end."""

pytestmark = [pytest.mark.process, pytest.mark.timeout(1200)]


@pytest.fixture
def page(browser: Browser, demonstration: Demonstration) -> Iterator[Page]:
    context = browser.new_context(base_url=demonstration.address, viewport={"width": 1300, "height": 800})
    context.set_default_timeout(60_000)
    yield context.new_page()
    context.close()


def busy_partition(demonstration: Demonstration) -> str:
    """The partition with most runs."""
    with psycopg.connect(demonstration.database_url) as connection:
        found = connection.execute(
            "SELECT partition_key FROM trajectory.trajectories GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        ).fetchone()
    assert found is not None
    return str(found[0])


def test_graph_shows_every_asset_with_its_state(page: Page) -> None:
    # Where the graph is wider than the page, Dagster shrinks the assets to their names.
    page.set_viewport_size({"width": 1900, "height": 800})
    page.goto("/locations/trajectory_pipeline/asset-groups/trajectories")
    for name in ("terminal_runs", "trajectories", "refined_outcomes", "trajectory_report", "runs", "steps", "messages"):
        page.get_by_text(name, exact=True).first.wait_for()
    # Only the open hour is not there yet.
    page.get_by_text("99% filled").first.wait_for()
    screenshot(page, "dagster-graph")


def test_asset_page_tells_what_it_is(page: Page) -> None:
    page.goto("/assets/trajectories?view=overview")
    for text in (
        "Every terminal run as one complete, ordered, typed record.",
        "trajectory.trajectories",
        "stage: convert",
        "From: runs.agent_id.",
    ):
        page.get_by_text(text).first.wait_for()
    for text in ("agents", "Parquet", "Postgres"):
        page.get_by_text(text, exact=True).first.wait_for()
    screenshot(page, "dagster-asset")


def test_checks_of_each_asset_are_evaluated(page: Page) -> None:
    """Hours without runs are newer materializations, after which Dagster would show "Not Evaluated"."""
    declared = Counter(
        key.asset_key.to_user_string() for key in build_defs(make_settings()).resolve_asset_graph().asset_check_keys
    )
    for asset in ("trajectories", "refined_outcomes", "trajectory_report"):
        page.goto(f"/assets/{asset}?view=checks")
        page.get_by_text(f"Checks ({declared[asset]})").first.wait_for()
        page.get_by_text("run_ids_are_unique", exact=True).first.click()
        page.get_by_text("each run once").first.wait_for()
        assert page.get_by_text("Not Evaluated").count() == 0
        if asset == "trajectories":
            page.get_by_text("row_counts_match", exact=True).first.click()
            page.get_by_text("with equal counts in raw rows").first.wait_for()
            screenshot(page, "dagster-checks")


def test_report_is_shown_as_materialized(page: Page) -> None:
    page.goto("/assets/trajectory_report?view=events")
    page.get_by_text("judge_cost_usd", exact=True).first.wait_for()
    screenshot(page, "dagster-report")


def test_materialization_shows_counts_preview_and_query(page: Page, demonstration: Demonstration) -> None:
    key = busy_partition(demonstration)
    page.goto(f"/assets/trajectories?view=partitions&partition={key.replace(':', '%3A')}")
    for name in ("runs_in", "quarantined", "heuristic_outcome", "input_tokens", "cost_usd", "preview", "query"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text(f"WHERE partition_key = '{key}'").first.wait_for()
    page.get_by_role("cell", name=re.compile("^run-")).first.scroll_into_view_if_needed()
    screenshot(page, "dagster-materialization")


def test_automation_page_lists_schedules_and_sensors(page: Page) -> None:
    page.goto("/automation")
    for name in (
        *(
            "closed_hour",
            "daily_completeness",
            "daily_history_checks",
            "daily_report",
            "daily_retention",
            "daily_dagster_retention",
        ),
        *("capture_sensor", "refinement_sensor", "judge_batch_sensor", "reconciliation_sensor"),
        *("empty_hour_sensor", "failure_notice_sensor"),
    ):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_text("Standard sensor").nth(3).wait_for()
    screenshot(page, "dagster-automation")


def test_tick_says_what_was_compared(page: Page) -> None:
    page.goto("/locations/trajectory_pipeline/sensors/capture_sensor")
    # A button of the list: the badge above it is there first, and says the same.
    page.get_by_role("button", name="0 runs requested").last.click()
    page.get_by_role("dialog").get_by_text(re.compile(r"partitions compared, \d+ stale")).wait_for()
    screenshot(page, "dagster-sensor")


def test_failing_check_is_visible_and_names_the_partition(page: Page, demonstration: Demonstration) -> None:
    key = busy_partition(demonstration)
    with psycopg.connect(demonstration.database_url) as connection:
        connection.execute(
            "DELETE FROM trajectory.trajectories WHERE run_id = (SELECT min(run_id) FROM trajectory.trajectories"
            " WHERE partition_key = %s)",
            [key],
        )
    page.goto("/assets/letta/runs?view=checks")
    page.get_by_role("button", name=re.compile("Execute$")).first.click()
    page.get_by_text(re.compile(rf"^\d+ differences?; first: {key}: ")).first.wait_for(timeout=RUN_MILLISECONDS)
    page.get_by_text("what_to_do", exact=True).first.wait_for()
    screenshot(page, "dagster-failing-check")
    page.get_by_text("[Show Markdown]").first.click()
    page.get_by_role("dialog").get_by_text(key).first.wait_for()


def test_backfill_of_a_day_is_launched_and_completes(page: Page, demonstration: Demonstration) -> None:
    day = busy_partition(demonstration)[:10]
    page.goto("/assets/terminal_runs?view=partitions")
    page.get_by_role("button", name="Materialize").first.click()
    partitions = (
        page.get_by_role("dialog")
        .get_by_placeholder("No matching partitions")
        .or_(page.get_by_role("dialog").locator("input[type=text]"))
    )
    partitions.first.fill(f"[{day}-00:00...{day}-23:00]")
    partitions.first.press("Enter")
    page.get_by_text("24 partitions", exact=True).first.wait_for()
    screenshot(page, "dagster-backfill-dialog")
    page.get_by_role("button", name=re.compile("Launch")).last.click()
    page.goto("/runs?view=backfills")
    page.get_by_text("Completed", exact=True).or_(page.get_by_text("Success", exact=True)).first.wait_for(
        timeout=RUN_MILLISECONDS
    )
    screenshot(page, "dagster-backfill")
