"""Measures how far verdicts agree with labels, for each policy, and writes ``judge_quality``."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from trajectory_pipeline.quality.judge_quality import (
    COMPARED,
    ConfusionRow,
    QualityRow,
    confusions,
    judge_and_itself,
    judge_and_people,
    people_among_them,
)
from trajectory_pipeline.schema.labels import JudgedPolicy
from trajectory_pipeline.schema.quality import JUDGE_CONFUSIONS, JUDGE_QUALITY
from trajectory_pipeline.storage.artifacts import write_rows
from trajectory_pipeline.storage.postgres.judge_quality import replace_quality
from trajectory_pipeline.storage.postgres.labels import (
    policies_with_verdicts,
    read_labelled_verdicts,
    read_repetitions,
    record_feedback,
)
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class QualityResult:
    """What was measured, of which policies."""

    policies: list[JudgedPolicy]
    labels: int
    labelled_runs: int
    quality: list[QualityRow]
    confusions: list[ConfusionRow]


def materialize_quality(storage: Storage) -> QualityResult:
    """Measure, and replace the rows of both tables in Postgres and Parquet; feedback in Letta is taken over before.

    Raises:
        SinkError: a sink cannot be read or written.
    """
    database = storage.postgres
    record_feedback(database)
    result = _measure(storage)
    measured_at = database.now()
    tables = {
        JUDGE_QUALITY: [_row(row, measured_at) for row in result.quality],
        JUDGE_CONFUSIONS: [_row(row, measured_at) for row in result.confusions],
    }
    replace_quality(database, tables)
    for table, rows in tables.items():
        write_rows(storage.parquet, f"{JUDGE_QUALITY.name}/{table.name}.parquet", table, rows)
    return result


def _measure(storage: Storage) -> QualityResult:
    from py3langid import classify

    database = storage.postgres
    # Labels do not depend on a policy: without one, their verdicts are empty.
    labels = read_labelled_verdicts(database, "", COMPARED)
    policies = policies_with_verdicts(database)
    quality = [*people_among_them(labels)]
    confused: list[ConfusionRow] = []
    for policy in policies:
        rows = read_labelled_verdicts(database, policy.policy_id, COMPARED)
        quality += judge_and_people(policy.policy_id, rows, lambda text: str(classify(text)[0]))
        quality += judge_and_itself(policy.policy_id, read_repetitions(database, policy.policy_id))
        confused += confusions(policy.policy_id, rows)
    return QualityResult(policies, len(labels), len({row.label.run_id for row in labels}), quality, confused)


def _row(row: QualityRow | ConfusionRow, measured_at: datetime) -> dict[str, Any]:
    return {**asdict(row), "measured_at": measured_at}
