"""Erasing one run over HTTP: only what is deleted at the source, only that run, and only by who may see it."""

from dataclasses import replace
from pathlib import Path

import httpx2
import psycopg

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.maintenance.erase_deleted import partitions_to_erase
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.export import ExportOptions, export_dataset
from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_tokens import create_token
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.maintenance.test_erase_deleted import HOUR, places_of_the_word, say_the_word
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.pipeline.test_source_changes import delete_run
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.tenancy import ALL_SCOPES


def test_one_deleted_run_is_erased_everywhere(pipeline: Pipeline, judge: SimulatedJudge, tmp_path: Path) -> None:
    pipeline = replace(pipeline, judge_url=judge.base_url)
    pipeline.capture(HOUR)
    first, second = sorted(pipeline.run_ids(HOUR))[:2]
    say_the_word(pipeline, first)
    pipeline.capture(HOUR)
    pipeline.refine(HOUR)
    held = str(tmp_path / "held")
    export_dataset(pipeline.storage, held, ExportFilters(), ExportOptions(ExportFormat.PARQUET))
    with psycopg.connect(pipeline.database_url) as connection:
        connection.execute(
            "UPDATE trajectory.trajectories SET organization_id = 'org-other' WHERE run_id <> %s", [first]
        )
        connection.execute("UPDATE trajectory.trajectories SET organization_id = 'org-mine' WHERE run_id = %s", [first])
    database = pipeline.database
    tenants = {name: Tenants(frozenset({f"org-{name}"}), frozenset()) for name in ("mine", "other")}
    headers = {
        name: {"authorization": f"Bearer {create_token(database, name, ALL_SCOPES, one, None)}"}
        for name, one in tenants.items()
    }
    token = create_token(database, "reader", {TokenScope.READ, TokenScope.JUDGE}, tenants["mine"], None)
    headers["reader"] = {"authorization": f"Bearer {token}"}
    settings = make_settings(storage__database_url=pipeline.database_url)
    path = f"/v1/trajectories/{first}"
    with serving(settings, pipeline.storage) as address, httpx2.Client(base_url=address, timeout=60) as client:

        def erase(name: str) -> httpx2.Response:
            return client.delete(path, headers=headers[name])

        present = erase("mine")
        assert (present.status_code, "delete it in Letta" in present.text) == (409, True)
        delete_run(pipeline, first)
        delete_run(pipeline, second)
        pipeline.read(HOUR, accept_deletions=True)
        pipeline.convert(HOUR)
        # Converting gave it back to the organization that the source says.
        with psycopg.connect(pipeline.database_url) as connection:
            connection.execute(
                "UPDATE trajectory.trajectories SET organization_id = 'org-mine' WHERE run_id = %s", [first]
            )
        assert client.get(path, headers=headers["mine"]).status_code == 404
        assert partitions_to_erase(database) == {partition_key(HOUR): 2}
        assert places_of_the_word(pipeline) >= {"trajectories", "terminal_runs"}
        assert [erase(name).status_code for name in ("other", "reader")] == [404, 403]
        assert places_of_the_word(pipeline) >= {"trajectories", "terminal_runs"}
        done = erase("mine")
        assert done.status_code == 200, done.text
        assert done.json()["erased_verdicts"] >= 1
        assert done.json()["exports"] == [held]
        assert places_of_the_word(pipeline) == set()
        erased = pipeline.ask("SELECT run_id FROM trajectory.trajectories WHERE erased")
        assert erased == [{"run_id": first}]
        # The other deleted run keeps its content, and is still due where the policy is to erase.
        assert partitions_to_erase(database) == {partition_key(HOUR): 1}
        with psycopg.connect(pipeline.database_url) as connection:
            connection.execute(
                "UPDATE trajectory.trajectories SET organization_id = 'org-mine' WHERE run_id = %s", [first]
            )
        again = erase("mine").json()
        assert (again["erased_verdicts"], again["exports"]) == (0, [held])
    # Capturing again brings nothing back.
    pipeline.capture(HOUR)
    assert places_of_the_word(pipeline) == set()
