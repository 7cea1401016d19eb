"""The role under which clients with tenants read, and the policies that show it the rows of these tenants alone.

Nothing of it is there until the first such client: policies would concern every other user of the database who does
not own the tables. See docs/decisions/0045-hold-clients-to-their-tenants-by-policies-on-tables.md.
"""

import psycopg
from psycopg import sql

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.schema.types import SCHEMA_NAME

ROLE = "trajectory_service"
ORGANIZATIONS = "trajectory.organizations"
AGENTS = "trajectory.agents"
POLICY = "service_tenants_2"
"""With the version of what it says: another one replaces it."""
_EVERYONE = "service_everyone_1"

_OF_ORGANIZATIONS = (
    f"organization_id = ANY ((SELECT nullif(current_setting('{ORGANIZATIONS}', true), '')::text[])::text[])"
)
_OF_AGENTS = f"agent_id = ANY ((SELECT nullif(current_setting('{AGENTS}', true), '')::text[])::text[])"
_TENANTS = f"{_OF_ORGANIZATIONS} OR {_OF_AGENTS}"
NEWEST_WITH_WORDS = "trajectory.service_newest_with_words_3"
"""A function that returns the ids of the newest runs of the tenants whose texts match a query.

Parameters: the query, how many, whether few texts match it.
"""
_OF_FUNCTION = f"{NEWEST_WITH_WORDS}(tsquery, bigint, boolean)"
# Where few match, by the indexes of words and tenants: Postgres expects more of rare words, and would read texts in
# order of time until enough match. Then one after the other until enough are found: it would read all trajectories.
_NEWEST_WITH_WORDS = f"""
CREATE OR REPLACE FUNCTION {_OF_FUNCTION} RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
(SELECT m.run_id FROM (
    SELECT s.run_id, s.partition_key FROM trajectory.search_texts s WHERE $3 AND s.words @@ $1 AND ({_TENANTS})
    ORDER BY s.partition_key DESC, s.run_id OFFSET 0) m
CROSS JOIN LATERAL (
    SELECT FROM trajectory.trajectories t WHERE t.run_id = m.run_id AND t.deleted_at IS NULL OFFSET 0) t
ORDER BY m.partition_key DESC, m.run_id LIMIT $2)
UNION ALL
(SELECT s.run_id FROM trajectory.search_texts s WHERE NOT $3 AND s.words @@ $1 AND ({_TENANTS})
    AND EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = s.run_id AND t.deleted_at IS NULL)
ORDER BY s.partition_key DESC, s.run_id LIMIT $2) $$"""
# The policy of trajectories holds inside too.
_OF_A_RUN = "EXISTS (SELECT FROM trajectory.trajectories t WHERE t.run_id = {table}.run_id)"

TENANT_TABLES = {
    "trajectories": _TENANTS,
    "verdicts": _OF_A_RUN,
    # Triggers keep both columns of these as they are in trajectories.
    "search_texts": _TENANTS,
    "trajectory_embeddings": _TENANTS,
    "task_family_runs": _OF_A_RUN,
    "similar_runs": f"{_OF_A_RUN} AND {_OF_A_RUN.replace('{table}.run_id', '{table}.similar_run_id')}",
}
"""What the role sees of the tables with rows of tenants."""
SHARED_TABLES = ("policies", "embedding_models")
"""Tables that hold nothing of any tenant, and are shown whole."""

_TABLES = " FROM pg_class c WHERE c.relnamespace = %(schema)s::regnamespace AND c.relname = ANY(%(tables)s)"
_NOT_OWNED = f"SELECT c.relname{_TABLES} AND NOT pg_has_role(c.relowner, 'USAGE')"
_STATE = (
    "SELECT c.relname, c.relrowsecurity, ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid),"
    f" has_table_privilege(%(role)s, c.oid, 'SELECT'){_TABLES}"
)
_MAY_FIND_WORDS = f"SELECT has_function_privilege(%s, to_regprocedure('{_OF_FUNCTION}'), 'EXECUTE')"
_PARAMETERS = {"role": ROLE, "schema": SCHEMA_NAME, "tables": [*TENANT_TABLES, *SHARED_TABLES]}


def prepare_service_role(connection: psycopg.Connection) -> None:
    """Make role, grants and policies, as far as they are not there, in the transaction of the caller.

    Raises:
        SinkError: this user may not; the text says what an administrator has to run.
    """
    connection.execute("SET LOCAL lock_timeout = '5s'")
    # Two that begin at once.
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('trajectory service role', 0))")
    for (name,) in connection.execute(_NOT_OWNED, _PARAMETERS):
        raise SinkError(
            f"Clients with tenants are held to them by policies on tables, and this user does not own"
            f" {SCHEMA_NAME}.{name}: connect as its owner (TRAJECTORY_DATABASE_URL), or make a token that sees all"
            " runs (--all-tenants)."
        )
    _make_role(connection)
    role, schema = sql.Identifier(ROLE), sql.Identifier(SCHEMA_NAME)
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, role))
    for name, has_policies, policies, readable in connection.execute(_STATE, _PARAMETERS).fetchall():
        table = sql.Identifier(SCHEMA_NAME, name)
        condition = TENANT_TABLES.get(name)
        if condition is not None and not (has_policies and {POLICY, _EVERYONE} <= set(policies)):
            for old in policies:
                if old.startswith("service_"):
                    connection.execute(sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(old), table))
            for statement in (
                "CREATE POLICY {everyone} ON {table} USING (true) WITH CHECK (true)",
                "CREATE POLICY {tenants} ON {table} AS RESTRICTIVE TO {role} USING ({condition})",
                "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            ):
                connection.execute(
                    sql.SQL(statement).format(
                        everyone=sql.Identifier(_EVERYONE),
                        tenants=sql.Identifier(POLICY),
                        table=table,
                        role=role,
                        condition=sql.SQL(condition.format(table=name)),
                    )
                )
        if not readable:
            # Last: at no time may the role read without a policy.
            connection.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(table, role))
    # A policy comes before a condition that is not leakproof, so that the role could not use the index of words. What
    # the function returns is read under the policies like all else: it cannot show more, only be found sooner.
    connection.execute(sql.SQL(_NEWEST_WITH_WORDS))
    function = sql.SQL(_OF_FUNCTION)
    connection.execute(sql.SQL("REVOKE ALL ON FUNCTION {} FROM PUBLIC").format(function))
    connection.execute(sql.SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(function, role))


def is_prepared(connection: psycopg.Connection) -> bool:
    """Return whether role, grants and policies are all there."""
    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount == 0:
        return False
    if connection.execute(_MAY_FIND_WORDS, [ROLE]).fetchone() != (True,):
        return False
    return all(
        readable and (name in SHARED_TABLES or (has_policies and {POLICY, _EVERYONE} <= set(policies)))
        for name, has_policies, policies, readable in connection.execute(_STATE, _PARAMETERS)
    )


def _make_role(connection: psycopg.Connection) -> None:
    """Create the role, which nobody can log in as, and let this user become it."""
    role, version = sql.Identifier(ROLE), connection.info.server_version
    try:
        with connection.transaction():
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [ROLE]).rowcount == 0:
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
            if not _can_become(connection):
                # Whoever inherits from it would be held to tenants as well.
                options = " WITH INHERIT FALSE, SET TRUE" if version >= 160_000 else ""
                connection.execute(sql.SQL("GRANT {} TO CURRENT_USER" + options).format(role))
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidGrantOperation):
        user = connection.execute("SELECT current_user").fetchall()[0][0]
        raise SinkError(
            "Clients with tenants read under a role of their own, which this user may not make. A superuser of the"
            f" server can: CREATE ROLE {ROLE} NOLOGIN; GRANT {ROLE} TO {sql.Identifier(user).as_string(connection)};"
            " Or make a token that sees all runs (--all-tenants)."
        ) from None


def _can_become(connection: psycopg.Connection) -> bool:
    how = "SET" if connection.info.server_version >= 160_000 else "MEMBER"
    return bool(connection.execute("SELECT pg_has_role(current_user, %s, %s)", [ROLE, how]).fetchall()[0][0])
