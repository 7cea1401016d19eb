"""What judging cost and may cost: accounts that caps are kept by, and who is at which verdict.

Belongs here: columns. Does not belong here: the caps (``budget.caps``), and the calls, which have a row each
(``schema.verdicts``).
"""

from trajectory_pipeline.schema.types import INT, MONEY, STRING, TIMESTAMP, Table
from trajectory_pipeline.schema.types import postgres_column as _column

SPEND_TOTALS = Table(
    name="spend_totals",
    description="What calls to judges took, by day, organisation and materialisation: what the caps are kept by."
    " Written with the attempts, in one transaction.",
    row="one account",
    columns=(
        _column("scope", STRING, "`day`, `organization` (one of a day) or `materialization`.", key=True),
        _column(
            "scope_key",
            STRING,
            "The UTC day; day and organisation id; or Dagster's run id, which is one materialisation.",
            key=True,
        ),
        _column("calls", INT, "HTTP calls begun.", unit="calls"),
        _column(
            "reserved_usd", MONEY, "For calls under way, and for those whose process was killed: at most.", unit="USD"
        ),
        _column("spent_usd", MONEY, "By calls that ended; those whose price was not told, at most.", unit="USD"),
        _column("reserved_tokens", INT, "The same in tokens.", unit="tokens"),
        _column("spent_tokens", INT, "The same in tokens.", unit="tokens"),
        _column("updated_at", TIMESTAMP, "When it last changed."),
    ),
)

VERDICT_LOCKS = Table(
    name="verdict_locks",
    description="Who is at which verdict, so that no two workers pay for one. Empty when nothing is being judged.",
    row="one verdict that is being reached",
    columns=(
        _column("verdict_key", STRING, "The verdict.", key=True),
        _column("worker", STRING, "Who is at it: host, process and a random part."),
        _column("claimed_at", TIMESTAMP, "When it was claimed, or the claim last renewed."),
        _column("expires_at", TIMESTAMP, "From then on anybody may take it over."),
    ),
)
