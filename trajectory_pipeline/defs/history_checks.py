"""Asset checks over many partitions, and their daily job: drift, failed verdicts, disagreement, and repeated runs.

They are of the report, because a check runs with each materialization of its asset, and a partition says nothing here.
Their job also runs the checks of ``quality_checks.py``. It does not make the report, which needs an extra.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from trajectory_pipeline.defs import asset_checks
from trajectory_pipeline.defs.assets.trajectory_report import REPORT
from trajectory_pipeline.defs.jobs.daily import ScheduledJob, scheduled_daily
from trajectory_pipeline.defs.metadata import bullet_list, markdown_table
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.quality.drift import ALPHA, MIN_RUNS, MIN_SHIFT, find_drift
from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.schema.enums import VerdictStatus
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.storage.postgres.mixes import Category

RECENT = timedelta(days=7)
EARLIER = timedelta(days=28)
MAX_DISAGREEMENT = 0.5
MAX_FAILED_VERDICTS = 0.05
_LISTED = 10
_FAILED = (VerdictStatus.FAILED, VerdictStatus.QUARANTINED)
_ANSWERED = (*_FAILED, VerdictStatus.JUDGED, VerdictStatus.INSUFFICIENT_EVIDENCE)

_DRIFT_TEST = (
    f"Chi-square test of the last {RECENT.days} days against the {EARLIER.days} days before, alpha {ALPHA}, at least"
    f" {MIN_RUNS} runs on each side, and a change of {MIN_SHIFT:.0%} of the runs."
)
OUTCOME_MIX = dg.AssetCheckSpec("outcome_mix_is_stable", asset=REPORT, description=f"Judged outcomes. {_DRIFT_TEST}")
TOOL_ERRORS = dg.AssetCheckSpec(
    "tool_error_rate_is_stable",
    asset=REPORT,
    description=f"Runs with a tool error, of those with tool calls. {_DRIFT_TEST}",
)
DISAGREEMENT = dg.AssetCheckSpec(
    "judge_agrees_with_heuristic",
    asset=REPORT,
    description=f"The 95 % interval of the share of last week's verdicts that differ from the heuristic outcome"
    f" reaches down to {MAX_DISAGREEMENT:.0%} or less.",
)
VERDICT_ERRORS = dg.AssetCheckSpec(
    "verdict_error_rate",
    asset=REPORT,
    description=f"The 95 % interval of the share of failed verdicts, of those that the judge was asked for, reaches"
    f" down to {MAX_FAILED_VERDICTS:.0%} or less. Also shows how many runs of the last week have a verdict.",
)


UNIQUE = asset_checks.unique_spec(REPORT)
_SPECS = (OUTCOME_MIX, TOOL_ERRORS, DISAGREEMENT, VERDICT_ERRORS, UNIQUE)
JOB_NAME = "history_checks_job"


def build_history_checks_job(settings: Settings) -> ScheduledJob:
    """Return the job that runs the checks, and its daily schedule, which runs by default where capture is enabled."""
    job = dg.define_asset_job(
        JOB_NAME,
        selection=dg.AssetSelection.checks_for_assets(REPORT),
        description="Compares the last weeks, tries the policy's gates, and looks for runs that are in two partitions.",
    )
    # After the report: Dagster shows a check as not evaluated where its asset has a newer materialization.
    return scheduled_daily(job, "05:45", running=settings.capture.enabled)


def build_history_checks() -> dg.AssetChecksDefinition:
    """Return the checks. Those over weeks look at whole days that are over, the one of repeated runs at every file."""

    @dg.multi_asset_check(name="history_checks", specs=_SPECS)
    def history_checks(storage: StorageResource) -> Iterator[dg.AssetCheckResult]:
        from trajectory_pipeline.pipeline.repeated_runs import find_repeated_runs
        from trajectory_pipeline.storage.parquet.cleanup import hours_with_folders
        from trajectory_pipeline.storage.postgres.mixes import count_mixes

        end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        first, recent_first, after_last = map(partition_key, (end - RECENT - EARLIER, end - RECENT, end))
        try:
            with storage.sinks().pooled() as sinks:
                categories = count_mixes(sinks.postgres, first, recent_first, after_last, _LISTED)
                hours = hours_with_folders(sinks.parquet, TRAJECTORIES)
                # A run that moved is in both files until the one that it left is materialized again.
                waiting = sinks.postgres.invalidations(list(map(partition_key, hours)))
                settled = [hour for hour in hours if partition_key(hour) not in waiting]
                repeated = find_repeated_runs(TRAJECTORIES, settled, sinks)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        yield from evaluate(categories)
        yield asset_checks.unique(repeated, dg.AssetKey(REPORT))

    return history_checks


def evaluate(categories: "Sequence[Category]") -> Iterator[dg.AssetCheckResult]:
    """Yield the result of each check from the counts of both periods."""
    yield _drift(OUTCOME_MIX, categories, "outcome")
    yield _drift(TOOL_ERRORS, categories, "tools")
    recent = [one for one in categories if one.recent]
    yield _share(DISAGREEMENT, recent, "agreement", ("disagrees",), ("agrees", "disagrees"), MAX_DISAGREEMENT)
    yield _share(VERDICT_ERRORS, recent, "verdict", _FAILED, _ANSWERED, MAX_FAILED_VERDICTS)


def _drift(spec: dg.AssetCheckSpec, categories: "Sequence[Category]", measure: str) -> dg.AssetCheckResult:
    """Return whether the mix of a measure is that of the weeks before."""
    of_measure = [one for one in categories if one.measure == measure]
    recent, earlier = ({one.category: one.runs for one in of_measure if one.recent is side} for side in (True, False))
    drift = find_drift(recent, earlier)
    counts = (sum(recent.values()), sum(earlier.values()))
    if drift.p_value is None:
        description = f"Too few runs to compare: {counts[0]} and {counts[1]}, where {MIN_RUNS} each are needed"
    else:
        description = f"{drift.shift:.1%} of the runs changed their category, p = {drift.p_value:.2g}"
    run_ids: list[str] = []
    if drift.found:
        run_ids = next(one.first_run_ids for one in of_measure if one.recent and one.category == drift.grown)
        description += (
            f". Most grew {drift.grown!r}, now {pluralize(recent[drift.grown], 'run')}, first {run_ids[0]}."
            " Compare agents, models and tools of the two periods in the report"
        )
    rows = [(name, recent.get(name, 0), earlier.get(name, 0)) for name in sorted(recent.keys() | earlier.keys())]
    return _result(
        spec,
        passed=not drift.found,
        description=description,
        run_ids=run_ids,
        metadata={
            "counts": markdown_table([measure, f"last {RECENT.days} days", f"{EARLIER.days} days before"], rows),
            "shift": drift.shift,
            **({} if drift.p_value is None else {"p_value": drift.p_value}),
        },
    )


def _share(
    spec: dg.AssetCheckSpec,
    recent: "Sequence[Category]",
    measure: str,
    counted: Sequence[str],
    of: Sequence[str],
    highest: float,
) -> dg.AssetCheckResult:
    """Return whether the share of some categories can be as low as the highest that passes, by its 95 % interval."""
    of_measure = {one.category: one for one in recent if one.measure == measure}
    count, total = (sum(one.runs for name, one in of_measure.items() if name in chosen) for chosen in (counted, of))
    interval = wilson_interval(count, total)
    passed = interval is None or total < MIN_RUNS or interval[0] <= highest
    run_ids = sorted(run_id for name, one in of_measure.items() if name in counted for run_id in one.first_run_ids)
    description = f"{count} of {total}"
    if interval is not None:
        description += f", {count / total:.1%}, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}"
    if total < MIN_RUNS:
        description += f". Too few to say more: {MIN_RUNS} are needed"
    if not passed:
        description += f". First {run_ids[0]}: read it with trajectory-pipeline explain; see docs/runbook.md"
    return _result(
        spec,
        passed=passed,
        description=description,
        run_ids=[] if passed else run_ids[:_LISTED],
        metadata={
            "counts": markdown_table([measure, "runs"], [(name, one.runs) for name, one in sorted(of_measure.items())]),
            **({"coverage": _judged_share(of_measure)} if measure == "verdict" and of_measure else {}),
            **({} if interval is None else {"share": count / total, "lowest": interval[0], "highest": interval[1]}),
        },
    )


def _judged_share(verdicts: "Mapping[str, Category]") -> float:
    judged = sum(one.runs for name, one in verdicts.items() if name == VerdictStatus.JUDGED)
    return judged / sum(one.runs for one in verdicts.values())


def _result(
    spec: dg.AssetCheckSpec, *, passed: bool, description: str, run_ids: Sequence[str], metadata: Mapping[str, Any]
) -> dg.AssetCheckResult:
    advice = asset_checks.what_to_do(
        "Read the runs that are named: `trajectory-pipeline explain RUN_ID`, and compare the periods in the report."
    )
    listed = {"first_runs": bullet_list(run_ids)} if run_ids else {}
    return dg.AssetCheckResult(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={**metadata, **listed, **({} if passed else advice)},
    )
