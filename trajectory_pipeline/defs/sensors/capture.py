"""The capture sensor compares states: what is not as the source has it is found by looking, not by remembering.

Belongs here: which partitions a tick compares. Does not belong here: the query (``pipeline.stale_partitions``), and
what makes run requests of the hours that are due (``defs.sensors.run_requests``).

A lost tick, a crash or a restored backup heals itself: the next tick sees what is not as it should be. A cursor is a
hint of where to go on looking; delete it, and nothing is lost.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.assets.assets import CAPTURE
from trajectory_pipeline.defs.jobs import JOB_NAME
from trajectory_pipeline.defs.resources import PipelineResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    Clock,
    default_status,
    due_hours,
    hours_requested,
    run_requests,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError, SourceTimeoutError
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, hours_between, parse_partition_key, partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.letta.snapshot import LettaSource

CAPTURE_SENSOR = "capture_sensor"

RECENT = timedelta(hours=48)
"""Compared at every tick."""
OLDER_AT_ONCE = 240
"""Older partitions that one tick compares, in turn: ten days of them. A year goes round in about twenty minutes, ten
years (87,600 hours) in three hours; with a quarter of it at once, ten years still take no more than half a day."""
LARGEST_DIVISOR = 256
"""A tick of a source that is too slow compares one recent and one older hour at the least."""
SECONDS_A_QUERY = 120
"""That a tick waits for the source at most: the daemon gives up on a whole tick after 300 s, and nobody learns why."""


@dataclass(frozen=True)
class Cursor:
    """Where the older part of the history was left, and how much a tick compares.

    Attributes:
        older_to: the hour that the next older part ends before; None at the beginning of a round.
        divisor: what the usual number of hours is divided by: more than 1 where the source is too slow for it.
    """

    older_to: datetime | None = None
    divisor: int = 1

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """Return the cursor that a text names; whatever cannot be read is the beginning of a round."""
        key, _, divisor = (text or "").partition(" / ")
        try:
            older_to = parse_partition_key(key) if key else None
            return cls(older_to, min(max(int(divisor or 1), 1), LARGEST_DIVISOR))
        except (PipelineError, ValueError):
            return cls()

    def text(self) -> str | None:
        """Return it as Dagster keeps it: ``2026-11-21-09:00``, or ``2026-11-21-09:00 / 4``."""
        place = partition_key(self.older_to) if self.older_to else ""
        return f"{place} / {self.divisor}" if self.divisor > 1 else place or None

    def slower(self) -> "Cursor":
        """Return the cursor after a tick that took too long: half as much at once, from the same place on."""
        return replace(self, divisor=min(self.divisor * 2, LARGEST_DIVISOR))

    def faster(self) -> "Cursor":
        """Return the cursor after a tick that was quick: twice as much at once, up to the usual."""
        return replace(self, divisor=max(self.divisor // 2, 1))


def hours_to_compare(now: datetime, start: datetime, cursor: Cursor) -> tuple[list[datetime], Cursor]:
    """Return the hours that a tick compares, the open one included, and the cursor for the next tick.

    Args:
        now: aware.
        start: first partition.
        cursor: what the last tick left; a hint.
    """
    open_hour = floor_to_hour(now)
    recent = max(RECENT // HOUR // cursor.divisor, 1)
    recent_from = max(floor_to_hour(start), open_hour - recent * HOUR)
    older_to = min(cursor.older_to or recent_from, recent_from)
    if older_to <= floor_to_hour(start):
        older_to = recent_from
    older_from = max(floor_to_hour(start), older_to - max(OLDER_AT_ONCE // cursor.divisor, 1) * HOUR)
    hours = sorted({*hours_between(older_from, older_to), *hours_between(recent_from, open_hour + HOUR)})
    return hours, replace(cursor, older_to=older_from)


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
        from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions

        now = clock()
        before = Cursor.read(context.cursor)
        hours, after = hours_to_compare(now, settings.capture.start, before)
        began = time.monotonic()
        try:
            stale = find_stale_partitions(
                tick_source(pipeline), pipeline.database, hours, pipeline.settings.capture.deleted_content
            )
        except SourceTimeoutError as error:
            # The smallest part that is still too much is passed over: the rest of the history must not wait for it.
            later = after if before.divisor == LARGEST_DIVISOR else before.slower()
            return dg.SensorResult(
                skip_reason=dg.SkipReason(f"{error} {pluralize(len(hours), 'partition')} at once; fewer next time."),
                cursor=later.text(),
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        if time.monotonic() - began < SECONDS_A_QUERY / 4:
            after = after.faster()
        found = f"{pluralize(len(hours), 'partition')} compared, {len(stale)} differ"
        due, held_back = due_hours(context.instance, stale, CAPTURE, CAPTURE, now)
        requested = run_requests(due, CAPTURE, settings.dagster.backfill_batch, "the source changed")
        return dg.SensorResult(
            run_requests=requested,
            asset_events=_observations(pipeline, hours_requested(requested, due)),
            cursor=after.text(),
            skip_reason=None if due else dg.SkipReason(f"{found}{held_back}."),
        )

    return capture_sensor


def _observations(pipeline: PipelineResource, hours: Sequence[datetime]) -> list[dg.AssetObservation]:
    """Return an observation for each partition that was captured and is stale: the UI shows it before the run begins.

    One that was never captured is not stale: it is missing, and shown so.
    """
    keys = [partition_key(hour) for hour in hours]
    captured = pipeline.database.ledger(TERMINAL_RUNS.name, keys) if keys else {}
    return [
        dg.AssetObservation(
            TERMINAL_RUNS.name,
            description="Stale: the source is not what was captured. Requested.",
            partition=key,
            metadata={
                "stale": True,
                "captured_at": dg.MetadataValue.timestamp(captured[key]["materialized_at"]),
                "runs_then": captured[key]["counts"].get("runs"),
            },
        )
        for key in keys
        if key in captured
    ]


def tick_source(pipeline: PipelineResource) -> "LettaSource":
    """Return the source, with no more patience than a tick may have."""
    timeout = min(SECONDS_A_QUERY, pipeline.settings.source.timeout_seconds)
    return replace(pipeline.source, timeout_seconds=timeout)


def sensor_is_on(instance: dg.DagsterInstance, settings: Settings) -> bool:
    """Whether the capture sensor runs: as somebody set it in the UI, else as the settings have it by default."""
    states = {state.instigator_name: state for state in instance.all_instigator_state()}
    state = states.get(CAPTURE_SENSOR)
    return settings.capture.enabled if state is None else state.is_running
