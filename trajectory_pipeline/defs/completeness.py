"""The completeness check: the whole history compared, daily and on demand.

Belongs here: the check's result and when it runs. Does not belong here: comparing (``maintenance.completeness``).

Dagster's own freshness looks at the last materialisation of any partition, so that a backfill hides what is missing.
"""

from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.asset_checks import bullets
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.schema.raw import RUNS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.maintenance.completeness import CompletenessReport

JOB_NAME = "completeness_job"


@dg.asset_check(
    # Of the source, which is never materialised: checks run with each materialisation of their asset, and this one
    # would compare the whole history in every run of a backfill.
    asset=dg.AssetKey(["letta", RUNS.name]),
    description=(
        "Partition by partition over the whole history: source, ledger, Postgres and Parquet hold the same. Green means"
        " equal. Also lists runs that never became terminal."
    ),
)
def completeness(pipeline: dg.ResourceParam[PipelineResource]) -> dg.AssetCheckResult:
    """Compare everything with everything."""
    from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness

    return result_of(
        check_completeness(
            pipeline.source,
            pipeline.storage,
            CompletenessScope.from_settings(pipeline.settings),
        )
    )


def result_of(found: "CompletenessReport") -> dg.AssetCheckResult:
    """Return the check's result: passed where nothing differs; what is merely worth knowing stands beside."""
    metadata: dict[str, dg.MetadataValue] = {
        "partitions": dg.MetadataValue.int(found.partitions),
        "runs_in_the_source": dg.MetadataValue.int(found.runs),
        "runs_before_the_first_partition": dg.MetadataValue.int(found.before_start),
        "runs_that_never_ended": dg.MetadataValue.int(len(found.stuck)),
    }
    if found.differences:
        metadata["differences"] = bullets(found.differences)
    if found.stuck:
        metadata["never_ended"] = bullets(
            [f"{run.run_id} {run.status} for {run.age.total_seconds() / 3600:.0f} hours" for run in found.stuck]
        )
    different = pluralize(len(found.differences), "difference")
    return dg.AssetCheckResult(
        passed=not found.differences,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{different}; first: {found.differences[0]}"
        if found.differences
        else f"{pluralize(found.partitions, 'partition')} equal on all sides",
        metadata=metadata,
    )


def build_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Return the daily schedule of the check; running by default where ENABLE_TRAJECTORY_CAPTURE says so."""
    return dg.ScheduleDefinition(
        name="daily_completeness",
        job=dg.define_asset_job(
            JOB_NAME,
            selection=dg.AssetSelection.checks(completeness),
            description="The whole history compared: source, ledger, Postgres, Parquet.",
        ),
        cron_schedule="17 3 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING
        if settings.capture.enabled
        else dg.DefaultScheduleStatus.STOPPED,
        description="Compares the whole history once a day.",
    )
