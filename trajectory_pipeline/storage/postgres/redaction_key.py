"""The key of placeholders for secrets, in the trajectory database where no setting gives one."""

import secrets

from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase


def redaction_key(database: TrajectoryDatabase, configured: bytes | None = None) -> bytes:
    """Return the configured key, else the stored one: the same for every worker; the first call makes it."""
    if configured:
        return configured
    with (
        database.connect(autocommit=True) as connection,
        translating_database_errors(database.url, "Reading the redaction key"),
    ):
        connection.execute(
            "INSERT INTO trajectory.redaction_keys (name, secret, created_at) VALUES ('tags', %s, now())"
            " ON CONFLICT (name) DO NOTHING",
            [secrets.token_hex(32)],
        )
        row = connection.execute("SELECT secret FROM trajectory.redaction_keys WHERE name = 'tags'").fetchone()
    if row is None:
        raise RuntimeError("the redaction key was removed while it was read")
    return bytes.fromhex(row[0])
