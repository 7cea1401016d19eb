"""Both ways to join the verdict under the current policy find the same one: for one run, and for many at once."""

import itertools
import random
from datetime import timedelta

import psycopg

from trajectory_pipeline.schema.verdicts import VERDICTS
from trajectory_pipeline.storage.postgres.current_verdicts import CURRENT_VERDICT, CURRENT_VERDICTS
from trajectory_pipeline_tests.storage.postgres.searchable import NOON, POLICY_ID, Run, add_policy, add_runs, insert


def test_one_verdict_of_each_run_is_joined_and_it_is_the_same(trajectory_database: str) -> None:
    rng, ids = random.Random(3), [f"run-{n}" for n in range(40)]
    with psycopg.connect(trajectory_database) as connection:
        add_policy(connection)
        add_runs(connection, [Run(run_id) for run_id in ids])
        digests = dict(connection.execute("SELECT run_id, content_digest FROM trajectory.trajectories").fetchall())
        for run_id, number in itertools.product(ids, range(5)):
            row = {
                "run_id": run_id,
                "verdict_key": f"{rng.random()}",
                "partition_key": "2026-11-02-12:00",
                "content_digest": rng.choice([digests[run_id], digests[run_id], "of former rows"]),
                "policy_id": rng.choice([POLICY_ID, POLICY_ID, "former"]),
                "repetition": rng.choice([0, 0, 1]),
                # Several at the same time.
                "updated_at": NOON + timedelta(minutes=rng.randrange(2)),
                "verdict_status": "judged",
                "outcome": f"of {number}",
            }
            insert(connection, VERDICTS, row)
        one, many = (
            dict(
                connection.execute(
                    f"SELECT t.run_id, o.verdict_key FROM trajectory.trajectories t{join} ORDER BY 1, 2".encode()
                ).fetchall()
            )
            for join in (CURRENT_VERDICT, CURRENT_VERDICTS)
        )
        (rows,) = connection.execute(
            f"SELECT count(*) FROM trajectory.trajectories t{CURRENT_VERDICTS}".encode()
        ).fetchone() or (0,)
    assert many == one
    assert rows == len(ids)
    assert 0 < sum(key is None for key in one.values()) < len(ids)
