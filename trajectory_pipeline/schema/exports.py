"""Exports: which datasets were written, which runs each holds, and which runs stay in one split."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.schema.types import BOOL, INT, JSON, STRING, TIMESTAMP, Column, Table, postgres_only

EXPORTS = Table(
    name="exports",
    description="Datasets that were exported. One that is written to the same place again takes the place of the"
    " former one.",
    row="one dataset",
    columns=postgres_only(
        Column("export_id", STRING, "`export-` and a digest of its location.", key=True),
        Column("location", STRING, "Folder or URL, without a password."),
        Column("format", STRING, "Its format, such as `sft`."),
        Column("is_asset", BOOL, "Whether it is an asset, which is kept up to date partition by partition."),
        Column("filters", JSON, "The filters that selected its runs."),
        Column("written_at", TIMESTAMP, "When it was last written to."),
    ),
)

EXPORT_RUNS = Table(
    name="export_runs",
    description="Which runs each exported dataset holds.",
    row="one run in one dataset",
    columns=postgres_only(
        Column("export_id", STRING, "The dataset.", key=True),
        Column("run_id", STRING, "The run.", key=True),
        Column("partition_key", STRING, "Dagster's partition key of the run when it was exported."),
        Column("content_digest", STRING, "`content_digest` of the trajectory that was exported."),
        Column("text_digest", STRING, "SHA-256 (hex) of what its messages say, by which equal runs are found."),
        Column("split", STRING, "`train`, `validation` or `test`."),
        Column(
            "outcome",
            STRING,
            "Its outcome when it was exported: the verdict's, else the heuristic one.",
            null="it was exported by an older version",
        ),
        Column(
            "signature",
            STRING,
            "Base64 of the MinHash of what its messages say.",
            null="almost equal runs are not looked for",
        ),
    ),
    indexes=(("run_id",), ("export_id", "partition_key"), ("export_id", "text_digest")),
)

EXPORT_BANDS = Table(
    name="export_bands",
    description="By what almost equal runs of an exported asset are found: runs that share a band may be.",
    row="one band of one run in one dataset",
    columns=postgres_only(
        Column("export_id", STRING, "The dataset.", key=True),
        Column("run_id", STRING, "The run.", key=True),
        Column("band", INT, "Hash of its outcome and of some of the numbers of its signature.", key=True),
    ),
    indexes=(("export_id", "band"),),
)

EXPORT_DUPLICATES = Table(
    name="export_duplicates",
    description="Which runs an exported asset leaves out because another of its partitions holds a run that says the"
    " same, or almost: once that one is gone, the partition is made again.",
    row="one run that is left out of one dataset",
    columns=postgres_only(
        Column("export_id", STRING, "The dataset.", key=True),
        Column("partition_key", STRING, "Dagster's partition key of the run that is left out.", key=True),
        Column("run_id", STRING, "The run that is left out.", key=True),
        Column("kept_run_id", STRING, "The run that the dataset holds."),
        Column("kept_text_digest", STRING, "`text_digest` of the run that the dataset holds."),
        Column(
            "kept_outcome",
            STRING,
            "Outcome of the run that the dataset holds.",
            null="both say the same, whatever came of them",
        ),
    ),
    indexes=(("export_id", "kept_run_id"),),
)

EXPORT_GROUPS = Table(
    name="export_groups",
    description="What keeps runs in one split: the group of each chain, conversation, task family and text, for good.",
    row="one chain, conversation, task family or text",
    columns=postgres_only(
        Column(
            "group_key",
            STRING,
            "`chain run-…`, `conversation conversation-…`, `family family-…`, or `text` and a `text_digest`.",
            key=True,
        ),
        Column("group_name", STRING, "Its group: the first of its keys. Splits are drawn by it."),
    ),
)


@dataclass(frozen=True)
class ExportFilters:
    """Which runs are exported; what is None or empty leaves nothing out.

    Attributes:
        outcomes: of the verdict; where there is none, the heuristic ones, unless ``judged_only``.
        judged_only: only runs with a verdict under the current policy.
        min_confidence: of the verdict's outcome, 0–1.
        min_learning_value: 0–1.
        agents: ids or names.
        tools: that ran; one of them is enough.
        sources: names of sources: `letta`, or one in `TRAJECTORY_SOURCES`.
        completed_from: first ``end_time``, inclusive.
        completed_to: last one, exclusive.
        labels: values that people gave as the outcome.
        families: ids of task families.
    """

    # A setting is read into it: a name that is none of these is an error.
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    outcomes: tuple[Outcome, ...] = ()
    judged_only: bool = False
    min_confidence: float | None = None
    min_learning_value: float | None = None
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    completed_from: datetime | None = None
    completed_to: datetime | None = None
    labels: tuple[Outcome, ...] = ()
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the bounds; a time without an offset is UTC.

        Raises:
            ValueError: one is no share, or the last time is not after the first.
        """
        for name in ("min_confidence", "min_learning_value"):
            share: float | None = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, and is {share}")
        for name in ("completed_from", "completed_to"):
            moment: datetime | None = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                object.__setattr__(self, name, moment.replace(tzinfo=UTC))
        if self.completed_from and self.completed_to and self.completed_from >= self.completed_to:
            raise ValueError(
                f"completed_to ({self.completed_to.isoformat()}) must be after completed_from"
                f" ({self.completed_from.isoformat()})"
            )


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """One run to export: where it is, and what it belongs together with.

    Attributes:
        chain: the run that the chain of its task begins with.
    """

    run_id: str
    partition_key: str
    content_digest: str
    conversation_id: str | None
    chain: str
    family_id: str | None

    @property
    def group_keys(self) -> list[str]:
        """What keeps it in one split with others."""
        keys = [f"chain {self.chain}"]
        if self.conversation_id:
            keys.append(f"conversation {self.conversation_id}")
        if self.family_id:
            keys.append(f"family {self.family_id}")
        return keys
