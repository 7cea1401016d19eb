"""Tokens of the service."""

from trajectory_pipeline.schema.types import STRING, STRINGS, TIMESTAMP, Column, Table, postgres_only

_EVERYONE = "the token sees all runs"

SERVICE_TOKENS = Table(
    name="service_tokens",
    description="Tokens of the service (`trajectory-pipeline serve`): what each allows, and whose runs it sees.",
    row="one token",
    columns=postgres_only(
        Column("token_id", STRING, "Public part of the token, as logs and `tokens list` show it.", key=True),
        Column("token_sha256", STRING, "SHA-256 (hex) of the token, which is stored nowhere."),
        Column("name", STRING, "What it is for, as whoever made it said."),
        Column("scopes", STRINGS, "`read`, `judge`, `erase`."),
        Column("organizations", STRINGS, "Organizations whose runs it sees.", null=_EVERYONE),
        Column("agents", STRINGS, "Agents whose runs it sees too.", null=_EVERYONE),
        Column("created_at", TIMESTAMP, "When it was made."),
        Column("expires_at", TIMESTAMP, "When it ends to be valid.", null="never"),
        Column("revoked_at", TIMESTAMP, "When it was revoked.", null="not revoked"),
    ),
)
