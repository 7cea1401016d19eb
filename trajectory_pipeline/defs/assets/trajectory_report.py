"""The asset ``trajectory_report``: one HTML page about all trajectories, made once a day."""

from datetime import timedelta
from importlib.util import find_spec

import dagster as dg

from trajectory_pipeline.defs.asset_keys import judged_keys
from trajectory_pipeline.defs.resources import JudgeResource, StorageResource
from trajectory_pipeline.schema.quality import JUDGE_QUALITY
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.urls import without_credentials

REPORT = "trajectory_report"


def build_trajectory_report(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset."""
    missing = [name for name in ("altair", "vl_convert") if find_spec(name) is None]
    notice = "\n\n**Cannot be made here:** pip install 'trajectory-pipeline[report]'." if missing else ""

    @dg.asset(
        name=REPORT,
        group_name="reports",
        kinds={"html", "parquet"},
        owners=settings.dagster.owners,
        tags={"stage": "report"},
        metadata={
            "dagster/uri": f"{without_credentials(settings.storage.parquet_location).rstrip('/')}/{REPORT}/report.html"
        },
        freshness_policy=dg.FreshnessPolicy.time_window(
            fail_window=timedelta(hours=50), warn_window=timedelta(hours=26)
        )
        if settings.capture.enabled and not missing
        else None,
        deps=[*judged_keys(settings), dg.AssetKey(JUDGE_QUALITY.name)],
        description="How runs ended, what they achieved, what they cost and where they fail, with the trajectories most"
        f" worth reading. One HTML file, and its tables as Parquet.{notice}",
    )
    def trajectory_report(storage: StorageResource, judge: JudgeResource) -> dg.MaterializeResult[None]:
        if missing:
            raise dg.Failure(
                f"The report needs {' and '.join(missing)}: pip install 'trajectory-pipeline[report]'.",
                allow_retries=False,
            )
        from trajectory_pipeline.report.publish import make_report, publish_report

        sinks = storage.sinks()
        configured_key = judge.redaction_key.encode() if judge.redaction_key else None
        report = make_report(sinks.postgres, settings.privacy.redaction, configured_key, quality=settings.quality)
        published = publish_report(sinks.parquet, report)
        (totals,) = report.tables["totals"]
        return dg.MaterializeResult(
            metadata={
                "dagster/uri": published.uri,
                "bytes": published.bytes,
                **{name: totals[name] for name in ("runs", "judged", "success", "failure")},
                "judge_cost_usd": float(totals["judge_cost_usd"] or 0),
            }
        )

    return trajectory_report
