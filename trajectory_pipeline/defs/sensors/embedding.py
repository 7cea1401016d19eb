"""The embedding sensor: requests partitions whose search texts or embeddings are missing or stale.

Like the others, it compares states: what the ledger says of a partition's embeddings with its trajectories, its
verdicts, the model and the rendering, whatever its age.
"""

import dagster as dg

from trajectory_pipeline.defs.asset_keys import CAPTURE, EMBEDDING, REFINEMENT
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
from trajectory_pipeline.partition_keys import floor_to_hour, parse_partition_key
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

EMBEDDING_SENSOR = "embedding_sensor"


def build_embedding_sensor(settings: Settings, clock: Clock = utc_now) -> dg.SensorDefinition:
    """Return the sensor."""
    disabled = settings.embedding.disabled_reason(settings.judge)
    notice = f"\n\n**Texts without embeddings.** {disabled}" if disabled else ""

    @dg.sensor(
        name=EMBEDDING_SENSOR,
        job_name=TRAJECTORY_JOB,
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
        hours = [hour for key in pending.partition_keys if first <= (hour := parse_partition_key(key)) <= last]
        # After capture and judging: a text that is made before its verdict is made twice.
        due, held_back = due_hours(
            context.instance, hours, EMBEDDING, [*CAPTURE, *REFINEMENT, *EMBEDDING], now, entries
        )
        requests = run_requests(
            due, EMBEDDING, embedding_batch(settings.dagster.backfill_batch), "texts or embeddings are stale"
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
