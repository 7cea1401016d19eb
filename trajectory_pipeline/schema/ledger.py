"""The ledger of partitions, the quarantine, and where each run is.

Belongs here: the columns of the bookkeeping tables. Does not belong here: who writes them (``sinks``).
"""

from trajectory_pipeline.schema.types import INT, JSON, STRING, TIMESTAMP, Table
from trajectory_pipeline.schema.types import postgres_column as _column

PRUNED = "pruned"
"""Result of a partition that was removed from the sinks because of its age."""


PARTITIONS = Table(
    name="partitions",
    description="The ledger: what is in the sinks, by asset and partition; written with the rows, in one transaction.",
    row="one partition of one asset",
    columns=(
        _column("asset", STRING, "terminal_runs, trajectories or refined_outcomes.", key=True),
        _column("partition_key", STRING, "Dagster's partition key.", key=True),
        _column(
            "result",
            STRING,
            "`complete`; `quarantined` where some runs are in quarantine; or `pruned`: it was removed because of its"
            " age, and the other columns say what it held.",
        ),
        _column(
            "fingerprint",
            STRING,
            "Summary of the partition's rows in the source, as they were read.",
            null="the asset does not read the source",
        ),
        _column("counts", JSON, "What came in and what went out, by name."),
        _column("content_digest", STRING, "SHA-256 (hex) over the partition's rows: equal digests mean equal content."),
        _column("snapshot_at", TIMESTAMP, "When the source was read.", null="the asset does not read the source"),
        _column("materialized_at", TIMESTAMP, "When it was last written, or pruned."),
        _column("schema_version", STRING, "Version of the schema that it was written with."),
        _column("dagster_run_id", STRING, "The Dagster run that wrote it.", null="written outside Dagster"),
        _column(
            "upstream_digest",
            STRING,
            "`content_digest` of the partition of the asset upstream, as it was when this was made of it.",
            null="the asset reads the source, or the ledger did not know what it was made of",
        ),
        _column(
            "inputs_digest",
            STRING,
            "Digest of what else the content depends on: the code; agents, tools, prompts and columns of the source.",
            null="not known: the partition is made anew when it is asked for, even if its rows did not change",
        ),
        _column(
            "rows_checksum",
            STRING,
            "Digest of the versions of its rows in Postgres as they were written: any change to one changes it.",
            null="not known, or the asset is not compared by it",
        ),
    ),
    indexes=(("partition_key",),),
)

QUARANTINE = Table(
    name="quarantine",
    description="Runs that could not be converted: nothing of them is lost, and each is tried again at every"
    " materialisation.",
    row="one run",
    columns=(
        _column("run_id", STRING, "The run.", key=True),
        _column("partition_key", STRING, "Dagster's partition key."),
        _column("json_path", STRING, "Which row and column: `messages.content of message-…`."),
        _column("error", STRING, "What was wrong with it."),
        _column("raw", STRING, "The raw rows as JSON text (text, because jsonb cannot hold all that json can)."),
        _column("steps", INT, "Its own steps.", unit="steps"),
        _column("messages", INT, "Its messages.", unit="messages"),
        _column("first_seen_at", TIMESTAMP, "When it was first put here."),
        _column("last_seen_at", TIMESTAMP, "When it was last tried in vain."),
    ),
    indexes=(("partition_key",),),
)

RUN_LOCATIONS = Table(
    name="run_locations",
    description="Where each run was seen last: a run whose `completed_at` changes moves to another partition, and until"
    " both are read again, raw rows of it stand in two.",
    row="one run that was ever captured",
    columns=(
        _column("run_id", STRING, "The run.", key=True),
        _column(
            "partition_key",
            STRING,
            "The partition that holds it.",
            null="it left that partition (it runs again, or moved) and was not seen elsewhere since",
        ),
        _column("seen_at", TIMESTAMP, "Snapshot of the source, by its clock, that first saw it there."),
        _column(
            "first_captured_at",
            TIMESTAMP,
            "`first_captured_at` of its trajectory, kept while the trajectory is out of the table.",
            null="its trajectory never left the table",
        ),
    ),
    indexes=(("partition_key",),),
)

INVALIDATIONS = Table(
    name="invalidations",
    description="Partitions to be materialised again whatever their fingerprint says: a run was taken from one, or a"
    " file was replaced and the transaction that belongs to it did not end. A note goes with the materialisation.",
    row="one reason",
    columns=(
        _column("invalidation_id", STRING, "Of the note.", key=True),
        _column("asset", STRING, "terminal_runs or trajectories."),
        _column("partition_key", STRING, "Dagster's partition key."),
        _column("reason", STRING, "Why, in words."),
        _column("invalidated_at", TIMESTAMP, "When it was noted."),
    ),
)
