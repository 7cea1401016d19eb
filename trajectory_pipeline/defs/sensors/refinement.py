"""The refinement sensor: requests the partitions whose trajectories have no verdict under the current policy."""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_checks import ABANDONED_VERDICTS
from trajectory_pipeline.defs.asset_keys import CAPTURE, REFINEMENT
from trajectory_pipeline.defs.assets.refined_outcomes import refinement_batch
from trajectory_pipeline.defs.resources import BudgetResource, JudgeResource, StorageResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    TRAJECTORY_JOB,
    Clock,
    default_status,
    due_hours,
    run_requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import floor_to_hour, parse_partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

REFINEMENT_SENSOR = "refinement_sensor"


def build_refinement_sensor(settings: Settings, clock: Clock = utc_now) -> dg.SensorDefinition:
    """Return the sensor."""
    disabled = settings.judge.disabled_reason
    notice = f"\n\n**Requests nothing.** {disabled}" if disabled else ""

    @dg.sensor(
        name=REFINEMENT_SENSOR,
        job_name=TRAJECTORY_JOB,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests the partitions whose trajectories have no verdict under the current policy: unchanged for"
            f" {pluralize(settings.judge.settle_minutes, 'minute')}, at most"
            f" {pluralize(settings.judge.lookback_days, 'day')} old, as far as the budget allows"
            f" ({settings.budget.daily_usd} USD per UTC day).{notice}"
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, storage: StorageResource, judge: JudgeResource, budget: BudgetResource
    ) -> dg.SensorResult | dg.SkipReason:
        if disabled:
            return dg.SkipReason(disabled)
        from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts

        now = clock()
        try:
            pending = find_pending_verdicts(
                storage.sinks().postgres,
                judge.config(budget),
                now=now,
                settle_for=timedelta(minutes=settings.judge.settle_minutes),
                lookback=timedelta(days=settings.judge.lookback_days),
                give_up_after=settings.judge.give_up_after,
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        number = pluralize(len(pending.abandoned), "verdict")
        abandoned = f" {number} abandoned: see the check {ABANDONED_VERDICTS.name}." if pending.abandoned else ""
        if pending.shortfall:
            spent, reserved = pending.spent.spent, pending.spent.reserved
            return dg.SkipReason(
                f"Today (UTC) {spent.usd:.4f} USD and {spent.tokens} tokens are spent, and {reserved.usd:.4f} USD and"
                f" {reserved.tokens} tokens are reserved: {pending.shortfall}. The rest is judged when the budget"
                f" allows: tomorrow, or with a higher cap.{abandoned}"
            )
        # A partition that was captured before TRAJECTORY_START moved is no partition any more: Dagster would refuse the
        # whole tick for it.
        hours = [
            hour
            for key in pending.partition_keys
            if floor_to_hour(settings.capture.start) <= (hour := parse_partition_key(key)) <= floor_to_hour(now)
        ]
        # Wait for capture too: a verdict on what is being captured again would be stale at once.
        due, held_back = due_hours(context.instance, hours, REFINEMENT, [*CAPTURE, *REFINEMENT], now)
        if due:
            batch = refinement_batch(settings.dagster.backfill_batch)
            return dg.SensorResult(run_requests=run_requests(due, REFINEMENT, batch, "verdicts are missing"))
        without = pluralize(len(pending.partition_keys), "partition")
        return dg.SkipReason(f"{without} without verdicts{held_back}.{abandoned}")

    return refinement_sensor
