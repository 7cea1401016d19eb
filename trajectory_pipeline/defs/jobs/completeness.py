"""The completeness check and its job, daily and on demand.

Dagster's own freshness checks look at the last materialization of any partition: a backfill hides what is missing.
"""

from dataclasses import asdict

import dagster as dg

from trajectory_pipeline.defs.asset_checks import summarize, what_to_do
from trajectory_pipeline.defs.asset_keys import source_key
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.defs.metadata import bullet_list
from trajectory_pipeline.defs.resources import SourcesResource, StorageResource
from trajectory_pipeline.partition_keys import LETTA
from trajectory_pipeline.schema.raw import RUNS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

JOB_NAME = "completeness_job"
# A check of the source, which is never materialized: checks run with each materialization of their asset, and this one
# would compare the whole history in every run of a backfill.
COMPLETENESS = dg.AssetCheckKey(dg.AssetKey(["letta", RUNS.name]), "completeness")


def completeness_key(source: str) -> dg.AssetCheckKey:
    """Return the key of a source's check."""
    return COMPLETENESS if source == LETTA else dg.AssetCheckKey(source_key(source), COMPLETENESS.name)


def build_completeness_check(settings: Settings, source: str = LETTA) -> dg.AssetChecksDefinition:
    """Return the check of a source's whole history, which only the completeness job runs.

    It passes where nothing differs. Stuck and earlier runs are only listed.
    """
    key = completeness_key(source)

    @dg.asset_check(
        asset=key.asset_key,
        name=key.name,
        description=(
            "Source, ledger, Postgres and Parquet hold the same in every partition of the whole history. Also lists"
            " runs that never became terminal."
        ),
    )
    def completeness(sources: SourcesResource, storage: StorageResource) -> dg.AssetCheckResult:
        from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness

        report = check_completeness(sources.source(source), storage.sinks(), CompletenessScope.from_settings(settings))
        stuck = [f"{run.run_id} {run.status} for {run.age.total_seconds() / 3600:.0f} hours" for run in report.stuck]
        advice = what_to_do(
            "Where capture is enabled, wait for the sensor. Else `trajectory-pipeline materialize --partition KEY` for"
            " each partition that is named."
        )
        return dg.AssetCheckResult(
            passed=not report.differences,
            severity=dg.AssetCheckSeverity.WARN,
            description=summarize(report.differences)
            or f"{pluralize(report.partitions, 'partition')} equal in source, ledger, Postgres and Parquet",
            metadata={
                "partitions": report.partitions,
                "runs_in_source": report.runs,
                "runs_before_first_partition": report.before_start,
                "stuck_runs": len(stuck),
                "runs_after_now": len(report.misdated.after_now),
                "runs_without_time": len(report.misdated.without_time),
                **{name: bullet_list(run_ids) for name, run_ids in asdict(report.misdated).items() if run_ids},
                **({"differences": bullet_list(report.differences), **advice} if report.differences else {}),
                **({"stuck": bullet_list(stuck)} if stuck else {}),
            },
        )

    return completeness


def build_completeness_job(settings: Settings) -> ScheduledJob:
    """Return the job and its daily schedule, which runs by default where capture is enabled."""
    job = dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.checks(*map(completeness_key, settings.source.names)),
        description="Compares source, ledger, Postgres and Parquet over the whole history.",
    )
    return scheduled_daily(job, "03:17", running=settings.capture.enabled)
