"""The judge batch sensor: asks the provider for the batches that run, and requests the collection of those that ended.

Like the other sensors it keeps no memory of its own: which batches run is in the trajectory database.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import capture_keys, refinement_keys
from trajectory_pipeline.defs.assets.refined_outcomes import COLLECT_TAG, refinement_batch
from trajectory_pipeline.defs.resources import BudgetResource, JudgeResource, StorageResource
from trajectory_pipeline.defs.sensors.run_requests import (
    TRAJECTORY_JOB,
    Clock,
    default_status,
    due_hours,
    run_requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import (
    LETTA,
    floor_to_hour,
    hours_of,
    name_at,
    parse_partition_key,
    source_of,
)
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

JUDGE_BATCH_SENSOR = "judge_batch_sensor"
_SECONDS_BETWEEN_TICKS = 60
_LISTED = 20


def build_judge_batch_sensor(settings: Settings, source: str = LETTA, clock: Clock = utc_now) -> dg.SensorDefinition:
    """Return the sensor of a source."""
    refinement, before = refinement_keys(source), [*capture_keys(source), *refinement_keys(source)]
    disabled = settings.judge.disabled_reason
    notice = f"\n\n**Does nothing.** {disabled}" if disabled else ""

    @dg.sensor(
        name=name_at(JUDGE_BATCH_SENSOR, source),
        job_name=name_at(TRAJECTORY_JOB, source),
        minimum_interval_seconds=_SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Polls the batches of calls that run at the judge's provider (`TRAJECTORY_JUDGE_MODE=batch`), requests runs"
            " that collect those that ended, finds again or undoes what a killed worker left, cancels what was sent"
            f" content that has been erased since, and deletes files there that are done.{notice}"
        ),
    )
    def judge_batch_sensor(
        context: dg.SensorEvaluationContext, storage: StorageResource, judge: JudgeResource, budget: BudgetResource
    ) -> dg.SensorResult | dg.SkipReason:
        if disabled:
            return dg.SkipReason(disabled)
        from trajectory_pipeline.pipeline.keep_batches import poll_batches

        now = clock()

        def is_partition(key: str) -> bool:
            # An hour before a TRAJECTORY_START that moved is none any more, nor is one of a source that is gone.
            hour = parse_partition_key(key)
            first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
            return source_of(hour) in settings.source.names and first <= hour <= last

        try:
            polled = poll_batches(storage.sinks(), judge.config(budget), is_partition)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        if not polled:
            return dg.SkipReason("No batch runs at the judge's provider.")
        for one in polled:
            context.log.info(one.seen)
        found = {parse_partition_key(key) for one in polled for key in filter(is_partition, one.partition_keys)}
        hours = sorted(hours_of(source, found))
        due, held_back = due_hours(context.instance, hours, refinement, before, now, {})
        requests = run_requests(
            due,
            refinement,
            refinement_batch(settings.dagster.backfill_batch),
            "a batch ended",
            tags={COLLECT_TAG: "true"},
        )
        if requests:
            return dg.SensorResult(run_requests=requests)
        more = f"; and {len(polled) - _LISTED} more" if len(polled) > _LISTED else ""
        waits = f" {pluralize(len(hours), 'partition')} to be collected{held_back}." if hours else ""
        return dg.SkipReason(f"{'; '.join(one.seen for one in polled[:_LISTED])}{more}.{waits}")

    return judge_batch_sensor
