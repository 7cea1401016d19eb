"""The embedding sensor: requests partitions whose search texts or embeddings are missing or stale.

Like the others, it compares states: what the ledger says of a partition's embeddings with its trajectories, its
verdicts, the model and the rendering, whatever its age.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import capture_keys, embedding_keys, refinement_keys
from trajectory_pipeline.defs.assets.trajectory_embeddings import embedding_batch
from trajectory_pipeline.defs.resources import BudgetResource, EmbeddingResource, StorageResource
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
from trajectory_pipeline.partition_keys import LETTA, floor_to_hour, hours_of, name_at, parse_partition_key
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

EMBEDDING_SENSOR = "embedding_sensor"


def build_embedding_sensor(settings: Settings, clock: Clock = utc_now, source: str = LETTA) -> dg.SensorDefinition:
    """Return the sensor of a source."""
    embedding_assets = embedding_keys(source)
    before = [*capture_keys(source), *refinement_keys(source), *embedding_assets]
    disabled = settings.embedding.disabled_reason(settings.judge)
    notice = f"\n\n**Texts without embeddings.** {disabled}" if disabled else ""

    @dg.sensor(
        name=name_at(EMBEDDING_SENSOR, source),
        job_name=name_at(TRAJECTORY_JOB, source),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=default_status(settings),
        description="Requests the partitions whose search texts or embeddings are missing or stale: new trajectories,"
        f" new verdicts, another model.{notice}",
    )
    def embedding_sensor(
        storage: StorageResource,
        embedding: EmbeddingResource,
        budget: BudgetResource,
        context: dg.SensorEvaluationContext,
    ) -> dg.SensorResult | dg.SkipReason:
        from trajectory_pipeline.pipeline.pending_embeddings import find_pending_embeddings

        now = clock()
        first, last = floor_to_hour(settings.capture.start), floor_to_hour(now)
        try:
            sinks = storage.sinks()
            embedder, _ = embedding.embedder(budget)
            pending = find_pending_embeddings(sinks.postgres, embedder, embedding.redactor(sinks), now)
            entries = sinks.postgres.ledger(TRAJECTORY_EMBEDDINGS.name, pending.partition_keys)
        except PipelineError as error:
            return dg.SkipReason(str(error))
        # A partition that was captured before TRAJECTORY_START moved is no partition any more.
        wanted = hours_of(source, map(parse_partition_key, pending.partition_keys))
        hours = [hour for hour in wanted if first <= hour <= last]
        # After capture and judging: a text that is made before its verdict is made twice.
        due, held_back = due_hours(context.instance, hours, embedding_assets, before, now, entries)
        requests = run_requests(
            due, embedding_assets, embedding_batch(settings.dagster.backfill_batch), "texts or embeddings are stale"
        )
        if requests:
            return dg.SensorResult(run_requests=requests)
        message = f"{pluralize(len(hours), 'partition')} with stale texts or embeddings{held_back}."
        if pending.missing:
            message += f" {pending.missing}."
        if pending.shortfall:
            message += f" What has no embedding waits, until tomorrow or a higher cap: {pending.shortfall}."
        return dg.SkipReason(message)

    return embedding_sensor
