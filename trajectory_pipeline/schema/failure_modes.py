"""The registry of failure modes, and which runs failed in which of them."""

from trajectory_pipeline.schema.types import INT, STRING, TIMESTAMP, Column, Table, postgres_only

_GROUP = "a group of texts: its first one was erased, deleted or pruned"

FAILURE_MODES = Table(
    name="failure_modes",
    description="The registry of failure modes: the judge's closed list, and groups of similar lessons and tool"
    " errors. An id stays for ever.",
    row="one failure mode",
    columns=postgres_only(
        Column("mode_id", STRING, "Label of the closed list, or kind and digest of the group's first text.", key=True),
        Column("kind", STRING, "`listed`, `lesson` or `tool_error`."),
        Column("title", STRING, "The group's first text, redacted; of `listed`, the label.", null=_GROUP),
        Column("first_run_id", STRING, "Run of the first text.", null=f"`listed`, or {_GROUP}"),
        Column(
            "position", INT, "Order in which it was founded: a text joins the first group that it is like.", unit="1"
        ),
        Column("founded_at", TIMESTAMP, "When it was founded."),
    ),
)

FAILURE_MODE_RUNS = Table(
    name="failure_mode_runs",
    description="Which runs failed in which failure mode.",
    row="one text about a failure of one run",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("mode_id", STRING, "The failure mode.", key=True),
        Column("text_sha256", STRING, "SHA-256 (hex) of the redacted text without names and numbers.", key=True),
        Column("kind", STRING, "`kind` of the failure mode."),
        Column("source", STRING, "`verdict_key` of the verdict, or `content_digest` of the trajectory, with the text."),
    ),
    indexes=(("mode_id",), ("text_sha256",)),
)

FAILURE_MODE_WEEKS = Table(
    name="failure_mode_weeks",
    description="How many runs failed in each failure mode, by week.",
    row="one failure mode and week",
    columns=postgres_only(
        Column("mode_id", STRING, "The failure mode."),
        Column("kind", STRING, "`listed`, `lesson` or `tool_error`."),
        Column("title", STRING, "The group's first text, redacted; of `listed`, the label.", null=_GROUP),
        Column("week", STRING, "Monday of the week of `end_time`, UTC, as YYYY-MM-DD.", null="`end_time` is null"),
        Column("runs", INT, "Runs.", unit="runs"),
    ),
)
