"""One trajectory is sent again only when it has changed, by the tag of what the client has."""

from pathlib import Path

import httpx2

from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving


def test_trajectory_is_sent_again_only_when_it_has_changed(own_story: Pipeline, tmp_path: Path) -> None:
    run_id = own_story.ask("SELECT run_id FROM trajectory.outcomes WHERE outcome = 'failure' LIMIT 1")[0]["run_id"]
    path = f"/v1/trajectories/{run_id}"
    with (
        serving(make_settings(), Storage.at(str(tmp_path), own_story.database_url)) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):

        def again(tag: str) -> httpx2.Response:
            return client.get(path, headers={"if-none-match": tag})

        first = client.get(path)
        tag = first.headers["etag"]
        assert (client.get(path).content, client.get(path).headers["etag"]) == (first.content, tag)
        assert [again(one).status_code for one in (tag, f'W/"x", {tag}', "*", '"x"', "")] == [304, 304, 304, 200, 200]
        assert (again(tag).content, again(tag).headers["etag"]) == (b"", tag)
        # Of the verdict, and then of the document: each is seen at once.
        own_story.do("UPDATE trajectory.verdicts SET lesson = 'Ask first.' WHERE lesson IS NOT NULL")
        judged = again(tag)
        assert (judged.status_code, judged.json()["judged"]["lesson"]) == (200, "Ask first.")
        own_story.do(
            'UPDATE trajectory.trajectories SET updated_at = clock_timestamp(), data = data || \'{"more": "words"}\''
        )
        changed = again(judged.headers["etag"])
        assert (changed.status_code, changed.json()["document"]["more"]) == (200, "words")
        own_story.do("UPDATE trajectory.trajectories SET deleted_at = now()")
        assert again(changed.headers["etag"]).status_code == 404
