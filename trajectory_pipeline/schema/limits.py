"""When the next call to a judge may be made, where a limit is shared by all workers.

Belongs here: columns. Does not belong here: how turns are taken (``storage.postgres.rate_limiter``).
"""

from trajectory_pipeline.schema.types import POSTGRES_ONLY, STRING, TIMESTAMP, Column, Table

RATE_LIMITS = Table(
    name="rate_limits",
    description="When the next call to a judge may be made, under `TRAJECTORY_JUDGE_REQUESTS_PER_MINUTE` and"
    " `TRAJECTORY_JUDGE_TOKENS_PER_MINUTE`; empty without them.",
    row="one model at one endpoint",
    columns=(
        Column("base_url", STRING, "Endpoint, without credentials.", key=True, sinks=POSTGRES_ONLY),
        Column("model", STRING, "The model that is asked.", key=True, sinks=POSTGRES_ONLY),
        Column("next_at", TIMESTAMP, "When the next turn is free.", sinks=POSTGRES_ONLY),
    ),
)
