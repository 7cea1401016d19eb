"""What labels say of verdicts: calibration maps, corrected rates, gates and the lift of signals, from the database."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trajectory_pipeline.quality.calibration import Calibration, LabelledScore, TooFewLabels, calibrate, success_score
from trajectory_pipeline.quality.corrected_rates import (
    CorrectedRate,
    EffectiveCounts,
    JudgedRun,
    corrected_rate,
    effective_counts,
)
from trajectory_pipeline.quality.gates import Bars, GateStatus, measure_gates
from trajectory_pipeline.quality.signal_lift import LabelledRun, Lift, signal_lifts
from trajectory_pipeline.schema.enums import CalibrationTarget, Criterion, Gate, Outcome
from trajectory_pipeline.schema.labels import LabelledVerdict
from trajectory_pipeline.storage.postgres.calibrations import current_labels_digest, write_calibration
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.labels import read_labelled_verdicts
from trajectory_pipeline.storage.postgres.verdict_quality import (
    current_policy,
    judged_policies,
    repeated_outcomes,
    runs_by_agent_and_week,
    verdict_counts,
)


@dataclass(frozen=True, slots=True)
class GroupRate:
    """The corrected rate of one outcome, beside the judge's own, of one group of runs.

    Attributes:
        grouping: ``all``, ``agent``, ``week`` or ``agent and week``.
        agent: None where the group is of all agents.
        week: Monday of the week; None where the group is of all weeks.
        outcome: that the rate is of.
        judged: runs with a usable outcome by the judge.
        judged_rate: its share among these; None where there are none.
        corrected: by labels.
    """

    grouping: str
    agent: str | None
    week: str | None
    outcome: Outcome
    judged: int
    judged_rate: float | None
    corrected: CorrectedRate


def outcome_labels(database: TrajectoryDatabase, policy_id: str) -> list[LabelledVerdict]:
    """Return one outcome label for each labelled run: of several annotators, that of whoever labelled most runs."""
    labelled = read_labelled_verdicts(database, policy_id, [Criterion.OUTCOME])
    runs = Counter(one.label.annotator for one in labelled)
    chosen: dict[str, LabelledVerdict] = {}
    for one in sorted(labelled, key=lambda one: (-runs[one.label.annotator], one.label.annotator)):
        chosen.setdefault(one.label.run_id, one)
    return [chosen[run_id] for run_id in sorted(chosen)]


def update_calibrations(database: TrajectoryDatabase) -> dict[str, str]:
    """Learn the maps of every policy anew where its labels or verdicts changed.

    Returns:
        Why a map is missing, as a sentence, by policy and target.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    missing: dict[str, str] = {}
    for policy_id in judged_policies(database):
        labels = _confident(database, policy_id)
        digest = _digest(labels)
        for target in CalibrationTarget:
            result = _calibrate(labels, target)
            if not isinstance(result, Calibration):
                missing[f"{policy_id} {target}"] = result.reason
            stored = current_labels_digest(database, policy_id, target)
            if isinstance(result, Calibration) and stored != digest:
                write_calibration(database, policy_id, target, digest, result)
            elif not isinstance(result, Calibration) and stored is not None:
                write_calibration(database, policy_id, target, digest, None)
    return missing


def missing_maps(database: TrajectoryDatabase, policy_id: str) -> dict[CalibrationTarget, str]:
    """Return why a policy has no map, as a sentence, for each target that has none."""
    labels = _confident(database, policy_id)
    results = {target: _calibrate(labels, target) for target in CalibrationTarget}
    return {target: one.reason for target, one in results.items() if not isinstance(one, Calibration)}


def policy_gates(database: TrajectoryDatabase, bars: Bars, policy_id: str | None = None) -> GateStatus | None:
    """Return whether a policy has passed its gates: the current one if none is named; None where there is none."""
    policy = policy_id or current_policy(database)
    if policy is None:
        return None
    labels = [one for one in outcome_labels(database, policy) if one.outcome is not None]
    agreement = effective_counts(
        [(one.outcome == Outcome.SUCCESS) == (one.label.value == Outcome.SUCCESS) for one in labels],
        [_weight(one) for one in labels],
    )
    counts = verdict_counts(database, policy)
    pairs = repeated_outcomes(database, policy)
    return measure_gates(
        policy,
        {
            Gate.AGREEMENT: agreement,
            Gate.ABSTENTION: EffectiveCounts(_share(counts.undecided, counts.answered), counts.answered),
            # Citations of one verdict are not independent: the interval is that of so many verdicts.
            Gate.VERIFIED_QUOTES: EffectiveCounts(_share(counts.valid_citations, counts.citations), counts.citing),
            Gate.SELF_AGREEMENT: effective_counts([first == second for first, second in pairs], [1.0] * len(pairs)),
        },
        bars,
    )


def group_rates(
    database: TrajectoryDatabase, policy_id: str, first: str | None, after_last: str | None
) -> list[GroupRate]:
    """Return the rates of success and failure of all runs, by agent, by week and by both, between partition keys."""
    labels = {one.label.run_id: one.label for one in outcome_labels(database, policy_id)}
    groups: dict[tuple[str, str | None, str | None], list[tuple[str, str | None]]] = defaultdict(list)
    for run in runs_by_agent_and_week(database, policy_id, first, after_last):
        for key in (
            ("all", None, None),
            ("agent", run.agent, None),
            ("week", None, run.week),
            ("agent and week", run.agent, run.week),
        ):
            groups[key].append((run.run_id, run.outcome))
    rates = []
    for (grouping, agent, week), runs in groups.items():
        judged = [outcome for _, outcome in runs if outcome is not None]
        for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
            corrected = corrected_rate(
                [
                    JudgedRun(said, label.value == outcome, label.inclusion_probability) if label else JudgedRun(said)
                    for label, said in ((labels.get(run_id), said) for run_id, said in runs)
                ]
            )
            rate = _share(judged.count(outcome), len(judged)) if judged else None
            rates.append(GroupRate(grouping, agent, week, outcome, len(judged), rate, corrected))
    return rates


def lifts_of_signals(database: TrajectoryDatabase, policy_id: str) -> list[Lift]:
    """Return the lift of each signal on people's labels; verdicts play no part."""
    return signal_lifts(
        [
            LabelledRun(one.signals, one.label.value == Outcome.FAILURE, _weight(one))
            for one in outcome_labels(database, policy_id)
            if one.signals
        ]
    )


def _confident(database: TrajectoryDatabase, policy_id: str) -> list[LabelledVerdict]:
    return [one for one in outcome_labels(database, policy_id) if one.outcome_confidence is not None]


def _calibrate(labels: Sequence[LabelledVerdict], target: CalibrationTarget) -> Calibration | TooFewLabels:
    return calibrate(_scores(labels, target), score_is_probability=target is CalibrationTarget.CORRECT)


def _scores(labels: Sequence[LabelledVerdict], target: CalibrationTarget) -> list[LabelledScore]:
    scores = []
    for one in labels:
        if one.outcome is None or one.outcome_confidence is None:
            continue
        if target is CalibrationTarget.CORRECT:
            score, holds = one.outcome_confidence, one.outcome == one.label.value
        else:
            score, holds = success_score(one.outcome, one.outcome_confidence), one.label.value == Outcome.SUCCESS
        scores.append(LabelledScore(score, holds, one.cluster, _weight(one), one.label.split))
    return scores


def _weight(one: LabelledVerdict) -> float:
    """Return how many runs a label stands for; a label that no design drew stands for itself."""
    return 1 / one.label.inclusion_probability if one.label.inclusion_probability else 1.0


def _digest(labels: Sequence[LabelledVerdict]) -> str:
    said: list[Mapping[str, object]] = [
        {
            "run_id": one.label.run_id,
            "value": one.label.value,
            "split": one.label.split,
            "probability": one.label.inclusion_probability,
            "cluster": one.cluster,
            "outcome": one.outcome,
            "confidence": one.outcome_confidence,
        }
        for one in labels
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
