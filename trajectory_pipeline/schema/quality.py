"""What the asset ``judge_quality`` holds: how far the judge agrees with people, with itself, and people among them."""

from enum import StrEnum

from trajectory_pipeline.schema.types import FLOAT, INT, STRING, TIMESTAMP, Column, Table


class Comparison(StrEnum):
    """Who is compared."""

    JUDGE_PEOPLE = "judge_people"
    PEOPLE = "people"
    JUDGE_ITSELF = "judge_itself"


class Slice(StrEnum):
    """By what labelled runs are grouped."""

    ALL = "all"
    AGENT = "agent"
    MODEL = "model"
    LENGTH = "length"
    LANGUAGE = "language"
    WEEK = "week"
    ANNOTATORS = "annotators"


class Metric(StrEnum):
    """What is measured."""

    AGREEMENT = "agreement"
    SUCCESS_AGREEMENT = "success_agreement"
    KAPPA = "kappa"
    ALPHA = "alpha"
    FAILURE_PRECISION = "failure_precision"
    FAILURE_RECALL = "failure_recall"
    ABSTENTION = "abstention"
    VALID_CITATIONS = "valid_citations"
    MATCHED_REQUIREMENTS = "matched_requirements"
    EXACT_STEP = "exact_step"
    STEP_WITHIN_ONE = "step_within_one"


_WHO = (
    Column("policy_id", STRING, "The judge's policy; empty where only people are compared.", key=True),
    Column("comparison", STRING, "`judge_people`, `people` (among them) or `judge_itself` (judged again).", key=True),
    Column("criterion", STRING, "The criterion of the labels.", key=True),
)
_MEASURED_AT = Column("measured_at", TIMESTAMP, "When it was measured.")

JUDGE_QUALITY = Table(
    name="judge_quality",
    description="How far verdicts agree with labels of people, by policy; how far people agree, and the judge with"
    " itself. Replaced as a whole each day.",
    row="one metric of one comparison in one slice",
    columns=(
        *_WHO,
        Column(
            "slice",
            STRING,
            "`all`, `agent`, `model`, `length`, `language`, `week`; or `annotators`: two people.",
            key=True,
        ),
        Column("slice_value", STRING, "Which agent, model and so on; empty for `all`.", key=True),
        Column(
            "metric",
            STRING,
            "`agreement`, `success_agreement`, `kappa`, `alpha`, `failure_precision`, `failure_recall`, `abstention`,"
            " `valid_citations`, `matched_requirements`, `exact_step` or `step_within_one`: see `docs/labels.md`.",
            key=True,
        ),
        Column("value", FLOAT, "The estimate.", unit="1", null="undefined, such as kappa where there is one value"),
        Column("low", FLOAT, "Lower end of the 95 % interval.", unit="1", null="no interval: one cluster, or no value"),
        Column("high", FLOAT, "Upper end of the 95 % interval.", unit="1", null="as `low`"),
        Column("runs", INT, "Runs that it rests on.", unit="runs"),
        Column("pairs", INT, "Pairs of values that it rests on.", unit="pairs"),
        Column("clusters", INT, "Conversations and chains that it rests on.", unit="clusters"),
        Column(
            "weighting",
            STRING,
            "`uniform`; or `inverse_inclusion_probability`: runs that were less likely to be drawn count more.",
        ),
        _MEASURED_AT,
    ),
)

JUDGE_CONFUSIONS = Table(
    name="judge_confusions",
    description="How often people said one value and the judge another, by policy and criterion.",
    row="one pair of values",
    columns=(
        *_WHO,
        Column("person_value", STRING, "What a person said.", key=True),
        Column("judge_value", STRING, "What the judge said; `unjudged` without a verdict.", key=True),
        Column("pairs", INT, "Pairs with these values.", unit="pairs"),
        Column("weight", FLOAT, "How many runs of the population they stand for.", unit="runs"),
        _MEASURED_AT,
    ),
)
