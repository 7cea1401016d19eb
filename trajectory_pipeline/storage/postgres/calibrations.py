"""Calibration maps: written once for each set of labels, and read with the policy that they are for.

Every function raises ``SinkError`` if the database refuses.
"""

import json
from dataclasses import asdict

from trajectory_pipeline.quality.calibration import Calibration, CalibrationError
from trajectory_pipeline.schema.enums import CalibrationTarget
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

_INSERT = (
    "INSERT INTO trajectory.calibrations (policy_id, target, labels_digest, map_digest, method, scores, probabilities,"
    " labels, measured_labels, cross_fitted, raw_error, raw_error_low, raw_error_high, error, error_low, error_high,"
    " curve, created_at, is_current)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp(), true)"
    # Labels that were as they are now once before: their map is there.
    " ON CONFLICT (policy_id, target, labels_digest) DO UPDATE SET is_current = true"
)


def current_labels_digest(database: TrajectoryDatabase, policy_id: str, target: CalibrationTarget) -> str | None:
    """Return the digest of the labels that the current map rests on; None where there is no map."""
    rows = database.rows(
        "SELECT labels_digest FROM trajectory.calibrations WHERE policy_id = %s AND target = %s AND is_current",
        [policy_id, target],
    )
    return rows[0]["labels_digest"] if rows else None


def write_calibration(
    database: TrajectoryDatabase,
    policy_id: str,
    target: CalibrationTarget,
    labels_digest: str,
    calibration: Calibration | None,
) -> None:
    """Make a map the current one of its policy and target; None where there are too few labels for one."""
    with (
        database.connect() as connection,
        translating_database_errors(database.url, "Writing calibrations"),
    ):
        # Two writers would both make theirs the current one.
        connection.execute("LOCK TABLE trajectory.calibrations IN SHARE ROW EXCLUSIVE MODE")
        connection.execute(
            "UPDATE trajectory.calibrations SET is_current = false WHERE policy_id = %s AND target = %s AND is_current",
            [policy_id, target],
        )
        if calibration is None:
            return
        learnt, before = calibration.map, calibration.before
        curves = {"raw": _curve(before), "map": _curve(calibration.after)}
        connection.execute(
            _INSERT,
            [
                *(policy_id, target, labels_digest, learnt.digest, learnt.method),
                *(list(learnt.scores), list(learnt.probabilities)),
                *(calibration.labels, calibration.measured_labels, calibration.cross_fitted),
                *((before.value, before.low, before.high) if before else (None, None, None)),
                *(calibration.after.value, calibration.after.low, calibration.after.high),
                json.dumps(curves),
            ],
        )


def read_calibrations(database: TrajectoryDatabase, policy_id: str) -> list[dict[str, object]]:
    """Return the current maps of a policy, one a target."""
    return database.rows(
        "SELECT * FROM trajectory.calibrations WHERE policy_id = %s AND is_current ORDER BY target", [policy_id]
    )


def _curve(error: CalibrationError | None) -> list[dict[str, object]] | None:
    return None if error is None else [asdict(one) for one in error.curve]
