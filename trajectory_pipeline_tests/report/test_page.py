"""The report's page over judged trajectories: its numbers, its pages of runs, and that texts are data."""

import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.demo.letta_sample.labels import sample_labels
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge import SCRIPTED_MODEL
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.partition_keys import HOUR
from trajectory_pipeline.pipeline.judge_quality import materialize_quality
from trajectory_pipeline.report import page
from trajectory_pipeline.report.page import WORTH_READING, build_report
from trajectory_pipeline.report.publish import publish_report
from trajectory_pipeline.report.quality import update_quality
from trajectory_pipeline.report.trajectory_view import highlight
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

REDACT = Redactor(key=b"a key of these tests")


def test_report_counts_what_the_view_outcomes_holds(story: Pipeline) -> None:
    report = build_report(story.database, REDACT)
    (totals,) = report.tables["totals"]
    (expected,) = story.ask(
        "SELECT count(*) AS runs, count(*) FILTER (WHERE verdict_status = 'judged') AS judged,"
        " count(*) FILTER (WHERE outcome = 'success') AS success, sum(judge_cost_usd) AS judge_cost_usd"
        " FROM trajectory.outcomes"
    )
    assert {name: totals[name] for name in expected} == expected
    for name in ("periods", "agents"):
        assert sum(row["runs"] for row in report.tables[name]) == totals["runs"]
    assert f"<dd>{totals['runs']}<small>" in report.html
    assert "Verdicts by scripted-judge are <strong>simulated</strong>" in report.html


def test_long_table_says_what_it_leaves_out(story: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_MOST_ROWS", 2)
    report = build_report(story.database, REDACT)
    agents, periods = (len(report.tables[name]) for name in ("agents", "periods"))
    assert f"The first 2 of {agents}. All are in <code>trajectory_report/agents.parquet</code>." in report.html
    assert periods > 2
    assert "periods.parquet" not in report.html


def test_report_of_a_range_counts_its_hours_alone(story: Pipeline) -> None:
    hour, size = next(iter(STORY.partitions().items()))
    report = build_report(story.database, REDACT, hour, hour + HOUR)
    assert report.tables["totals"][0]["runs"] == size


def test_report_shows_the_runs_most_worth_reading(story: Pipeline) -> None:
    report = build_report(story.database, REDACT)
    shown = re.findall(r'<article class="run" id="(run-[^"]+)"', report.html)
    assert len(shown) == WORTH_READING
    assert all(f'href="#{run_id}"' in report.html for run_id in shown)
    first = story.ask("SELECT outcome, heuristic_outcome FROM trajectory.outcomes WHERE run_id = %s", shown[0])[0]
    assert (first["outcome"], first["heuristic_outcome"]) == ("failure", "success")
    assert "<mark>" in report.html


def test_report_names_every_cited_message_that_it_links(story: Pipeline) -> None:
    report = build_report(story.database, REDACT)
    ids = set(re.findall(r' id="([^"]+)"', report.html))
    links = set(re.findall(r'href="#([^"]+-message-[^"]+)"', report.html))
    assert links
    # A chain's verdict may cite an earlier run's message, which has a page of its own or none.
    assert len(links & ids) / len(links) > 0.8


def test_report_is_one_file_without_network_or_script(story: Pipeline) -> None:
    report = build_report(story.database, REDACT)
    assert not re.findall(r"<script|<link|<iframe|src=|url\(|@import|https?://(?!www\.w3\.org)", _markup(report.html))


def test_report_escapes_text_of_agents(own_story: Pipeline) -> None:
    own_story.do(
        "UPDATE trajectory.trajectories SET data = replace(data::text, 'parcel', '<script>alert(1)</script>')::jsonb,"
        " agent_name = '<img src=x onerror=alert(1)>'"
    )
    html = build_report(own_story.database, REDACT).html
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_report_replaces_secrets(own_story: Pipeline) -> None:
    secret = "sk-proj-" + "a1B2c3D4e5F6" * 4
    own_story.do(f"UPDATE trajectory.trajectories SET data = replace(data::text, 'parcel', '{secret}')::jsonb")
    html = build_report(own_story.database, REDACT).html
    assert secret not in html
    assert "[secret:" in html


def test_report_says_how_far_each_policy_agrees_with_people(own_story: Pipeline) -> None:
    assert "Not measured yet" in build_report(own_story.database, REDACT).html
    write_labels(own_story.database, sample_labels())
    materialize_quality(own_story.storage)
    update_quality(own_story.database, REDACT)
    report = build_report(own_story.database, REDACT)
    (judge, people) = report.tables["policies"]
    assert (judge["model"], judge["gates"], people["comparison"]) == (SCRIPTED_MODEL, "passed", "people")
    assert people["agreement"].startswith("0.90 ")
    assert "P(outcome is right) is not learnt: " in report.html
    assert "Not measured yet" not in report.html


def test_report_without_trajectories_says_so(trajectory_database: str, tmp_path: Path) -> None:
    pipeline = Pipeline("", trajectory_database, tmp_path)
    html = build_report(pipeline.database, REDACT).html
    assert "No trajectory is in this range." in html


def test_report_without_verdicts_has_no_rate(pipeline: Pipeline) -> None:
    pipeline.capture(next(iter(sample_partitions())))
    report = build_report(pipeline.database, REDACT)
    assert "nothing judged" in report.html
    assert report.tables["agents"][0]["share"] is None


def test_report_over_many_weeks_counts_weeks(story: Pipeline) -> None:
    last = max(STORY.partitions())
    report = build_report(story.database, REDACT, last - timedelta(days=100), last + HOUR)
    assert [row["period"] for row in report.tables["periods"]] == ["2026-11-23"]


def test_published_report_is_private_and_has_its_tables(story: Pipeline) -> None:
    report = build_report(story.database, REDACT)
    published = publish_report(story.store, report)
    folder = story.folder / "trajectory_report"
    assert (folder / "report.html").read_text() == report.html
    assert published.bytes == len(report.html.encode())
    assert pq.read_table(folder / "agents.parquet").num_rows == len(report.tables["agents"])
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("text", "quotes", "expected"),
    [
        ("a  <b>\nc", ["a <b> c"], "<mark>a  &lt;b&gt;\nc</mark>"),
        ("one two three", ["two", "two three"], "one <mark>two</mark> three"),
        ("nothing", ["something"], "nothing"),
        ("nothing", ["", "  "], "nothing"),
    ],
)
def test_highlight_marks_quotes_and_escapes(text: str, quotes: list[str], expected: str) -> None:
    assert highlight(text, quotes) == expected


class _Markup(HTMLParser):
    """Collects tags and attributes, without the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(self.get_starttag_text() or "")


def _markup(html: str) -> str:
    parser = _Markup()
    parser.feed(html)
    return "\n".join(parser.tags)
