"""Labels: what people said of trajectories, by criterion; and the samples that say which runs to label."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from trajectory_pipeline.schema.enums import (
    Criterion,
    FailureOwner,
    LabelSource,
    Outcome,
    RequirementStatus,
    SamplingDesign,
    StepFeedback,
)
from trajectory_pipeline.schema.types import FLOAT, INT, STRING, STRINGS, TIMESTAMP, Column, Table, postgres_only

NO_STEP: Final = "none"
"""Value of ``first_wrong_step`` where no step went wrong."""
FEEDBACK_ANNOTATOR: Final = "letta"
"""Annotator of what users said of steps in Letta: the source does not record who they were."""
RATINGS: Final = (
    Criterion.INTERACTION_DEPTH,
    Criterion.TASK_COMPLEXITY,
    Criterion.TOOL_USE,
    Criterion.REFERENCE_VALUE,
)
"""Criteria whose value is a whole number from 1 to 5."""

_CLOSED: Final = {
    Criterion.OUTCOME: tuple(Outcome),
    Criterion.REQUIREMENT: tuple(RequirementStatus),
    Criterion.FAILURE_OWNER: tuple(FailureOwner),
    Criterion.STEP_FEEDBACK: tuple(StepFeedback),
    **dict.fromkeys(RATINGS, ("1", "2", "3", "4", "5")),
}
_CLOCK_DIFFERENCE = timedelta(hours=1)
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LONGEST = 200

_NOT_DRAWN = "not drawn by a design"

LABELS = Table(
    name="labels",
    description="What people said of trajectories. A changed label supersedes the one before it, which stays.",
    row="one label: a value by one criterion of one run, by one annotator, as of one revision",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column(
            "criterion",
            STRING,
            "`outcome`, `requirement`, `failure_owner`, `failure_mode`, `first_wrong_step`, `interaction_depth`,"
            " `task_complexity`, `tool_use`, `reference_value`, `step_feedback`, or a name of your own.",
            key=True,
        ),
        Column(
            "item",
            STRING,
            "What of the run it is about: of `requirement`, a digest of the statement; of `step_feedback`, the step;"
            " else empty.",
            key=True,
        ),
        Column("annotator", STRING, "Who said it; `letta` for feedback of users in Letta.", key=True),
        Column("revision", INT, "1 for the first label of this key, then counting up.", unit="revisions", key=True),
        Column("value", STRING, "The label: a word of the criterion's list, `1` to `5`, or the id of a step."),
        Column(
            "statement",
            STRING,
            "What the task required.",
            null="not a `requirement`, or erased with the run's content",
        ),
        Column("evidence", STRINGS, "Ids of the messages, steps or runs that show it."),
        Column("note", STRING, "Why, in the annotator's words.", null="none, or erased with the run's content"),
        Column(
            "source",
            STRING,
            "`terminal`, `csv`, `scout`, `label_studio`, `demonstration`; or `letta_feedback`: not a person's label"
            " of a run, and never counted with these.",
        ),
        Column("labelled_at", TIMESTAMP, "When the annotator said it.", null="the source does not record it"),
        Column(
            "split",
            STRING,
            "What it is used for: `calibration` or `test`, or a name of your own.",
            null="not assigned",
        ),
        Column(
            "sampling_design",
            STRING,
            "How the run was drawn: `census`, `random`, `disagreement`, `signal` or `uncertainty`.",
            null=_NOT_DRAWN,
        ),
        Column(
            "inclusion_probability",
            FLOAT,
            "Probability with which that design draws the run.",
            unit="0–1",
            null=_NOT_DRAWN,
        ),
        Column(
            "content_digest",
            STRING,
            "`content_digest` of the trajectory when the label was written.",
            null="the run was not captured then",
        ),
        Column("created_at", TIMESTAMP, "When the row was written."),
        Column(
            "superseded_at",
            TIMESTAMP,
            "When a later label of the same key, or its withdrawal, replaced it.",
            null="it holds",
        ),
    ),
    indexes=(("criterion", "source"),),
)

LABEL_SAMPLES = Table(
    name="label_samples",
    description="Runs that were drawn to be labelled: the queue of `trajectory-pipeline label`.",
    row="one run that was drawn",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("sample", STRING, "Name of the sample that it was drawn in."),
        Column("place", INT, "Its place in the queue of the sample.", unit="runs"),
        Column("design", STRING, "`random`, `disagreement`, `signal` or `uncertainty`."),
        Column("stratum", STRING, "The stratum that it was drawn from."),
        Column(
            "inclusion_probability",
            FLOAT,
            "Probability that its draw takes it, among the runs that were not drawn before.",
            unit="0–1",
        ),
        Column("seed", INT, "Seed of the draw: the same seed draws the same runs of the same population.", unit="seed"),
        Column("drawn_at", TIMESTAMP, "When it was drawn."),
    ),
    indexes=(("sample", "place"),),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label as an annotator gives it; the fields are columns of ``LABELS``."""

    run_id: str
    criterion: str
    annotator: str
    source: LabelSource
    value: str
    item: str = ""
    statement: str | None = None
    evidence: tuple[str, ...] = ()
    note: str | None = None
    labelled_at: datetime | None = None
    split: str | None = None
    sampling_design: SamplingDesign | None = None
    inclusion_probability: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a later label has in common with the one that it supersedes."""
        return self.run_id, self.criterion, self.item, self.annotator


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLabel(Label):
    """A label as the table holds it; see ``LABELS``."""

    revision: int
    content_digest: str | None
    created_at: datetime
    superseded_at: datetime | None


@dataclass(frozen=True, slots=True)
class LabelledVerdict:
    """A label that holds, what is known of its run, and the run's verdict under one policy.

    Attributes:
        cluster: runs of the same conversation, or else of the same chain, have the same: they are not independent.
        step_ids: the run's steps, in order.
        spoken: the beginning of what people said in the run, which tells its language.
        verdict_status: None where there is no verdict on the content as it is now; then all below are None too.
        cost_usd: what all calls of the verdict cost together; None where a price is not known.
    """

    label: StoredLabel
    agent_id: str
    agent_name: str | None
    models: tuple[str, ...]
    cluster: str
    partition_key: str
    end_time: datetime | None
    step_count: int
    message_count: int
    step_ids: tuple[str, ...]
    spoken: str
    signals: dict[str, Any]
    heuristic_outcome: str
    heuristic_confidence: float
    policy_id: str
    verdict_key: str | None
    verdict_status: str | None
    outcome: str | None
    outcome_confidence: float | None
    requirements: list[dict[str, Any]] | None
    failure_owner: str | None
    failure_mode: str | None
    failed_step_id: str | None
    interaction_depth: int | None
    task_complexity: int | None
    tool_use: int | None
    reference_value: int | None
    simulated: bool | None
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Repetition:
    """One of several verdicts on the same content under the same policy."""

    run_id: str
    cluster: str
    repetition: int
    verdict_status: str
    outcome: str | None


@dataclass(frozen=True, slots=True)
class JudgedPolicy:
    """A policy under which labelled runs were judged."""

    policy_id: str
    model: str
    is_current: bool

    @property
    def name(self) -> str:
        """How a person knows it: its model, and the beginning of its id, which tells policies of one model apart."""
        return f"{self.model} {self.policy_id[:8]}"


def requirement_item(statement: str) -> str:
    """Return the ``item`` of a requirement: statements that differ in spaces alone have the same."""
    return hashlib.sha256(" ".join(statement.split()).encode()).hexdigest()[:16]


def values_of(criterion: str) -> tuple[str, ...]:
    """Return the values that a criterion can have; none where any word is one."""
    return tuple(map(str, _CLOSED.get(criterion, ())))  # type: ignore[call-overload]


def check_label(label: Label) -> None:
    """Refuse a label that the table must not hold.

    Raises:
        ValueError: says what is wrong with it, and what is right.
    """
    for name in ("run_id", "annotator", "value"):
        _check_line(name, getattr(label, name))
    for name, text in (
        ("note", label.note),
        ("statement", label.statement),
        *(("evidence", e) for e in label.evidence),
    ):
        _check_text(name, text)
    if any(identifier.split() != [identifier] for identifier in label.evidence):
        raise ValueError("evidence is ids of messages, steps or runs, without spaces")
    if label.note is not None and not label.note.strip():
        raise ValueError("the note is blank: leave it out")
    if not _WORD.fullmatch(label.criterion):
        raise ValueError(f"criterion {label.criterion!r} is not a name: small letters, digits and _, 64 at most")
    if label.split is not None and not _WORD.fullmatch(label.split):
        raise ValueError(f"split {label.split!r} is not a name: small letters, digits and _, 64 at most")
    values = values_of(label.criterion)
    if values and label.value not in values:
        raise ValueError(f"value {label.value!r} of {label.criterion} is none of {', '.join(values)}")
    if label.criterion == Criterion.FAILURE_MODE and not _WORD.fullmatch(label.value):
        raise ValueError(f"value {label.value!r} of failure_mode is not a name: small letters, digits and _")
    _check_item(label)
    if (label.source == LabelSource.LETTA_FEEDBACK) != (label.criterion == Criterion.STEP_FEEDBACK):
        raise ValueError("step_feedback comes from Letta alone, and nothing else does")
    if (label.annotator == FEEDBACK_ANNOTATOR) != (label.source == LabelSource.LETTA_FEEDBACK):
        raise ValueError(f"annotator {FEEDBACK_ANNOTATOR!r} stands for feedback in Letta: choose another name")
    if (label.sampling_design is None) != (label.inclusion_probability is None):
        raise ValueError("sampling_design and inclusion_probability go together: give both or none")
    if label.inclusion_probability is not None and not 0 < label.inclusion_probability <= 1:
        raise ValueError(f"inclusion_probability {label.inclusion_probability} is not above 0 and at most 1")
    if label.labelled_at is not None and label.labelled_at.tzinfo is None:
        raise ValueError(f"labelled_at {label.labelled_at.isoformat()} has no time zone")
    # Nobody could ever replace it: the newest label holds. Clocks may differ by a little.
    if label.labelled_at is not None and label.labelled_at > datetime.now(UTC) + _CLOCK_DIFFERENCE:
        raise ValueError(f"labelled_at {label.labelled_at.isoformat()} is in the future")


def _check_item(label: Label) -> None:
    if label.criterion == Criterion.REQUIREMENT:
        if label.statement is None or not label.statement.strip():
            raise ValueError("a requirement needs its statement")
        if label.item != requirement_item(label.statement):
            raise ValueError("the item of a requirement is the digest of its statement")
        return
    if label.statement is not None:
        raise ValueError(f"only a requirement has a statement, and this is {label.criterion}")
    if bool(label.item) != (label.criterion == Criterion.STEP_FEEDBACK):
        raise ValueError(f"{label.criterion} is about {'a step' if not label.item else 'the whole run'}")


def _check_line(name: str, text: str) -> None:
    if not text.strip() or text != text.strip() or len(text) > _LONGEST or not text.isprintable():
        raise ValueError(f"{name} {text[:_LONGEST]!r} is not one line of 1 to {_LONGEST} characters")


def _check_text(name: str, text: str | None) -> None:
    if text is not None and ("\0" in text or any("\ud800" <= character <= "\udfff" for character in text)):
        raise ValueError(f"{name} holds a character that Postgres cannot store (NUL or half of a pair)")
