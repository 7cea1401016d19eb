"""Asset ``refined_outcomes``: a verdict on each trajectory, in Postgres and Parquet."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.asset_keys import asset_key
from trajectory_pipeline.defs.assets.partition_runner import MaterializeResults, Metadata, materialize_partitions
from trajectory_pipeline.defs.assets.stage import stage_asset
from trajectory_pipeline.defs.launch_config import RefinementConfig, require_policy
from trajectory_pipeline.defs.metadata import preview_metadata, refined_outcomes_metadata
from trajectory_pipeline.defs.resources import BudgetResource, JudgeResource, StorageResource
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.prompt import built_in_prompt
from trajectory_pipeline.partition_keys import LETTA, parse_partition_key, partition_key
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES, VERDICT_ATTEMPTS, VERDICTS
from trajectory_pipeline.settings import Settings

if TYPE_CHECKING:
    from trajectory_pipeline.budget.caps import Cap, SpendTotals

_LISTED_CALLS = 10
PUBLISH_ONLY_TAG = "trajectory/publish_only"
"""Tag of a Dagster run that writes files from stored verdicts and asks no judge."""
COLLECT_TAG = "trajectory/collect_batches"
"""Tag of a Dagster run that collects batches that ended, and asks the judge nothing else."""


def refinement_batch(backfill_batch: int) -> int:
    """Return the most partitions that one run judges, where a run of capture takes ``backfill_batch``.

    Fewer, because a judge is slow and Dagster records a range only at its end. And a different number, because Dagster
    puts assets with one backfill policy into one run: there, a bad partition would keep the whole range from being
    judged.
    """
    return max(1, backfill_batch // 4)


def build_refined_outcomes(
    settings: Settings, partitions: dg.PartitionsDefinition[str], source: str = LETTA
) -> dg.AssetsDefinition:
    """Return the asset, with the checks of its verdicts, cost, columns and ids."""
    disabled = settings.judge.disabled_reason
    notice = f"\n\n**Not requested automatically.** {disabled}" if disabled else ""
    lookback = timedelta(days=settings.judge.lookback_days)
    prompt = built_in_prompt()

    @stage_asset(
        settings,
        REFINED_OUTCOMES,
        partitions,
        source=source,
        stage="judge",
        fresh=not disabled,
        pool="judge",
        partitions_per_run=refinement_batch(settings.dagster.backfill_batch),
        versions={"prompt": prompt.version, "rubric": prompt.rubric_version, "schema": SCHEMA_VERSION},
        postgres_table="verdicts",
        description=REFINED_OUTCOMES.description + notice,
        deps=[asset_key(TRAJECTORIES.name, source)],
        kinds={"parquet", "postgres", "openai"},
        check_specs=asset_checks.checks_of(REFINED_OUTCOMES.name, source),
    )
    def refined_outcomes(
        context: dg.AssetExecutionContext,
        config: RefinementConfig,
        storage: StorageResource,
        judge: JudgeResource,
        budget: BudgetResource,
    ) -> MaterializeResults:
        from trajectory_pipeline.pipeline.judge import JudgingRun
        from trajectory_pipeline.pipeline.pending_verdicts import find_abandoned_verdicts
        from trajectory_pipeline.pipeline.repeated_runs import find_repeated_runs
        from trajectory_pipeline.storage.declared_schema import schema_differences
        from trajectory_pipeline.storage.postgres.spend_ledger import day_of
        from trajectory_pipeline.storage.postgres.summaries import calls_above_reservation, failed_verdicts

        hours = [parse_partition_key(key) for key in context.partition_keys]
        try:
            judging = JudgingRun(
                storage.sinks(),
                judge.config(budget),
                order=config.order or settings.judge.order,
                limit=config.limit,
                dagster_run_id=context.run.run_id,
                progress=context.log.info,
                publish_only=context.run.tags.get(PUBLISH_ONLY_TAG) == "true",
                collect_only=context.run.tags.get(COLLECT_TAG) == "true",
                mode=config.mode or settings.judge.mode,
                run_ids=config.run_ids and frozenset(config.run_ids),
            )
            require_policy(config, judging.judge.policy.policy_id)
            if not (judging.publish_only or judging.collect_only):
                judging.judge.require_price()
                context.log.info(" ".join(judging.estimate(hours, lookback, render=False).sentences()))
            # All partitions together, in the configured order: one alone may be too small to keep a judge busy.
            judging.judge_partitions(hours)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        errors: Counter[str] = Counter()
        caps: dict[tuple[str, str], tuple[Cap, SpendTotals]] = {}

        def publish(hour: datetime) -> Metadata:
            result = judging.publish(hour)
            errors.update(result.errors)
            caps.update({(cap.name, cap.label): (cap, totals) for cap, totals in result.caps})
            if result.cut_prompts:
                context.log.warning(
                    f"By its own token counts, the judge's server did not read {result.cut_prompts} of its prompts to"
                    " their end: raise its context length, or lower TRAJECTORY_JUDGE_MAX_PROMPT_TOKENS. The coverage of"
                    " these verdicts says how much it can have read."
                )
            return {
                **refined_outcomes_metadata(result),
                **preview_metadata(judging.storage.parquet, REFINED_OUTCOMES, hour),
            }

        def check_results(done: Sequence[datetime]) -> list[dg.AssetCheckResult]:
            database = judging.storage.postgres
            abandoned = find_abandoned_verdicts(
                database,
                judging.judge.policy,
                ended_since=datetime.now(UTC) - lookback,
                give_up_after=settings.judge.give_up_after,
            )
            failed = failed_verdicts(database, list(map(partition_key, done))) if errors else {}
            above = calls_above_reservation(database, day_of(database.now()), _LISTED_CALLS)
            differences = schema_differences(judging.storage, REFINED_OUTCOMES, done, [VERDICTS, VERDICT_ATTEMPTS])
            repeated = find_repeated_runs(REFINED_OUTCOMES, done, judging.storage)
            return [
                asset_checks.failed_verdicts(errors, failed),
                asset_checks.abandoned_verdicts(abandoned),
                asset_checks.cost(list(caps.values()), above),
                asset_checks.schema(differences),
                asset_checks.unique(repeated),
            ]

        yield from materialize_partitions(context, publish, check_results)

    return refined_outcomes
