"""The capture sensor compares states: what is not as the source has it is found by looking, not by remembering.

Belongs here: which partitions a tick compares. Does not belong here: the query (``stages.staleness``), and what makes
run requests of the hours that are due (``orchestration.requesting``).

A lost tick, a crash or a restored backup heals itself: the next tick sees what is not as it should be. A cursor is a
hint of where to go on looking; delete it, and nothing is lost.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import dagster as dg

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.hours import HOUR, floor, hour_of, hours_between, key_of
from trajectory_pipeline.orchestration.assets import CAPTURE
from trajectory_pipeline.orchestration.jobs import JOB_NAME
from trajectory_pipeline.orchestration.requesting import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_of,
    requests,
    utc_now,
)
from trajectory_pipeline.orchestration.resources import PipelineResource
from trajectory_pipeline.orchestration.words import counted
from trajectory_pipeline.settings import Settings

CAPTURE_SENSOR = "capture_sensor"

RECENT = timedelta(hours=48)
"""Compared at every tick."""
OLDER_AT_ONCE = 240
"""Older partitions that one tick compares, in turn: ten days of them; a year goes round in about twenty minutes."""
SECONDS_A_QUERY = 120
"""That a tick waits for the source at most: the daemon gives up on a whole tick after 300 s, and nobody learns why."""


def hours_to_compare(now: datetime, start: datetime, cursor: str | None) -> tuple[list[datetime], str]:
    """Return the hours that a tick compares, the open one included, and the cursor for the next tick.

    Args:
        now: aware.
        start: first partition.
        cursor: key of the hour that the last tick's older part ended before; whatever else it holds is ignored.
    """
    open_hour = floor(now)
    recent_from = max(floor(start), floor(now - RECENT))
    try:
        older_to = min(hour_of(cursor), recent_from) if cursor else recent_from
    except PipelineError:
        older_to = recent_from
    if older_to <= floor(start):
        older_to = recent_from
    older_from = max(floor(start), older_to - OLDER_AT_ONCE * HOUR)
    hours = sorted({*hours_between(older_from, older_to), *hours_between(recent_from, open_hour + HOUR)})
    return hours, key_of(older_from)


def build_capture_sensor(settings: Settings, clock: Clock | None = None) -> dg.SensorDefinition:
    """Return the sensor that requests partitions whose fingerprint in the source is not the ledger's.

    Args:
        settings: first partition, batch, and what runs by default.
        clock: the time, aware; by default the system's.
    """
    clock = clock or utc_now

    @dg.sensor(
        name=CAPTURE_SENSOR,
        job_name=JOB_NAME,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests the partitions whose rows in the source are not what was captured: new, late, edited and deleted"
            " rows alike, the open hour included. The last 48 hours at every tick, older ones in turn."
        ),
    )
    def capture_sensor(
        context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.stages.staleness import stale_hours

        now = clock()
        hours, cursor = hours_to_compare(now, settings.start, context.cursor)
        try:
            source = replace(
                pipeline.source, timeout_seconds=min(SECONDS_A_QUERY, pipeline.settings.source_timeout_seconds)
            )
            stale = stale_hours(source, pipeline.database, hours, pipeline.settings.deleted)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        found = f"{counted(len(hours), 'partition')} compared, {len(stale)} differ"
        due, held_back = due_of(context.instance, stale, CAPTURE, CAPTURE, now)
        return dg.SensorResult(
            run_requests=requests(due, CAPTURE, settings.backfill_batch, "the source changed"),
            cursor=cursor,
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}."),
        )

    return capture_sensor
