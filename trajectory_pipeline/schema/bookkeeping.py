"""Tables of bookkeeping: the ledger of partitions, quarantine, locations of runs, spending, locks and rate limits."""

from trajectory_pipeline.schema.types import (
    BOOL,
    INT,
    JSON,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    Table,
    dollars,
    postgres_only,
    tokens,
)

_NOT_FROM_SOURCE = "the asset does not read the source"

PARTITIONS = Table(
    name="partitions",
    description="The ledger: what Parquet and Postgres hold, by asset and partition. Written in one transaction with"
    " the rows.",
    row="one partition of one asset",
    columns=postgres_only(
        Column("asset", STRING, "`terminal_runs`, `trajectories` or `refined_outcomes`.", key=True),
        Column("partition_key", STRING, "Dagster's partition key.", key=True),
        Column(
            "result",
            STRING,
            "`complete`; `quarantined`: some runs are in quarantine; or `pruned`: deleted because of its age, and the"
            " other columns describe what it held.",
        ),
        Column("fingerprint", STRING, "Summary of the partition's rows in the source as read.", null=_NOT_FROM_SOURCE),
        Column("counts", JSON, "Counts of rows read and written, by name."),
        Column("content_digest", STRING, "SHA-256 (hex) over the partition's rows: equal digests mean equal content."),
        Column("snapshot_at", TIMESTAMP, "When the source was read.", null=_NOT_FROM_SOURCE),
        Column("materialized_at", TIMESTAMP, "When it was last written or pruned."),
        Column("schema_version", STRING, "Schema version that it was written with."),
        Column("dagster_run_id", STRING, "Dagster run that wrote it.", null="written outside Dagster"),
        Column(
            "upstream_digest",
            STRING,
            "`content_digest` of the upstream asset's partition that this one was made from.",
            null="the asset reads the source, or the ledger did not record its input",
        ),
        Column(
            "inputs_digest",
            STRING,
            "Digest of the other inputs: code, agents, tools, prompts and columns of the source; of `refined_outcomes`,"
            " the policy.",
            null="unknown: the next materialization rebuilds the partition even if its rows did not change",
        ),
        Column(
            "rows_checksum",
            STRING,
            "Digest of the versions of its rows in Postgres as written: it changes with any change to a row. Of"
            " `refined_outcomes`: digest of the verdicts that its file holds.",
            null="unknown, or not used for this asset; or its files were pruned",
        ),
        Column("source_identity", STRING, "`identity` of the source that was read.", null=_NOT_FROM_SOURCE),
        Column(
            "source_position",
            INT,
            "Position in the source's WAL that its rows were read at.",
            unit="bytes",
            null="the asset does not read the source, or the source does not tell",
        ),
    ),
    indexes=(("partition_key",),),
)

QUARANTINE = Table(
    name="quarantine",
    description="Runs that could not be converted, with their raw rows. Every materialization retries them.",
    row="one run",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column("partition_key", STRING, "Dagster's partition key."),
        Column("json_path", STRING, "Row and column with the problem: `messages.content of message-…`."),
        Column("error", STRING, "What is wrong with it."),
        Column("raw", STRING, "The raw rows as JSON text (text, because `jsonb` cannot hold all JSON)."),
        Column("steps", INT, "Own steps of the run.", unit="steps"),
        Column("messages", INT, "Messages of the run.", unit="messages"),
        Column("first_seen_at", TIMESTAMP, "When it was first quarantined."),
        Column("last_seen_at", TIMESTAMP, "When it last failed to convert."),
    ),
    indexes=(("partition_key",),),
)

RUN_LOCATIONS = Table(
    name="run_locations",
    description="The partition in which each run was last seen. A run whose `completed_at` changes moves to another"
    " partition; until both are read again, both hold its raw rows.",
    row="one run that was ever captured",
    columns=postgres_only(
        Column("run_id", STRING, "The run.", key=True),
        Column(
            "partition_key", STRING, "Partition that holds it.", null="it left its partition and was not seen since"
        ),
        Column("seen_at", TIMESTAMP, "First snapshot that saw it there, by the source's clock."),
        Column(
            "first_captured_at",
            TIMESTAMP,
            "`first_captured_at` of its trajectory while the trajectory is not in the table.",
            null="its trajectory never left the table",
        ),
    ),
    indexes=(("partition_key",),),
)

RUN_VERSIONS = Table(
    name="run_versions",
    description="What the raw rows of each partition of many runs were made of, so that only runs that changed are read"
    " from the source and converted again. A partition without an entry, or of another file, is read whole.",
    row="one partition of raw rows",
    columns=postgres_only(
        Column("partition_key", STRING, "Dagster's partition key.", key=True),
        Column("raw_digest", STRING, "`content_digest` of the file of raw rows that it describes."),
        Column("scope", STRING, "Digest of what versions are compared in: the source, its columns, and our code."),
        Column(
            "versions",
            STRING,
            "Versions of the runs that the source has, as in the file: 64-bit numbers, little-endian, as Base64.",
        ),
        Column(
            "base_digest",
            STRING,
            "`content_digest` of the file of raw rows that `trajectories` were made of when this was written.",
            null="none, or of rows of which it is not known what changed since",
        ),
        Column("changed_run_ids", STRINGS, "Runs whose raw rows differ from those in `base_digest`.", null="not known"),
        Column(
            "reference_run_ids",
            STRINGS,
            "Runs that the reference converter converted, when trajectories were made last.",
            null="no trajectories were made yet",
        ),
    ),
)

INVALIDATIONS = Table(
    name="invalidations",
    description="Partitions to materialize again whatever their fingerprint: a run moved out of one, or a file was"
    " replaced but its transaction did not commit. A materialization deletes the partition's entries.",
    row="one reason",
    columns=postgres_only(
        Column("invalidation_id", STRING, "UUID of the entry.", key=True),
        Column("asset", STRING, "`terminal_runs` or `trajectories`."),
        Column("partition_key", STRING, "Dagster's partition key."),
        Column("reason", STRING, "Why, as a sentence."),
        Column("invalidated_at", TIMESTAMP, "When it was added."),
    ),
)

SOURCES = Table(
    name="sources",
    description="What was captured from. What is missing counts as deleted in the accepted one of each source only.",
    row="one database, folder or server",
    columns=postgres_only(
        Column(
            "identity",
            STRING,
            "Of Postgres: cluster and timeline (where they can be read) and database; else source and place.",
            key=True,
        ),
        Column("accepted", BOOL, "Whether deletions count: the first one, until a person accepts another."),
        Column(
            "accepted_at",
            TIMESTAMP,
            "When a person last accepted deletions in it, by its clock.",
            null="nobody had to",
        ),
        Column("first_seen_at", TIMESTAMP, "When it was first captured from."),
        Column("source", STRING, "Name of the source that it is, or was: `letta`, or a name in `TRAJECTORY_SOURCES`."),
    ),
)

SPEND_TOTALS = Table(
    name="spend_totals",
    description="Totals of calls to judges, by day, organization and materialization: the basis of the caps. Written in"
    " one transaction with the attempts.",
    row="one total",
    columns=postgres_only(
        Column("scope", STRING, "`day`, `organization` (per day) or `materialization`.", key=True),
        Column(
            "scope_key",
            STRING,
            "UTC day; day and organization id; or Dagster run id, or `search` or `panel` and a random id.",
            key=True,
        ),
        Column("calls", INT, "HTTP calls started.", unit="calls"),
        dollars("reserved_usd", "Largest possible cost of calls in progress, and of calls whose process was killed."),
        dollars("spent_usd", "Cost of finished calls; without a reported price, the largest possible."),
        tokens("reserved_tokens", "Like `reserved_usd`, in tokens."),
        tokens("spent_tokens", "Like `spent_usd`, in tokens."),
        Column("updated_at", TIMESTAMP, "When it last changed."),
    ),
)

VERDICT_LOCKS = Table(
    name="verdict_locks",
    description="Locks on verdicts in progress, so that no two workers pay for the same one. Empty when nothing is"
    " being judged.",
    row="one verdict in progress",
    columns=postgres_only(
        Column("verdict_key", STRING, "The verdict; or `batch:` and the id of a batch in work.", key=True),
        Column("worker", STRING, "Worker that holds the lock: host, process id and a random part."),
        Column("claimed_at", TIMESTAMP, "When it was claimed or last renewed."),
        Column("expires_at", TIMESTAMP, "When another worker may take it over."),
    ),
)

RATE_LIMITS = Table(
    name="rate_limits",
    description="When the next call to a model may start, under the limits a minute of judging (`TRAJECTORY_JUDGE_…`)"
    " and of embedding (`TRAJECTORY_EMBEDDING_…`). Empty without them.",
    row="one model at one endpoint",
    columns=postgres_only(
        Column("base_url", STRING, "Endpoint, without credentials.", key=True),
        Column("model", STRING, "The judge's model.", key=True),
        Column("next_at", TIMESTAMP, "When the next call may start."),
    ),
)
