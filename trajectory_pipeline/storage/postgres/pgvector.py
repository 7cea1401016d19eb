"""The extension pgvector: whether it is there, and the table of embeddings, which is there only where the extension is.

The table is made outside the migrations, when the extension is first found: so installing it later takes no more than
``trajectory-pipeline migrate``, or the next materialization. Transactions have an empty search path; so types and
operators of the extension are written with the schema that it is in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.schema.types import SCHEMA_NAME

EXTENSION = "vector"
MINIMUM_VERSION = (0, 7)
"""The first one with ``halfvec``."""
_TABLE = f"{SCHEMA_NAME}.{TRAJECTORY_EMBEDDINGS.name}"
EXTENSION_STATE: LiteralString = (
    "SELECT n.nspname, e.extversion, to_regclass('trajectory.trajectory_embeddings') IS NOT NULL AS has_table"
    " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
)
"""Where the extension is: a row for ``as_pgvector``, or none."""
_STATEMENTS = (
    """CREATE TABLE trajectory.trajectory_embeddings (
        run_id TEXT NOT NULL,
        model_id TEXT NOT NULL,
        partition_key TEXT NOT NULL,
        text_digest TEXT NOT NULL,
        rendering_version TEXT NOT NULL,
        embedding {halfvec},
        embedded_at TIMESTAMP WITH TIME ZONE NOT NULL,
        error_class TEXT,
        error_message TEXT,
        failures BIGINT NOT NULL,
        next_attempt_at TIMESTAMP WITH TIME ZONE,
        organization_id TEXT,
        agent_id TEXT,
        PRIMARY KEY (run_id, model_id)
    )""",
    "CREATE INDEX ON trajectory.trajectory_embeddings (partition_key)",
    "CREATE INDEX ON trajectory.trajectory_embeddings (model_id, text_digest)",
    # What is to be tried again: mostly nothing.
    "CREATE INDEX ON trajectory.trajectory_embeddings (next_attempt_at) WHERE next_attempt_at IS NOT NULL",
    "CREATE INDEX ON trajectory.trajectory_embeddings (organization_id)",
    "CREATE INDEX ON trajectory.trajectory_embeddings (agent_id)",
    "CREATE TRIGGER set_tenants BEFORE INSERT ON trajectory.trajectory_embeddings FOR EACH ROW"
    " EXECUTE FUNCTION trajectory.set_tenants()",
)


@dataclass(frozen=True)
class PgVector:
    """Where the extension is, or why embeddings cannot be stored.

    Attributes:
        schema: that its types and operators are in; None where embeddings cannot be stored.
        missing: what is missing and what to do, as a sentence; empty where nothing is.
    """

    schema: str | None
    missing: str = ""

    @property
    def halfvec(self) -> sql.Identifier:
        """The type of embeddings, with its schema.

        Raises:
            ValueError: embeddings cannot be stored.
        """
        return sql.Identifier(self._schema, "halfvec")

    @property
    def cosine_distance(self) -> sql.Composed:
        """The operator for the cosine distance (0: same direction), with its schema.

        Raises:
            ValueError: embeddings cannot be stored.
        """
        return sql.SQL("OPERATOR({}.<=>)").format(sql.Identifier(self._schema))

    @property
    def _schema(self) -> str:
        if self.schema is None:
            raise ValueError(self.missing)
        return self.schema


def find_pgvector(connection: psycopg.Connection) -> PgVector:
    """Return where the extension is and whether the table of embeddings is there; changes nothing."""
    return as_pgvector(connection, connection.execute(EXTENSION_STATE).fetchone())


def as_pgvector(connection: psycopg.Connection, found: Sequence[Any] | None) -> PgVector:
    """Return what a row of ``EXTENSION_STATE`` says."""
    if found is None:
        return PgVector(None, _how_to_get(connection))
    schema, version, has_table = found
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_VERSION:
        return PgVector(
            None,
            f"Search by meaning needs pgvector {'.'.join(map(str, MINIMUM_VERSION))} or later, and this database has"
            f" {version}: install a newer one on the server, run `ALTER EXTENSION {EXTENSION} UPDATE`, then"
            " `trajectory-pipeline migrate`",
        )
    if not has_table:
        return PgVector(
            None,
            f"The table {_TABLE} is not there yet: run `trajectory-pipeline migrate` as the owner of the schema",
        )
    return PgVector(schema)


def ensure_embeddings_table(connection: psycopg.Connection) -> PgVector:
    """Make the extension and the table of embeddings, if they can be made and are not there; returns what there is.

    In the transaction of the caller. Where a right is missing, nothing changes, and the result says so.
    """
    found = find_pgvector(connection)
    if found.schema is not None:
        return found
    try:
        with connection.transaction():
            # Two workers that begin at once.
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('trajectory pgvector', 0))")
            if _is_installed(connection):
                has_public = connection.execute("SELECT FROM pg_namespace WHERE nspname = 'public'").rowcount
                where = "public" if has_public else SCHEMA_NAME
                connection.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA {where}".encode())
            extension = connection.execute(EXTENSION_STATE).fetchone()
            if extension is not None and not extension[2]:
                halfvec = PgVector(extension[0]).halfvec
                for statement in _STATEMENTS:
                    connection.execute(sql.SQL(statement).format(halfvec=halfvec))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
        # Not the owner, or a version without ``halfvec``: what is found says it.
        pass
    return find_pgvector(connection)


def _how_to_get(connection: psycopg.Connection) -> str:
    if _is_installed(connection):
        return (
            "Search by meaning needs the extension pgvector, which is installed on the server but not in this database:"
            f" run `CREATE EXTENSION {EXTENSION}` there as a user who may, then `trajectory-pipeline migrate`"
        )
    return (
        "Search by meaning needs the extension pgvector, which the server does not have: install it there (package"
        " postgresql-NN-pgvector, or the switch for extensions of a hosted database), then run `trajectory-pipeline"
        " migrate`"
    )


def _is_installed(connection: psycopg.Connection) -> bool:
    """Whether the server has the extension, in whichever database."""
    return connection.execute("SELECT FROM pg_available_extensions WHERE name = %s", [EXTENSION]).rowcount > 0
