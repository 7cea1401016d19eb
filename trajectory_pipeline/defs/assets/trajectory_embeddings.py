"""Asset ``trajectory_embeddings``: the text by which each trajectory is found, and its embedding, in Postgres."""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.assets.partition_runner import MaterializeResults, Metadata, materialize_partitions
from trajectory_pipeline.defs.assets.stage import stage_asset
from trajectory_pipeline.defs.metadata import embeddings_metadata
from trajectory_pipeline.defs.resources import BudgetResource, EmbeddingResource, StorageResource
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import LETTA, parse_partition_key
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.schema.versions import SEARCH_TEXT_VERSION
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize


def embedding_batch(backfill_batch: int) -> int:
    """Return the most partitions that one run embeds, where a run of capture takes ``backfill_batch``.

    Another number than those of the other stages, because Dagster puts assets with one backfill policy into one run.
    """
    return 2 * backfill_batch


def build_trajectory_embeddings(
    settings: Settings, partitions: dg.PartitionsDefinition[str], source: str = LETTA
) -> dg.AssetsDefinition:
    """Return the asset, with the check of its embeddings."""
    disabled = settings.embedding.disabled_reason(settings.judge)
    notice = f"\n\n**Texts without embeddings.** {disabled}" if disabled else ""

    @stage_asset(
        settings,
        TRAJECTORY_EMBEDDINGS,
        partitions,
        source=source,
        stage="embed",
        fresh=False,
        pool="embed",
        partitions_per_run=embedding_batch(settings.dagster.backfill_batch),
        versions={"text": SEARCH_TEXT_VERSION},
        postgres_table=TRAJECTORY_EMBEDDINGS.name,
        description=f"The text by which each trajectory is found, and its embedding.{notice}",
        in_parquet=False,
        # Texts are made without verdicts too; the order saves making them twice.
        deps=[asset_key(TRAJECTORIES.name, source), asset_key(REFINED_OUTCOMES.name, source)],
        kinds={"postgres"},
        check_specs=asset_checks.checks_of(TRAJECTORY_EMBEDDINGS.name, source),
    )
    def trajectory_embeddings(
        context: dg.AssetExecutionContext,
        storage: StorageResource,
        embedding: EmbeddingResource,
        budget: BudgetResource,
    ) -> MaterializeResults:
        from trajectory_pipeline.pipeline.embed import EmbeddingRun

        errors: dict[str, str] = {}
        try:
            sinks = storage.sinks()
            embedder, reason = embedding.embedder(budget)
            run = EmbeddingRun(
                sinks,
                embedder,
                embedding.redactor(sinks),
                disabled_reason=reason,
                dagster_run_id=context.run.run_id,
                progress=context.log.info,
            )
            # All partitions together: a call takes texts of several.
            run.embed_partitions([parse_partition_key(key) for key in context.partition_keys])
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        stats = run.stats
        context.log.info(
            f"{pluralize(run.rendered, 'text')} made, {stats.embedded} embedded, {run.reused} with the embedding of an"
            f" equal text; {pluralize(stats.calls, 'call')}, {stats.cost_usd} USD"
        )

        def publish(hour: datetime) -> Metadata:
            result = run.publish(hour)
            errors.update(result.errors)
            return embeddings_metadata(result)

        def check_results(_: Sequence[datetime]) -> list[dg.AssetCheckResult]:
            return [asset_checks.failed_embeddings(errors)]

        yield from materialize_partitions(context, publish, check_results)

    return trajectory_embeddings
