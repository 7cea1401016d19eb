"""Pages over HTTP: a long run has several, and whatever goes wrong is a page with words."""

import re

import httpx2
import pytest

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.report import trajectory_view
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
