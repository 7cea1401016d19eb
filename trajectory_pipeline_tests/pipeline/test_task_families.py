"""Each embedded run is in a task family that stays, and names the earlier runs of it that it is most like."""

import math
from collections import Counter, defaultdict

import numpy as np
import psycopg
import pytest

from trajectory_pipeline.pipeline.task_families import update_task_families
from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.task_families import NEAREST, family_outcomes
from trajectory_pipeline_tests.pipeline.kinds_of_tasks import CENTERS, kind_of_task, made_up
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_model, add_policy, add_runs


@pytest.fixture
def database(trajectory_database: str) -> TrajectoryDatabase:
    """A migrated database with a current model and policy."""
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection)
        add_policy(connection)
    return TrajectoryDatabase(trajectory_database)


def add(database: TrajectoryDatabase, runs: list[Run]) -> None:
    with psycopg.connect(database.url) as connection:
        add_runs(connection, runs)


def families(database: TrajectoryDatabase) -> dict[str, str]:
    rows = database.rows("SELECT run_id, family_id FROM trajectory.task_family_runs")
    return {row["run_id"]: row["family_id"] for row in rows}


def similar(database: TrajectoryDatabase) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row in database.rows("SELECT * FROM trajectory.similar_runs ORDER BY run_id, similarity DESC, similar_run_id"):
        found[row["run_id"]].append(row["similar_run_id"])
    return dict(found)


def test_runs_of_one_kind_of_task_are_one_family_and_stay_in_it(database: TrajectoryDatabase) -> None:
    add(database, made_up(range(60)))
    assert update_task_families(database) == 60
    before = families(database)
    assert sorted(Counter(before.values()).values()) == [20, 20, 20]
    assert len({(kind_of_task(run_id), family) for run_id, family in before.items()}) == 3
    # More runs, some of them earlier, and the same call again.
    add(database, [*made_up(range(60, 69)), *made_up(range(69, 75), minutes=-999)])
    assert (update_task_families(database), update_task_families(database)) == (15, 0)
    after = families(database)
    assert before.items() <= after.items()
    assert len(set(after.values())) == 3


def test_each_run_names_the_earlier_ones_that_it_is_most_like_however_late_they_came(
    database: TrajectoryDatabase,
) -> None:
    runs = [*made_up(range(60)), *made_up(range(60, 72), minutes=-999), *made_up(range(72, 78))]
    for portion in (runs[:60], runs[60:72], runs[72:]):
        add(database, portion)
        update_task_families(database)
    ended = {run.run_id: run.end_time for run in runs}
    vectors = {run.run_id: np.array(run.vector, dtype=np.float16).astype(float) for run in runs}

    def likeness(one: str, other: str) -> float:
        return float(vectors[one] @ vectors[other] / math.hypot(*vectors[one]) / math.hypot(*vectors[other]))

    found, family = similar(database), families(database)
    for run_id in ended:
        earlier = [one for one in ended if family[one] == family[run_id] and ended[one] < ended[run_id]]
        nearest = sorted(earlier, key=lambda one: -likeness(run_id, one))[:NEAREST]
        assert [likeness(run_id, one) for one in found.get(run_id, [])] == pytest.approx(
            [likeness(run_id, one) for one in nearest], abs=1e-5
        )
        assert set(found.get(run_id, [])) <= set(earlier)


def test_organizations_have_families_of_their_own(database: TrajectoryDatabase) -> None:
    add(database, [*made_up(range(60)), *made_up(range(60, 120), organization_id="org-b")])
    add(database, made_up(range(120, 180), organization_id=None))
    update_task_families(database)
    found = families(database)
    assert len(set(found.values())) == 9
    of_family = defaultdict(set)
    for run_id, family in found.items():
        of_family[family].add(int(run_id.split("-")[1]) // 60)
    assert all(len(organizations) == 1 for organizations in of_family.values())


def test_families_begin_when_there_are_enough_runs_to_compare(database: TrajectoryDatabase) -> None:
    add(database, made_up(range(49)))
    assert update_task_families(database) == 0
    add(database, made_up(range(49, 50)))
    assert update_task_families(database) == 50


def test_a_family_outlives_the_run_that_founded_it(database: TrajectoryDatabase) -> None:
    add(database, made_up(range(60)))
    update_task_families(database)
    family = families(database)["run-000"]
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = 'run-000'")
        connection.execute("DELETE FROM trajectory.trajectory_embeddings WHERE run_id = 'run-000'")
    add(database, made_up(range(60, 63)))
    update_task_families(database)
    found = families(database)
    assert "run-000" not in found
    assert found["run-003"] == found["run-060"] == family
    (row,) = database.rows("SELECT * FROM trajectory.task_families WHERE family_id = %s", [family])
    assert row["representative_run_id"] == "run-003"
    assert all("run-000" not in (one, *others) for one, others in similar(database).items())


def test_another_model_keeps_the_families(database: TrajectoryDatabase) -> None:
    runs = made_up(range(60))
    add(database, runs)
    update_task_families(database)
    before = families(database)
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.embedding_models SET is_current = false")
        add_model(connection, "another")
        # The axes change places: vectors of two models have nothing to do with each other.
        connection.execute(
            "INSERT INTO trajectory.trajectory_embeddings (run_id, model_id, partition_key, text_digest,"
            " rendering_version, embedding, embedded_at, failures)"
            " SELECT run_id, 'another', partition_key, text_digest, rendering_version, ('[' || split_part(v, ',', 2)"
            " || ',' || split_part(v, ',', 3) || ',' || split_part(v, ',', 1) || ']')::public.halfvec, now(), 0"
            " FROM (SELECT *, trim(embedding::text, '[]') AS v FROM trajectory.trajectory_embeddings) e"
        )
        new = [
            Run(f"run-{n:03}", vector=(*CENTERS[n % 3][1:], CENTERS[n % 3][0]), model_id="another")
            for n in range(60, 120)
        ]
        add_runs(connection, new)
    assert update_task_families(database) == 60
    after = families(database)
    assert before.items() <= after.items()
    assert all(after[run.run_id] == after[f"run-{kind_of_task(run.run_id):03}"] for run in new)


def test_how_often_a_task_succeeds_has_the_interval_of_wilson(database: TrajectoryDatabase) -> None:
    runs = made_up(range(60))
    add(database, runs)
    update_task_families(database)
    found = families(database)
    rows = family_outcomes(database, 10)
    assert [row["runs"] for row in rows] == [20, 20, 20]
    for row in rows:
        counts = Counter(run.judged_outcome for run in runs if found[run.run_id] == row["family_id"])
        for outcome in ("success", "partial_success", "failure", "unknown"):
            assert row[outcome] == counts[outcome]
        assert row["not_judged"] == counts[None]
        decided = counts["success"] + counts["partial_success"] + counts["failure"]
        assert row["success_rate"] == (pytest.approx(counts["success"] / decided) if decided else None)
        interval = wilson_interval(counts["success"], decided) or (None, None)
        assert (row["success_low"], row["success_high"]) == pytest.approx(interval)
    assert {row["success_rate"] for row in rows} == {0.0, 0.5, 1.0}


def test_without_embeddings_there_are_no_families(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    add(database, [Run("run-1")])
    assert update_task_families(database) == 0
    with psycopg.connect(trajectory_database) as connection:
        connection.execute("DROP EXTENSION vector CASCADE")
    assert update_task_families(database) == 0
