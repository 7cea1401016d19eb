"""Calibration: maps from a verdict's confidence to a probability, and the verdicts with it."""

from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    JSON,
    STRING,
    TIMESTAMP,
    Column,
    ListOf,
    Table,
    postgres_only,
)
from trajectory_pipeline.schema.verdicts import VERDICTS

_NO_PROBABILITY = "the raw score is no probability"
_NO_MAP = "not judged, or no map was learnt: too few labels"

CALIBRATIONS = Table(
    name="calibrations",
    description="Maps from a verdict's confidence to a probability, learnt on labels, and how good they are.",
    row="one map: of one policy and target, learnt on one set of labels",
    columns=postgres_only(
        Column("policy_id", STRING, "The policy whose verdicts it is for.", key=True),
        Column("target", STRING, "`correct`: the outcome is right; or `success`: the run is a success.", key=True),
        Column("labels_digest", STRING, "SHA-256 (hex) of the labels and verdicts that it rests on.", key=True),
        Column("map_digest", STRING, "First 16 hex digits of the SHA-256 of its knots."),
        Column("method", STRING, "`logistic` or `isotonic`."),
        Column(
            "scores",
            ListOf(FLOAT),
            "Knots: of `correct`, confidences; of `success`, confidences, negative unless the outcome is success.",
        ),
        Column("probabilities", ListOf(FLOAT), "The probability at each knot; between knots it is a straight line."),
        Column("labels", INT, "Labels that it was learnt on.", unit="labels"),
        Column("measured_labels", INT, "Labels that it was measured on.", unit="labels"),
        Column(
            "cross_fitted",
            BOOL,
            "Whether it was measured by cross-fitting over conversations; else on the labels of the split `test`.",
        ),
        Column("raw_error", FLOAT, "Calibration error of the raw confidence (ECE).", unit="0–1", null=_NO_PROBABILITY),
        Column("raw_error_low", FLOAT, "Lower end of its 95 % interval.", unit="0–1", null=_NO_PROBABILITY),
        Column("raw_error_high", FLOAT, "Upper end of its 95 % interval.", unit="0–1", null=_NO_PROBABILITY),
        Column("error", FLOAT, "Calibration error of the map (ECE).", unit="0–1"),
        Column("error_low", FLOAT, "Lower end of its 95 % interval.", unit="0–1"),
        Column("error_high", FLOAT, "Upper end of its 95 % interval.", unit="0–1"),
        Column("curve", JSON, "Reliability curves, `raw` and `map`: of each bin labels, predicted and observed."),
        Column("created_at", TIMESTAMP, "When it was learnt."),
        Column("is_current", BOOL, "Whether it rests on the labels as they are now."),
    ),
)

CALIBRATED_OUTCOMES = Table(
    name="calibrated_outcomes",
    description="Each verdict under the current policy with what its confidence means by people's labels.",
    row="one judged trajectory whose run is not deleted at the source",
    columns=postgres_only(
        *(Column(name, VERDICTS[name].type, VERDICTS[name].description) for name in ("run_id", "verdict_key")),
        Column("policy_id", STRING, "The policy."),
        Column("outcome", STRING, "As judged."),
        Column("outcome_confidence", FLOAT, "The raw confidence, as in `verdicts`.", unit="0–1"),
        Column("probability_correct", FLOAT, "Probability that the outcome is right.", unit="0–1", null=_NO_MAP),
        Column("probability_success", FLOAT, "Probability that the run is a success.", unit="0–1", null=_NO_MAP),
        Column("correct_map", STRING, "`map_digest` of the map of the first.", null=_NO_MAP),
        Column("success_map", STRING, "`map_digest` of the map of the second.", null=_NO_MAP),
    ),
)
