"""Groups of runs: what shares a key shares a group, and no key ever changes its group."""

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.export_registry import (
    Export,
    ExportedRun,
    assign_groups,
    exports_holding,
    forget_export,
    groups_of_new_keys,
    record_runs,
    register_export,
    registered_exports,
    stale_exports,
)

RUNS = st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=12)


@given(RUNS, st.integers(0, 12))
def test_keys_keep_their_group_and_those_that_come_together_share_one(runs: list[set[str]], first: int) -> None:
    known: dict[str, str] = {}
    for batch in (runs[:first], runs[first:]):
        keys = {f"run-{number}": sorted(own) for number, own in enumerate(batch)}
        new = groups_of_new_keys(keys, known)
        assert not new.keys() & known.keys()
        for own in batch:
            fresh = {(known | new)[key] for key in own if key in new}
            old = {known[key] for key in own if key in known}
            # New keys of a run are together, and with an old one where there is only one to be with.
            assert len(fresh) <= 1
            assert len(old) != 1 or fresh <= old or len(fresh) == 1
        known |= new
    assert set(known) == set().union(*runs)


def test_groups_are_kept_and_a_dataset_can_be_forgotten(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    assert assign_groups(database, {"r1": ["chain 1"], "r2": ["chain 2"]}) == {"r1": ("chain 1",), "r2": ("chain 2",)}
    # The third run brings both together, too late; its own key joins one of them.
    later = assign_groups(database, {"r3": ["chain 1", "chain 2", "family 1"], "r4": ["family 1"]})
    assert later == {"r3": ("chain 1", "chain 2"), "r4": ("chain 1",)}
    export = Export("s3://key:secret@bucket/x", "sft", False, {})
    with database.connect() as connection:
        register_export(connection, export)
    (registered,) = registered_exports(database)
    assert (registered.export_id, registered.runs) == (export.export_id, 0)
    assert "secret" not in registered.location
    assert [forget_export(database, export.export_id) for _ in range(2)] == [True, False]


def test_run_without_a_trajectory_counts_as_pruned(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    export = Export("/datasets/x", "sft", False, {})
    run = ExportedRun("run-1", "2026-03-01-12:00", "digest", "ab" * 32, "train", "success")
    with database.connect() as connection:
        register_export(connection, export)
        record_runs(connection, export, [run])
    (registered,) = registered_exports(database)
    assert (registered.erased, registered.deleted, registered.pruned) == (0, 0, 1)
    (sentence,) = stale_exports(database)
    assert sentence.startswith("/datasets/x holds runs that are gone since it was written, 1 pruned: delete it")
    (held,) = exports_holding(database, ["run-1"])
    assert (held["is_current"], held["is_pruned"]) == (False, True)


def test_dataset_without_runs_holds_none_that_was_pruned(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    with database.connect() as connection:
        register_export(connection, Export("/datasets/x", "sft", False, {}))
    assert [one.gone for one in registered_exports(database)] == [{}]
    assert stale_exports(database) == []
