"""A copy of the story's rows that belongs to two organizations, and tokens for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import psycopg
from psycopg import sql

from trajectory_pipeline.schema.enums import TokenScope
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.service_tokens import create_token, revoke_token
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs

COPIED = ("trajectories", "verdicts", "policies", "search_texts", "failure_modes", "failure_mode_runs", "partitions")
MINE, OTHER = "org-mine", "org-other"
ALL_SCOPES = frozenset(TokenScope)


@dataclass(frozen=True)
class Tokens:
    """Tokens by what they are, and the runs of each organization."""

    by_name: Mapping[str, str]
    runs: Mapping[str, frozenset[str]]
    agents: Mapping[str, frozenset[str]]

    def header(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.by_name[name]}"}


def copy_rows(source: str, target: str) -> None:
    """Copy what the service reads into an empty migrated database."""
    with psycopg.connect(source) as reading, psycopg.connect(target) as writing:
        for name in COPIED:
            columns = [
                row[0]
                for row in reading.execute(
                    "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                    " AND NOT attisdropped AND attgenerated = ''",
                    [f"trajectory.{name}"],
                )
            ]
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            table = sql.Identifier("trajectory", name)
            with (
                reading.cursor().copy(sql.SQL("COPY {} ({}) TO STDOUT").format(table, names)) as out,
                writing.cursor().copy(sql.SQL("COPY {} ({}) FROM STDIN").format(table, names)) as into,
            ):
                for block in out:
                    into.write(block)
        # As the asset renders them, but from verdicts alone.
        writing.execute(
            "INSERT INTO trajectory.search_texts (run_id, partition_key, text, rendering_version, text_digest,"
            " content_digest, verdict_key, rendered_at) SELECT run_id, partition_key, concat(summary, ' ', lesson),"
            " '1', run_id, content_digest, verdict_key, now() FROM trajectory.verdicts ON CONFLICT DO NOTHING"
        )


def make_tenants(url: str) -> Tokens:
    """Give every other agent to the one organization, the rest to the other, and make tokens."""
    with psycopg.connect(url) as connection:
        agents = [row[0] for row in connection.execute("SELECT DISTINCT agent_id FROM trajectory.trajectories")]
        agents.sort()
        for organization, ids in ((MINE, agents[::2]), (OTHER, agents[1::2])):
            connection.execute(
                "UPDATE trajectory.trajectories SET organization_id = %s WHERE agent_id = ANY(%s)", [organization, ids]
            )
        runs = {
            organization: frozenset(
                row[0]
                for row in connection.execute(
                    "SELECT run_id FROM trajectory.trajectories WHERE organization_id = %s", [organization]
                )
            )
            for organization in (MINE, OTHER)
        }
    database = TrajectoryDatabase(url)
    mine, nobody = Tenants(frozenset({MINE}), frozenset()), Tenants(frozenset({"org-nobody"}), frozenset())
    agent = Tenants(frozenset(), frozenset({agents[1]}))
    both = Tenants(frozenset({MINE}), frozenset({agents[1]}))
    day = timedelta(days=1)
    tokens = {
        "mine": create_token(database, "mine", ALL_SCOPES, mine, day),
        "agent": create_token(database, "one agent", ALL_SCOPES, agent, None),
        "both": create_token(database, "both", ALL_SCOPES, both, None),
        "foreign": create_token(database, "foreign", ALL_SCOPES, nobody, day),
        "all": create_token(database, "all", ALL_SCOPES, None, day),
        "reader": create_token(database, "reader", {TokenScope.READ}, None, day),
        "judge": create_token(database, "judge", {TokenScope.JUDGE}, None, day),
        "expired": create_token(database, "expired", ALL_SCOPES, None, timedelta(seconds=-1)),
        "revoked": create_token(database, "revoked", ALL_SCOPES, None, day),
    }
    revoke_token(database, tokens["revoked"].split("_")[1])
    return Tokens(tokens, runs, {MINE: frozenset(agents[::2]), OTHER: frozenset(agents[1::2])})


def insert_run(url: str, run_id: str, organization: str) -> None:
    """Insert a run of an organization, and nothing else of it."""
    with psycopg.connect(url) as connection:
        add_runs(connection, [Run(run_id, text=None, organization_id=organization)])
