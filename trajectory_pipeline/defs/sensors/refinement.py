"""The refinement sensor: requests partitions whose trajectories lack a verdict, or whose file lacks stored verdicts.

Like the capture sensor, it compares states: those within the lookback every tick, and older files in turn. Its cursor
only says where to continue.
"""

from datetime import timedelta

import dagster as dg

from trajectory_pipeline.defs.asset_checks import ABANDONED_VERDICTS
from trajectory_pipeline.defs.asset_keys import capture_keys, refinement_keys
from trajectory_pipeline.defs.assets.refined_outcomes import PUBLISH_ONLY_TAG, refinement_batch
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
from trajectory_pipeline.partition_keys import (
    HOUR,
    LETTA,
    at_source,
    floor_to_hour,
    hours_between,
    hours_of,
    name_at,
    parse_partition_key,
    partition_key,
)
from trajectory_pipeline.schema.enums import JudgeMode
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

REFINEMENT_SENSOR = "refinement_sensor"
OLDER_PER_TICK = 240
"""Partitions older than the lookback whose files one tick compares, in turn."""


def build_refinement_sensor(settings: Settings, clock: Clock = utc_now, source: str = LETTA) -> dg.SensorDefinition:
    """Return the sensor of a source."""
    refinement, before = refinement_keys(source), [*capture_keys(source), *refinement_keys(source)]
    disabled = settings.judge.disabled_reason
    notice = f"\n\n**Requests nothing.** {disabled}" if disabled else ""

    minutes = timedelta(minutes=settings.judge.batch_minutes)
    between_batches = minutes if settings.judge.mode == JudgeMode.BATCH else None

    @dg.sensor(
        name=name_at(REFINEMENT_SENSOR, source),
        job_name=name_at(TRAJECTORY_JOB, source),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests the partitions whose trajectories have no verdict under the current policy: unchanged for"
            f" {pluralize(settings.judge.settle_minutes, 'minute')}, at most"
            f" {pluralize(settings.judge.lookback_days, 'day')} old, as far as the budget allows"
            f" ({settings.budget.daily_usd} USD per UTC day). Partitions of any age whose file does not hold the"
            f" verdicts that are stored are written again, without a call.{notice}"
        ),
    )
    def refinement_sensor(
        context: dg.SensorEvaluationContext, storage: StorageResource, judge: JudgeResource, budget: BudgetResource
    ) -> dg.SensorResult | dg.SkipReason:
        if disabled:
            return dg.SkipReason(disabled)
        from trajectory_pipeline.pipeline.pending_verdicts import find_pending_verdicts

        now = clock()
        first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
        recent = max(first, floor_to_hour(now - timedelta(days=settings.judge.lookback_days)))
        after = max(first, parse_partition_key(context.cursor)) if context.cursor else first
        older = list(hours_between(after, min(after + OLDER_PER_TICK * HOUR, recent)))
        cursor = partition_key(older[-1] + HOUR if len(older) == OLDER_PER_TICK else first)
        compared = [at_source(hour, source) for hour in (*older, *hours_between(recent, now))]
        try:
            pending = find_pending_verdicts(
                storage.sinks().postgres,
                judge.config(budget),
                now=now,
                settle_for=timedelta(minutes=settings.judge.settle_minutes),
                lookback=timedelta(days=settings.judge.lookback_days),
                give_up_after=settings.judge.give_up_after,
                compared=list(map(partition_key, compared)),
                between_batches=between_batches,
            )
            judged = storage.sinks().postgres.ledger(
                REFINED_OUTCOMES.name, [*pending.partition_keys, *pending.unpublished]
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        number = pluralize(len(pending.abandoned), "verdict")
        abandoned = f" {number} abandoned: see the check {ABANDONED_VERDICTS.name}." if pending.abandoned else ""
        # A partition that was captured before TRAJECTORY_START moved is no partition any more: Dagster would refuse the
        # whole tick for it.
        wanted = hours_of(source, map(parse_partition_key, pending.partition_keys))
        unjudged = [hour for hour in wanted if first <= hour <= last]
        waits = ""
        if pending.next_batch_at is not None and unjudged:
            minutes = -(-(pending.next_batch_at - now) // timedelta(minutes=1))
            unjudged, waits = [], f" The next batch is submitted in {pluralize(minutes, 'minute')}."
        lacking = hours_of(source, map(parse_partition_key, pending.unpublished))
        unpublished = [hour for hour in lacking if hour not in set(unjudged)]
        # Wait for capture too: a verdict on what is being captured again would be stale at once.
        due, held_back = due_hours(context.instance, [*unpublished, *unjudged], refinement, before, now, judged)
        # Submitting takes seconds: more hours in one run are fewer and larger batches.
        longest = settings.dagster.backfill_batch
        batch = refinement_batch(longest) if between_batches is None else longest
        requests = [
            *run_requests([hour for hour in due if hour in set(unjudged)], refinement, batch, "verdicts are missing"),
            *run_requests(
                [hour for hour in due if hour in set(unpublished)],
                refinement,
                batch,
                "the file does not hold the stored verdicts",
                tags={PUBLISH_ONLY_TAG: "true"},
            ),
        ]
        if requests:
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        message = (
            f"{pluralize(len(compared), 'partition')} compared, {len(pending.unpublished)} with a file that lacks"
            f" stored verdicts, {len(pending.partition_keys)} without verdicts{held_back}.{waits}{abandoned}"
        )
        if pending.shortfall:
            spent, reserved = pending.spent.spent, pending.spent.reserved
            message = (
                f"Today (UTC) {spent.usd:.4f} USD and {spent.tokens} tokens are spent, and {reserved.usd:.4f} USD and"
                f" {reserved.tokens} tokens are reserved: {pending.shortfall}. The rest is judged when the budget"
                f" allows: tomorrow, or with a higher cap.{abandoned}"
            )
        return dg.SensorResult(skip_reason=dg.SkipReason(message), cursor=cursor)

    return refinement_sensor
