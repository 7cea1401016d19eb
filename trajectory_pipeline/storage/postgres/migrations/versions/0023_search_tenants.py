"""The organization and the agent beside search texts and embeddings, by which those of one are found without the rest.

Triggers keep them as they are in ``trajectories``, whoever writes: also a version from before.

Revision ID: 0023_search_tenants
Revises: 0022_run_versions
"""

import sqlalchemy as sa
from alembic import op

revision = "0023_search_tenants"
down_revision = "0022_run_versions"
branch_labels = None
depends_on = None

_FUNCTIONS = (
    """CREATE FUNCTION trajectory.set_tenants() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        SELECT t.organization_id, t.agent_id INTO NEW.organization_id, NEW.agent_id
        FROM trajectory.trajectories t WHERE t.run_id = NEW.run_id;
        RETURN NEW;
    END $$""",
    """CREATE FUNCTION trajectory.update_tenants() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    BEGIN
        UPDATE trajectory.search_texts SET organization_id = NEW.organization_id, agent_id = NEW.agent_id
        WHERE run_id = NEW.run_id;
        IF to_regclass('trajectory.trajectory_embeddings') IS NOT NULL THEN
            UPDATE trajectory.trajectory_embeddings
            SET organization_id = NEW.organization_id, agent_id = NEW.agent_id WHERE run_id = NEW.run_id;
        END IF;
        RETURN NULL;
    END $$""",
    # A run that changes its hour may be deleted, and inserted again later.
    """CREATE TRIGGER insert_tenants AFTER INSERT ON trajectory.trajectories FOR EACH ROW
    EXECUTE FUNCTION trajectory.update_tenants()""",
    """CREATE TRIGGER update_tenants AFTER UPDATE OF organization_id, agent_id ON trajectory.trajectories FOR EACH ROW
    WHEN ((OLD.organization_id, OLD.agent_id) IS DISTINCT FROM (NEW.organization_id, NEW.agent_id))
    EXECUTE FUNCTION trajectory.update_tenants()""",
)
# Policies of clients with tenants ask for both: with both in an index, the table need not be read.
_INDEXES = tuple(
    statement
    for column, other in (("agent_id", "organization_id"), ("organization_id", "agent_id"))
    for statement in (
        f"DROP INDEX trajectory.ix_trajectories_{column}_end_time",
        f"CREATE INDEX ix_trajectories_{column}_end_time ON trajectory.trajectories ({column}, end_time)"
        f" INCLUDE (run_id, deleted_at, {other})",
    )
)
_OF_TABLE = (
    "ALTER TABLE trajectory.{table} ADD COLUMN organization_id TEXT, ADD COLUMN agent_id TEXT",
    "CREATE TRIGGER set_tenants BEFORE INSERT ON trajectory.{table} FOR EACH ROW"
    " EXECUTE FUNCTION trajectory.set_tenants()",
)
_FILL_TABLE = (
    "UPDATE trajectory.{table} x SET organization_id = t.organization_id, agent_id = t.agent_id"
    " FROM trajectory.trajectories t WHERE t.run_id = x.run_id",
    "CREATE INDEX ON trajectory.{table} (organization_id)",
    "CREATE INDEX ON trajectory.{table} (agent_id)",
)
_MEANING_INDEXES = (
    "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE i.indrelid = to_regclass('trajectory.trajectory_embeddings')"
    " AND starts_with(c.relname::text, 'ix_trajectory_embeddings_hnsw_')"
)


def upgrade() -> None:
    """Add the columns, and fill them. Nothing is captured, read or searched meanwhile: minutes at a million runs."""
    config = op.get_context().config
    # Whoever only tries it keeps nobody waiting for minutes, and leaves no dead rows.
    rehearsed = config is not None and config.attributes.get("rehearse", False)
    for statement in (*_FUNCTIONS, *(() if rehearsed else _INDEXES)):
        op.execute(statement)
    connection = op.get_bind()
    # To bring it up to date row by row takes longer than to make it anew, which the next materialization does.
    for (name,) in connection.execute(sa.text(_MEANING_INDEXES)).all():
        op.execute(f"DROP INDEX trajectory.{name}")
    tables = ["search_texts"]
    # Where the extension is not there, its table is made later, with the columns.
    if connection.execute(sa.text("SELECT to_regclass('trajectory.trajectory_embeddings')")).scalar() is not None:
        tables.append("trajectory_embeddings")
    for table in tables:
        for statement in (*_OF_TABLE, *(() if rehearsed else _FILL_TABLE)):
            op.execute(statement.format(table=table))


def downgrade() -> None:
    """Refuse, as every revision does."""
    raise NotImplementedError("this schema cannot be downgraded: restore a backup instead")
