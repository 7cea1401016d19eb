"""Tables of bookkeeping: the ledger of partitions, quarantine, locations of runs, spending, locks and rate limits."""

from trajectory_pipeline.schema.types import INT, JSON, MONEY, STRING, TIMESTAMP, Table, postgres_column

PARTITIONS = Table(
    name="partitions",
    description="The ledger: what Parquet and Postgres hold, by asset and partition. Written in one transaction with"
    " the rows.",
    row="one partition of one asset",
    columns=(
        postgres_column("asset", STRING, "`terminal_runs`, `trajectories` or `refined_outcomes`.", key=True),
        postgres_column("partition_key", STRING, "Dagster's partition key.", key=True),
        postgres_column(
            "result",
            STRING,
            "`complete`; `quarantined`: some runs are in quarantine; or `pruned`: deleted because of its age, and the"
            " other columns describe what it held.",
        ),
        postgres_column(
            "fingerprint",
            STRING,
            "Summary of the partition's rows in the source when they were read.",
            null="the asset does not read the source",
        ),
        postgres_column("counts", JSON, "Counts of rows read and written, by name."),
        postgres_column(
            "content_digest", STRING, "SHA-256 (hex) over the partition's rows: equal digests mean equal content."
        ),
        postgres_column(
            "snapshot_at", TIMESTAMP, "When the source was read.", null="the asset does not read the source"
        ),
        postgres_column("materialized_at", TIMESTAMP, "When it was last written or pruned."),
        postgres_column("schema_version", STRING, "Schema version that it was written with."),
        postgres_column("dagster_run_id", STRING, "Dagster run that wrote it.", null="written outside Dagster"),
        postgres_column(
            "upstream_digest",
            STRING,
            "`content_digest` of the upstream asset's partition that this one was made from.",
            null="the asset reads the source, or the ledger did not record its input",
        ),
        postgres_column(
            "inputs_digest",
            STRING,
            "Digest of the other inputs: code, agents, tools, prompts and columns of the source.",
            null="unknown: the next materialization rebuilds the partition even if its rows did not change",
        ),
        postgres_column(
            "rows_checksum",
            STRING,
            "Digest of the versions of its rows in Postgres as written: it changes with any change to a row.",
            null="unknown, or not used for this asset",
        ),
    ),
    indexes=(("partition_key",),),
)

QUARANTINE = Table(
    name="quarantine",
    description="Runs that could not be converted, with their raw rows. Every materialization retries them.",
    row="one run",
    columns=(
        postgres_column("run_id", STRING, "The run.", key=True),
        postgres_column("partition_key", STRING, "Dagster's partition key."),
        postgres_column("json_path", STRING, "Row and column with the problem: `messages.content of message-…`."),
        postgres_column("error", STRING, "What is wrong with it."),
        postgres_column("raw", STRING, "The raw rows as JSON text (text, because `jsonb` cannot hold all JSON)."),
        postgres_column("steps", INT, "Own steps of the run.", unit="steps"),
        postgres_column("messages", INT, "Messages of the run.", unit="messages"),
        postgres_column("first_seen_at", TIMESTAMP, "When it was first quarantined."),
        postgres_column("last_seen_at", TIMESTAMP, "When it last failed to convert."),
    ),
    indexes=(("partition_key",),),
)

RUN_LOCATIONS = Table(
    name="run_locations",
    description="The partition in which each run was last seen. A run whose `completed_at` changes moves to another"
    " partition; until both are read again, both hold its raw rows.",
    row="one run that was ever captured",
    columns=(
        postgres_column("run_id", STRING, "The run.", key=True),
        postgres_column(
            "partition_key",
            STRING,
            "Partition that holds it.",
            null="it left its partition (it runs again, or moved) and was not seen since",
        ),
        postgres_column("seen_at", TIMESTAMP, "First snapshot that saw it there, by the source's clock."),
        postgres_column(
            "first_captured_at",
            TIMESTAMP,
            "`first_captured_at` of its trajectory while the trajectory is not in the table.",
            null="its trajectory never left the table",
        ),
    ),
    indexes=(("partition_key",),),
)

INVALIDATIONS = Table(
    name="invalidations",
    description="Partitions to materialize again whatever their fingerprint: a run moved out of one, or a file was"
    " replaced but its transaction did not commit. A materialization deletes the partition's entries.",
    row="one reason",
    columns=(
        postgres_column("invalidation_id", STRING, "UUID of the entry.", key=True),
        postgres_column("asset", STRING, "`terminal_runs` or `trajectories`."),
        postgres_column("partition_key", STRING, "Dagster's partition key."),
        postgres_column("reason", STRING, "Why, as a sentence."),
        postgres_column("invalidated_at", TIMESTAMP, "When it was added."),
    ),
)

SPEND_TOTALS = Table(
    name="spend_totals",
    description="Totals of calls to judges, by day, organization and materialization: the basis of the caps. Written in"
    " one transaction with the attempts.",
    row="one total",
    columns=(
        postgres_column("scope", STRING, "`day`, `organization` (per day) or `materialization`.", key=True),
        postgres_column(
            "scope_key",
            STRING,
            "The UTC day; day and organization id; or the Dagster run id of the materialization.",
            key=True,
        ),
        postgres_column("calls", INT, "HTTP calls started.", unit="calls"),
        postgres_column(
            "reserved_usd",
            MONEY,
            "Largest possible cost of calls in progress, and of calls whose process was killed.",
            unit="USD",
        ),
        postgres_column(
            "spent_usd", MONEY, "Cost of finished calls; without a reported price, the largest possible.", unit="USD"
        ),
        postgres_column("reserved_tokens", INT, "Like `reserved_usd`, in tokens.", unit="tokens"),
        postgres_column("spent_tokens", INT, "Like `spent_usd`, in tokens.", unit="tokens"),
        postgres_column("updated_at", TIMESTAMP, "When it last changed."),
    ),
)

VERDICT_LOCKS = Table(
    name="verdict_locks",
    description="Locks on verdicts in progress, so that no two workers pay for the same one. Empty when nothing is"
    " being judged.",
    row="one verdict in progress",
    columns=(
        postgres_column("verdict_key", STRING, "The verdict.", key=True),
        postgres_column("worker", STRING, "Worker that holds the lock: host, process id and a random part."),
        postgres_column("claimed_at", TIMESTAMP, "When it was claimed or last renewed."),
        postgres_column("expires_at", TIMESTAMP, "When another worker may take it over."),
    ),
)

RATE_LIMITS = Table(
    name="rate_limits",
    description="When the next call to a judge may start, under `TRAJECTORY_JUDGE_REQUESTS_PER_MINUTE` and"
    " `TRAJECTORY_JUDGE_TOKENS_PER_MINUTE`. Empty without them.",
    row="one model at one endpoint",
    columns=(
        postgres_column("base_url", STRING, "Endpoint, without credentials.", key=True),
        postgres_column("model", STRING, "The judge's model.", key=True),
        postgres_column("next_at", TIMESTAMP, "When the next call may start."),
    ),
)
