"""Pages over HTTP: a long run has several, and whatever goes wrong is a page with words."""

import re

import httpx2
import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.report import trajectory_view
from trajectory_pipeline.serve.filters import FilterQuery
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.server_databases import drop_database

MESSAGE = re.compile(r'class="message[^"]*" id="([^"]+)"')


def test_long_run_is_read_page_by_page(served: httpx2.Client, story: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_view, "MESSAGES_OF_A_PAGE", 3)
    (run,) = story.database.rows(
        "SELECT run_id, t.message_count FROM trajectory.outcomes o JOIN trajectory.trajectories t USING (run_id)"
        " WHERE o.verdict_status = 'judged' ORDER BY 2 DESC, 1 LIMIT 1"
    )
    path, pages, seen = f"/runs/{run['run_id']}", [], []
    following: str | None = "?page=1"
    while following:
        answer = served.get(path + following)
        assert answer.status_code == 200
        pages.append(answer.text)
        on_page = MESSAGE.findall(answer.text)
        assert len(on_page) <= 3
        seen += on_page
        found = re.search(r'<a href="([^"]+)" rel="next">', answer.text)
        following = found and found[1]
    assert len(seen) == len(set(seen)) == run["message_count"]
    # Evidence leads to the page where its message is.
    cited = re.findall(r'<blockquote>.*<a href="(?:\?page=(\d+))?#([^"]+)"', pages[0])
    assert cited
    for page, message in cited:
        assert f'id="{message}"' in pages[int(page or 1) - 1]
        assert "<mark>" in pages[int(page or 1) - 1]
    beyond = served.get(f"{path}?page={len(pages) + 1}")
    assert (beyond.status_code, f"The run has {len(pages)} pages" in beyond.text) == (404, True)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/run-unknown", 404, "no such run"),
        ("/runs/%00", 404, "no such run"),
        ("/runs/run-1?page=0", 422, "page"),
        ("/runs/run-1?page=x", 422, "page"),
        ("/runs/run-1?page=99999999999999999999", 422, "page"),
        ("/?q=%00", 422, "NUL"),
        ("/?cursor=x", 422, "next_cursor"),
        ("/?ended_from=2026-01-01", 422, "ended_from: there is no such field"),
        ("/?completed_from=2026-01-02&completed_to=2026-01-01", 422, "completed_from: it must be before"),
        ("/?q=x&agent_id=" + "x" * 201, 422, "agent_id.0: it has more than 200 characters"),
    ],
)
def test_bad_input_is_answered_by_a_page(served: httpx2.Client, path: str, status: int, words: str) -> None:
    answer = served.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert words in answer.text


@pytest.mark.parametrize("path", ["/foo", "/runs", "/v1/nothing"])
def test_unknown_path_is_a_page_for_a_browser_and_a_problem_for_a_program(served: httpx2.Client, path: str) -> None:
    browser = served.get(path, headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing at this address" in browser.text
    for accept in ("*/*", "application/json"):
        program = served.get(path, headers={"accept": accept})
        assert (program.status_code, program.headers["content-type"]) == (404, "application/problem+json")
        assert "There is nothing at this address" in program.json()["detail"]


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/v1/trajectories", "application/problem+json")])
def test_defect_is_answered_as_any_problem(
    served: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    monkeypatch.setattr("trajectory_pipeline.storage.postgres.service_reads._list", lambda *_: 1 / 0)
    answer = served.get(path)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (500, kind)
    assert answer.headers["x-request-id"] in answer.text


def test_database_that_is_gone_is_said_in_words(
    trajectory_database: str, postgres_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """On pages and over REST; where it was is for the log alone."""
    settings = make_settings(storage__database_url=trajectory_database)
    name = trajectory_database.rpartition("/")[2]
    with (
        serving(settings, Storage.at("unused", trajectory_database)) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        drop_database(postgres_server, name)
        for path in ("/", "/runs/run-1", "/families", "/?q=refund"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html; charset=utf-8"), path
            assert "log says why" in answer.text
            assert name not in answer.text
        answer = client.get("/v1/trajectories")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert name not in answer.text
    assert name in caplog.text


TITLE = re.compile(r"<title>(.*?) · Past runs</title>")


@pytest.mark.parametrize(
    ("path", "title", "active"),
    [
        ("/", "Newest runs", None),
        ("/?q=refund", "refund · Search", "Search"),
        ("/?q=refund&view=contrast", "refund · Successes beside failures", "Successes beside failures"),
        ("/?q=" + "word+" * 30, "word " * 11 + "word … · Search", "Search"),
        ("/?outcome=good", "Error · Newest runs", None),
        ("/families", "Task families", None),
        ("/docs", "API", None),
        ("/runs/run-unknown", "Not found", None),
    ],
)
def test_tab_and_button_say_what_is_shown(served: httpx2.Client, path: str, title: str, active: str | None) -> None:
    page = served.get(path).text
    assert TITLE.findall(page) == [title]
    assert re.findall(r'<button[^>]* aria-current="true">([^<]+)<', page) == ([active] if active else [])


def test_page_has_every_filter_of_the_api(served: httpx2.Client) -> None:
    page = served.get("/").text
    for name in FilterQuery.model_fields:
        assert f'name="{name}"' in page, name
    assert "No run is found" in served.get("/?q=refund&organization_id=nobody").text


def test_no_page_shows_a_raw_name_of_a_list(served: httpx2.Client, story: Pipeline) -> None:
    (partial, *_) = story.database.rows("SELECT run_id FROM trajectory.outcomes WHERE outcome = 'partial_success'")
    for path in ("/", "/?outcome=partial_success", "/families", f"/runs/{partial['run_id']}"):
        shown = re.sub(
            r"<[^>]*>", " ", re.sub(r"<(pre|code|blockquote).*?</\1>", " ", served.get(path).text, flags=re.S)
        )
        assert not re.search(r"partial_success|insufficient_evidence|not_eligible", shown), path
    assert "partial success" in served.get(f"/runs/{partial['run_id']}").text


def test_run_names_task_and_agent_in_its_tab(served: httpx2.Client, story: Pipeline) -> None:
    (run, *_) = story.database.rows("SELECT run_id, agent_name FROM trajectory.outcomes WHERE outcome = 'failure'")
    (title,) = TITLE.findall(served.get(f"/runs/{run['run_id']}").text)
    assert title.endswith(f" · {run['agent_name']}")
    assert len(title) > len(run["agent_name"]) + 10


def test_simulated_verdicts_are_marked_wherever_a_run_is_listed(served: httpx2.Client) -> None:
    (run, *_) = served.get("/v1/trajectories?outcome=failure").json()["items"]
    assert run["judged"]["simulated"]
    assert "(simulated: not a model)" in served.get("/?outcome=failure").text


def test_api_is_described_without_a_script_or_another_site(served: httpx2.Client) -> None:
    answer = served.get("/docs")
    assert answer.headers["content-security-policy"] == served.get("/").headers["content-security-policy"]
    assert "<script" not in answer.text
    assert re.findall(r'(?:src|href)="(?!/|#)[^"]*"', answer.text) == []
    document = served.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert f"{method.upper()} {path}" in answer.text
            for parameter in operation.get("parameters", ()):
                assert f"<code>{parameter['name']}</code>" in answer.text
    for name, schema in document["components"]["schemas"].items():
        assert "properties" not in schema or f'id="{name}"' in answer.text
    assert "{&#34;run_ids&#34;: [&#34;run-1&#34;]}" in answer.text
    for target in re.findall(r'href="#([^"]+)"', answer.text):
        assert f'id="{target}"' in answer.text
