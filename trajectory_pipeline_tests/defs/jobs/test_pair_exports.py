"""The job of exported pairs makes them anew, with its checks, and again without a change."""

import json
from pathlib import Path

import dagster as dg

from trajectory_pipeline.definitions import build_defs
from trajectory_pipeline.defs.jobs.pair_exports import JOB_NAME
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import change_settings
from trajectory_pipeline_tests.defs.dagster_runs import QUIET, check_evaluations, resources_of


def test_job_writes_the_dataset_and_checks_it(captured: Settings, instance: dg.DagsterInstance) -> None:
    settings = change_settings(captured, export__formats=("dpo",))
    job = build_defs(settings, resources_of(settings)).resolve_job_def(JOB_NAME)
    rewritten = []
    for _ in range(2):
        result = job.execute_in_process(instance=instance, run_config=QUIET)
        assert result.success
        (event,) = result.get_asset_materialization_events()
        metadata = event.materialization.metadata
        manifest = json.loads((Path(str(metadata["dagster/uri"].value)) / "manifest.json").read_bytes())
        assert metadata["dagster/row_count"].value == sum(manifest["records"].values())
        assert metadata["selected"].value == manifest["selected"] > 0
        checks = {
            name: check.passed for name, check in check_evaluations(instance, result.run_id, "exports/dpo").items()
        }
        assert checks == {"files_match_manifest": True, "holds_nothing_erased": True}
        rewritten.append(metadata["rewritten"].value)
    assert rewritten == [True, False]
