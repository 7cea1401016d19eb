"""Task families, the runs in them, and the earlier runs that each is most like."""

from trajectory_pipeline.schema.types import FLOAT, INT, STRING, TIMESTAMP, Column, Table, postgres_only

_COSINE = "cosine, −1 to 1"
_NO_ORGANIZATION = "runs without an organization"

TASK_FAMILIES = Table(
    name="task_families",
    description="Task families: runs of one organization with the same kind of task. An id stays for ever.",
    row="one task family",
    columns=postgres_only(
        Column("family_id", STRING, "`family-` and a digest of the id of the run that founded it.", key=True),
        Column("organization_id", STRING, "The organization.", null=_NO_ORGANIZATION),
        Column(
            "representative_run_id",
            STRING,
            "The run that others are compared with: the one that founded it, or, when that is gone, the earliest.",
            null="no run of it is left",
        ),
        Column("position", INT, "Order in which it was founded.", unit="1"),
        Column("founded_at", TIMESTAMP, "When it was founded."),
    ),
    indexes=(("organization_id",),),
)

TASK_FAMILY_RUNS = Table(
    name="task_family_runs",
    description="Which runs are in which task family. A run stays in its family.",
    row="one run",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("family_id", STRING, "Its task family."),
        Column("similarity", FLOAT, "To the representative when it joined.", unit=_COSINE, null="it founded it"),
        Column("model_id", STRING, "The embedding model by which it was compared."),
        Column("assigned_at", TIMESTAMP, "When it joined."),
    ),
    indexes=(("family_id",),),
)

SIMILAR_RUNS = Table(
    name="similar_runs",
    description="The up to three earlier runs of its task family that each run is most like.",
    row="one run and an earlier one",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("similar_run_id", STRING, "A run of the family that ended earlier.", key=True),
        Column("similarity", FLOAT, "Of the two.", unit=_COSINE),
        Column("model_id", STRING, "The embedding model by which they were compared."),
    ),
    indexes=(("similar_run_id",),),
)

TASK_FAMILY_BARS = Table(
    name="task_family_bars",
    description="How similar a run must be to a family's representative to join it.",
    row="one organization and embedding model",
    columns=postgres_only(
        Column("organization_id", STRING, "The organization; empty for runs without one.", key=True),
        Column("model_id", STRING, "The embedding model.", key=True),
        Column(
            "similarity",
            FLOAT,
            "The bar: the mean of `median` + 2 × `deviation` and of the mean of `mean` and `nearest`; at most 0.95.",
            unit=_COSINE,
        ),
        Column("median", FLOAT, "Median similarity of two runs.", unit=_COSINE),
        Column("deviation", FLOAT, "Root mean square of what similarities below the median lack.", unit=_COSINE),
        Column("mean", FLOAT, "Mean similarity of two runs.", unit=_COSINE),
        Column("nearest", FLOAT, "Median similarity of a run to the one that it is most like.", unit=_COSINE),
        Column("runs", INT, "Runs that were compared.", unit="runs"),
        Column("measured_at", TIMESTAMP, "When it was measured: once, so that it stays."),
    ),
)

TASK_FAMILY_OUTCOMES = Table(
    name="task_family_outcomes",
    description="How often the tasks of each family succeed, by verdicts under the current policy.",
    row="one task family",
    columns=postgres_only(
        Column("family_id", STRING, "The task family."),
        Column("organization_id", STRING, "The organization.", null=_NO_ORGANIZATION),
        Column("representative_run_id", STRING, "A run to read.", null="no run of it is left"),
        Column("runs", INT, "Trajectories.", unit="trajectories"),
        Column("success", INT, "Judged outcomes `success`.", unit="trajectories"),
        Column("partial_success", INT, "Judged outcomes `partial_success`.", unit="trajectories"),
        Column("failure", INT, "Judged outcomes `failure`.", unit="trajectories"),
        Column("unknown", INT, "Judged outcomes `unknown`.", unit="trajectories"),
        Column("not_judged", INT, "Trajectories without a judged outcome.", unit="trajectories"),
        Column(
            "success_rate",
            FLOAT,
            "`success` of `success`, `partial_success` and `failure`.",
            unit="0–1",
            null="none of these",
        ),
        Column("success_low", FLOAT, "Lower end of its 95 % interval (Wilson).", unit="0–1", null="no rate"),
        Column("success_high", FLOAT, "Upper end of its 95 % interval (Wilson).", unit="0–1", null="no rate"),
        Column("last_end", TIMESTAMP, "When the last of its runs ended.", null="not recorded"),
    ),
)
