"""Asset checks of quality, which run with the report's other daily checks: gates of the policy, growing failures."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from trajectory_pipeline.defs.asset_checks import what_to_do
from trajectory_pipeline.defs.assets.trajectory_report import REPORT
from trajectory_pipeline.defs.metadata import markdown_table
from trajectory_pipeline.defs.resources import StorageResource
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.quality.packages import INSTALL, missing_packages
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.failure_modes import GrowingMode
    from trajectory_pipeline.quality.gates import GateStatus

GATES = dg.AssetCheckSpec(
    "policy_passes_gates",
    asset=REPORT,
    description="Agreement with people, abstention, verified quotes and agreement with itself of the current policy"
    " reach their bars (TRAJECTORY_GATE_…) with the whole 95 % interval. An error: one is surely below its bar. A"
    " warning: too few labels to say.",
)
GROWING = dg.AssetCheckSpec(
    "no_growing_failure_mode",
    asset=REPORT,
    description="No failure mode is new or growing: last 7 days against the 28 days before, exact one-sided test of"
    " two Poisson rates, alpha 0.001 divided by the number of failure modes with 3 runs or more in the last week.",
)


_GATE_ADVICE = {
    True: "Do not use this policy's verdicts: choose another judge, or mend what the gate names.",
    False: "Label more runs, until the intervals are on one side of their bars.",
}


def build_quality_checks(settings: Settings) -> dg.AssetChecksDefinition:
    """Return the checks."""

    @dg.multi_asset_check(name="quality_checks", specs=[GATES, GROWING])
    def quality_checks(storage: StorageResource) -> Iterator[dg.AssetCheckResult]:
        if missing_packages():
            for spec in (GATES, GROWING):
                yield _warning(spec, f"Not measured: {INSTALL}.")
            return
        from trajectory_pipeline.pipeline.failure_modes import find_growing_modes
        from trajectory_pipeline.pipeline.verdict_quality import policy_gates
        from trajectory_pipeline.quality.gates import Bars

        database = storage.sinks().postgres
        end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        try:
            status = policy_gates(database, Bars(**settings.quality.model_dump()))
            grown, runs = find_growing_modes(database, end)
        except PipelineError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        yield gates_result(status)
        yield growing_result(grown, runs)

    return quality_checks


def gates_result(status: "GateStatus | None") -> dg.AssetCheckResult:
    """Return whether the policy has passed; where nothing was judged, there is nothing to pass."""
    from trajectory_pipeline.schema.enums import GateResult

    if status is None:
        return dg.AssetCheckResult(
            asset_key=GATES.asset_key, check_name=GATES.name, passed=True, description="Nothing is judged yet."
        )
    failed = status.result is GateResult.FAILED
    return dg.AssetCheckResult(
        asset_key=GATES.asset_key,
        check_name=GATES.name,
        passed=status.result is GateResult.PASSED,
        severity=dg.AssetCheckSeverity.ERROR if failed else dg.AssetCheckSeverity.WARN,
        description=status.sentence,
        metadata={
            "policy_id": status.policy_id,
            "result": status.result.value,
            **({} if status.result is GateResult.PASSED else what_to_do(_GATE_ADVICE[failed])),
            "gates": markdown_table(
                ["gate", "share", "low", "high", "bar", "verdicts", "result"],
                [
                    (one.gate.value, one.share, one.low, one.high, one.bar, one.size, one.result.value)
                    for one in status.gates
                ],
            ),
        },
    )


def growing_result(grown: "list[GrowingMode]", runs: tuple[int, int]) -> dg.AssetCheckResult:
    """Return whether no failure mode is new or growing."""
    from trajectory_pipeline.quality.failure_modes import MIN_RUNS

    if runs[1] < MIN_RUNS:
        description = f"Too few runs to compare with: {runs[1]} in the 28 days before, where {MIN_RUNS} are needed"
    elif not grown:
        description = "No failure mode is new or growing"
    else:
        named = [f"{one.growth.mode_id} ({'new' if one.growth.new else 'growing'})" for one in grown]
        description = f"{pluralize(len(grown), 'failure mode')}: {', '.join(named)}; see docs/runbook.md"
    rows = [
        (one.growth.mode_id, (one.title or "")[:160], one.growth.recent, one.growth.earlier, one.growth.p_value)
        for one in grown
    ]
    return dg.AssetCheckResult(
        asset_key=GROWING.asset_key,
        check_name=GROWING.name,
        passed=not grown,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "found": len(grown),
            **(what_to_do("Read the runs of each id in the table `failure_mode_runs`.") if grown else {}),
            **({"failure_modes": markdown_table(["id", "text", "last 7 days", "before", "p"], rows)} if rows else {}),
        },
    )


def _warning(spec: dg.AssetCheckSpec, description: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=False,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
    )
