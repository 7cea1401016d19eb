"""The asset ``judge_quality``: how far the judge can be trusted, measured once a day on what people labelled."""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import judged_keys
from trajectory_pipeline.defs.metadata import quality_metadata
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.quality.packages import INSTALL, missing_packages
from trajectory_pipeline.schema.quality import JUDGE_QUALITY
from trajectory_pipeline.settings import Settings


def build_judge_quality(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset."""
    missing = missing_packages()
    notice = f"\n\n**Cannot be made here:** {INSTALL}." if missing else ""

    @dg.asset(
        name=JUDGE_QUALITY.name,
        group_name="reports",
        kinds={"postgres", "parquet"},
        owners=settings.dagster.owners,
        tags={"stage": "report"},
        deps=judged_keys(settings),
        description="How far verdicts agree with labels of people, by policy: agreement, kappa, alpha, what is missed"
        f" and what is wrongly called a failure, each with its interval.{notice}",
    )
    def judge_quality(storage: StorageResource) -> dg.MaterializeResult[None]:
        if missing:
            raise dg.Failure(
                f"Measuring needs {' and '.join(missing)}: {INSTALL}.",
                allow_retries=False,
            )
        from trajectory_pipeline.pipeline.judge_quality import materialize_quality

        try:
            result = materialize_quality(storage.sinks())
        except PipelineError as error:
            raise dg.Failure(str(error)) from None
        return dg.MaterializeResult(metadata=quality_metadata(result))

    return judge_quality
