"""The capture sensor: requests the partitions that differ from the source, found by comparing fingerprints.

It compares states and remembers no events, so a lost tick, a crash or a restored backup heals itself: the next tick
finds what differs. The cursor only says where to continue; deleting it loses nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.asset_keys import asset_key, capture_keys
from trajectory_pipeline.defs.resources import SourcesResource, StorageResource
from trajectory_pipeline.defs.sensors.run_requests import (
    SECONDS_BETWEEN_TICKS,
    TRAJECTORY_JOB,
    Clock,
    default_status,
    due_hours,
    hours_requested,
    run_requests,
    suspect_hours,
    utc_now,
)
from trajectory_pipeline.errors import PipelineError, SourceTimeoutError
from trajectory_pipeline.partition_keys import (
    HOUR,
    LETTA,
    at_source,
    floor_to_hour,
    hours_between,
    name_at,
    parse_partition_key,
    partition_key,
    source_of,
)
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.source_protocol import Source
    from trajectory_pipeline.storage.postgres.partition_writer import StoredEntry

CAPTURE_SENSOR = "capture_sensor"

RECENT = timedelta(hours=48)
"""Compared every tick."""
OLDER_PER_TICK = 240
"""Older partitions that one tick compares, in turn. A round over a year takes about 20 minutes, over ten years (87,600
hours) three hours; at a quarter of this number, half a day."""
MAX_DIVISOR = 256
"""With it, a tick of a slow source compares one recent and one older hour."""
QUERY_TIMEOUT_SECONDS = 120
"""The daemon ends a whole tick after 300 s without a reason: the query must time out before."""


@dataclass(frozen=True)
class Cursor:
    """Where the next tick continues in the older history, and how much it compares."""

    older_to: datetime | None = None
    """End of the next older part, exclusive; None at the start of a round."""
    divisor: int = 1
    """Divides the usual number of hours; more than 1 where the source is too slow."""

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """Parse a cursor; any other text is the start of a round."""
        key, _, divisor = (text or "").partition(" / ")
        try:
            older_to = parse_partition_key(key) if key else None
            return cls(older_to, min(max(int(divisor or 1), 1), MAX_DIVISOR))
        except (PipelineError, ValueError):
            return cls()

    def text(self) -> str | None:
        """Return the text that Dagster stores: ``2026-11-21-09:00``, or ``2026-11-21-09:00 / 4``."""
        key = partition_key(self.older_to) if self.older_to else ""
        return f"{key} / {self.divisor}" if self.divisor > 1 else key or None

    def slower(self) -> "Cursor":
        """Return the cursor after a tick that timed out: half as many hours, from the same point."""
        return replace(self, divisor=min(self.divisor * 2, MAX_DIVISOR))

    def faster(self) -> "Cursor":
        """Return the cursor after a quick tick: twice as many hours, up to the usual number."""
        return replace(self, divisor=max(self.divisor // 2, 1))


def hours_to_compare(now: datetime, start: datetime, cursor: Cursor) -> tuple[list[datetime], Cursor]:
    """Return the hours that a tick compares, the open one included, and the cursor for the next tick."""
    open_hour, first_hour = floor_to_hour(now), floor_to_hour(start)
    recent_from = max(first_hour, open_hour - max(RECENT // HOUR // cursor.divisor, 1) * HOUR)
    older_to = min(cursor.older_to or recent_from, recent_from)
    if older_to <= first_hour:
        older_to = recent_from
    older_from = max(first_hour, older_to - max(OLDER_PER_TICK // cursor.divisor, 1) * HOUR)
    hours = sorted({*hours_between(older_from, older_to), *hours_between(recent_from, open_hour + HOUR)})
    return hours, replace(cursor, older_to=older_from)


def build_capture_sensor(settings: Settings, clock: Clock = utc_now, source: str = LETTA) -> dg.SensorDefinition:
    """Return the sensor of a source."""

    @dg.sensor(
        name=name_at(CAPTURE_SENSOR, source),
        job_name=name_at(TRAJECTORY_JOB, source),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description=(
            "Requests the partitions whose rows in the source differ from what was captured: new, late, edited and"
            f" deleted rows, the open hour included. Compares the last {RECENT // HOUR} hours every tick, and older"
            " ones in turn."
        ),
    )
    def capture_sensor(
        context: dg.SensorEvaluationContext, sources: SourcesResource, storage: StorageResource
    ) -> dg.SensorResult | dg.SkipReason:
        now, capture = clock(), capture_keys(source)
        before = Cursor.read(context.cursor)
        hours, after = hours_to_compare(now, settings.capture.start, before)
        hours = [at_source(hour, source) for hour in hours]
        started = time.monotonic()
        try:
            stale = find_stale_in_tick(source_in_tick(sources, source), storage, hours, settings)
            captured = storage.sinks().postgres.ledger(TERMINAL_RUNS.name, [partition_key(hour) for hour in stale])
        except SourceTimeoutError as error:
            # Even the smallest part is too slow: skip it, so that the rest of the history is compared.
            cursor = after if before.divisor == MAX_DIVISOR else before.slower()
            return dg.SensorResult(
                skip_reason=dg.SkipReason(f"{error} {pluralize(len(hours), 'partition')} at once; fewer next time."),
                cursor=cursor.text(),
            )
        except PipelineError as error:
            return dg.SkipReason(str(error))
        if time.monotonic() - started < QUERY_TIMEOUT_SECONDS / 4:
            after = after.faster()
        due, held_back = due_hours(context.instance, stale, capture, capture, now, captured)
        alone = suspect_hours(context.instance, capture, now) if due else ()
        requests = run_requests(due, capture, settings.dagster.backfill_batch, "the source changed", alone)
        compared = f"{pluralize(len(hours), 'partition')} compared, {len(stale)} stale"
        return dg.SensorResult(
            run_requests=requests,
            # Dagster keeps these for good, and the open hour is stale all the time.
            asset_events=_observations([h for h in hours_requested(requests, due) if h < floor_to_hour(now)], captured),
            cursor=after.text(),
            skip_reason=None if due else dg.SkipReason(f"{compared}{held_back}."),
        )

    return capture_sensor


def _observations(hours: Sequence[datetime], captured: Mapping[str, "StoredEntry"]) -> list[dg.AssetObservation]:
    """Return an observation for each captured partition that is stale: the UI shows it before the run begins.

    A partition that was never captured is missing, and shown so.
    """
    return [
        dg.AssetObservation(
            asset_key(TERMINAL_RUNS.name, source_of(hour)),
            description="Stale: the source differs from what was captured. Requested.",
            partition=key,
            metadata={
                "stale": True,
                "captured_at": dg.MetadataValue.timestamp(captured[key].materialized_at),
                "runs_captured": captured[key].counts.get("runs"),
            },
        )
        for hour in hours
        if (key := partition_key(hour)) in captured
    ]


def source_in_tick(sources: SourcesResource, name: str) -> "Source":
    """Return a source with the shorter timeout of a tick. Raises what ``SourcesResource.source`` raises."""
    return sources.source(name, max_timeout_seconds=QUERY_TIMEOUT_SECONDS)


def find_stale_in_tick(
    source: "Source", storage: StorageResource, hours: Sequence[datetime], settings: Settings
) -> list[datetime]:
    """Return the stale hours.

    Raises:
        PipelineError: the source or the ledger cannot be read.
    """
    from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions

    return find_stale_partitions(source, storage.sinks().postgres, hours, settings.capture.deleted_content)


def capture_sensor_is_on(instance: dg.DagsterInstance, settings: Settings, source: str = LETTA) -> bool:
    """Return whether a source's capture sensor runs: as set in the UI, else by default."""
    states = {state.instigator_name: state.is_running for state in instance.all_instigator_state()}
    return states.get(name_at(CAPTURE_SENSOR, source), settings.capture.enabled)
