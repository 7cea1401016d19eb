"""The report's part on quality: gates, calibration, corrected rates, lift of signals and recurring failures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from trajectory_pipeline.quality.packages import missing_packages
from trajectory_pipeline.quality.summary import number
from trajectory_pipeline.schema.enums import CalibrationTarget, Criterion, GateResult
from trajectory_pipeline.schema.quality import Metric, Slice
from trajectory_pipeline.settings import QualitySettings
from trajectory_pipeline.storage.postgres.calibrations import read_calibrations
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.failure_modes import failures_by_week
from trajectory_pipeline.storage.postgres.judge_quality import read_quality
from trajectory_pipeline.storage.postgres.verdict_quality import current_policy

Row = dict[str, Any]

TARGETS = {CalibrationTarget.CORRECT: "P(outcome is right)", CalibrationTarget.SUCCESS: "P(success)"}
RECURRING = 2
"""Fewest runs of a group of similar failures that is shown."""
MOST_FAILURES = 30


@dataclass(frozen=True)
class QualityPart:
    """What the template shows.

    Attributes:
        missing: packages that are not installed, for lack of which nothing is measured.
        status: whether the policy has passed its gates, as a sentence; None where there is no policy.
        passed: whether it has.
        uncalibrated: why a probability is not learnt, as a sentence, by its name.
        tables: rows by name; published as Parquet.
    """

    missing: tuple[str, ...] = ()
    status: str | None = None
    passed: bool = False
    uncalibrated: dict[str, str] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give every table a place, which is empty where nothing was measured."""
        for name in ("policies", "gates", "calibrations", "corrected_rates", "signal_lifts", "failure_modes"):
            self.tables.setdefault(name, [])


def update_quality(database: TrajectoryDatabase, redact: Callable[[str], str]) -> None:
    """Bring the calibration maps and the registry of failure modes up to date with labels and verdicts.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    if missing_packages():
        return
    from trajectory_pipeline.pipeline.failure_modes import update_failure_modes
    from trajectory_pipeline.pipeline.verdict_quality import update_calibrations

    update_calibrations(database)
    update_failure_modes(database, redact)


def quality_part(
    database: TrajectoryDatabase, quality: QualitySettings, first: str | None, after_last: str | None
) -> QualityPart:
    """Return the part on the current policy; rates and failures are of runs between two partition keys."""
    missing = missing_packages()
    if missing:
        return QualityPart(missing)
    from trajectory_pipeline.pipeline.verdict_quality import group_rates, lifts_of_signals, missing_maps, policy_gates
    from trajectory_pipeline.quality.gates import Bars

    policy_id = current_policy(database)
    failures = [_failure(row) for row in failures_by_week(database, first, after_last, RECURRING)[:MOST_FAILURES]]
    if policy_id is None:
        return QualityPart(tables={"failure_modes": failures})
    bars = Bars(**quality.model_dump())
    status = policy_gates(database, bars, policy_id)
    policies = _policies(read_quality(database))
    for policy in policies:
        gates = policy_gates(database, bars, policy["policy_id"]) if policy["policy_id"] else None
        policy["gates"] = None if gates is None else gates.result
    calibrations = read_calibrations(database, policy_id)
    rates = [_rate(rate) for rate in sorted(group_rates(database, policy_id, first, after_last), key=_all_first)]
    tables = {
        "policies": policies,
        "gates": [] if status is None else [{**asdict(gate), "sentence": gate.sentence} for gate in status.gates],
        "calibrations": [dict(row) for row in calibrations],
        "corrected_rates": rates,
        "signal_lifts": [asdict(lift) for lift in lifts_of_signals(database, policy_id)],
        "failure_modes": failures,
    }
    return QualityPart(
        (),
        None if status is None else status.sentence,
        status is not None and status.result is GateResult.PASSED,
        {TARGETS[target]: reason for target, reason in missing_maps(database, policy_id).items()},
        tables,
    )


def _policies(rows: list[Row]) -> list[Row]:
    """Return how far each policy, and people among them, agree on outcomes: a row for each, a value by metric."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["criterion"] == Criterion.OUTCOME and row["slice"] == Slice.ALL:
            key = (row["comparison"], row["policy_id"])
            policy = found.setdefault(
                key,
                {
                    "comparison": row["comparison"],
                    "policy_id": row["policy_id"],
                    "model": row["model"],
                    "is_current": row["is_current"],
                    "runs": row["runs"],
                    **dict.fromkeys(Metric),
                },
            )
            policy[row["metric"]] = number(row)
    return list(found.values())


def _all_first(rate: Any) -> tuple[bool, str, bool, str]:
    """Order rates by agent, then week, those over all of them first; sorting keeps success before failure."""
    return (rate.agent is not None, rate.agent or "", rate.week is not None, str(rate.week or ""))


def _rate(rate: Any) -> Row:
    row = asdict(rate)
    corrected = row.pop("corrected")
    return {**row, **{"corrected_rate" if name == "rate" else name: value for name, value in corrected.items()}}


def _failure(row: Row) -> Row:
    weeks = sorted((week for week in row["weeks"] if week["week"]), key=lambda week: str(week["week"]))
    return {**row, "weeks": weeks}
