"""Exports as assets: what changed is written again and nothing else, and no run changes its split."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.exports.splits import SplitShares
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.pipeline import export_asset, export_encoder
from trajectory_pipeline.pipeline.export import NEAR_DUPLICATES, ExportOptions
from trajectory_pipeline.pipeline.export_asset import (
    PAIRS,
    ExportAsset,
    export_pairs,
    export_partition,
    find_differences,
    publish_card,
    stale_partitions,
)
from trajectory_pipeline.pipeline.export_duplicates import SAME_TEXT, SIMILAR_TEXT
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.storage.export_target import read_manifest
from trajectory_pipeline.storage.parquet.store import hour_folder
from trajectory_pipeline.storage.postgres.export_registry import exports_holding, forget_export, stale_exports
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

HALVES = SplitShares(0.5, 0, 0.5)


@pytest.fixture(params=["folder", pytest.param("memory", marks=pytest.mark.heavy)])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "exports") if request.param == "folder" else f"memory://{tmp_path.name}"


def asset(target: str, form: ExportFormat = ExportFormat.SFT) -> ExportAsset:
    return ExportAsset(target, ExportOptions(form, shares=HALVES, redaction_key=b"of these tests"), ExportFilters())


def export_stale(story: Pipeline, one: ExportAsset) -> dict[str, bool]:
    """Export what is stale; returns which partitions had files replaced."""
    keys = stale_partitions(story.database, one)
    with story.storage.pooled() as storage:
        done = {key: export_partition(parse_partition_key(key), storage, one).replaced for key in keys}
    assert stale_partitions(story.database, one) == []
    return done


def export_until_nothing_is_stale(story: Pipeline, one: ExportAsset) -> list[list[str]]:
    """Export what is stale, and what that makes stale; returns which partitions were."""
    rounds = []
    while keys := stale_partitions(story.database, one):
        rounds.append(keys)
        with story.storage.pooled() as storage:
            for key in keys:
                export_partition(parse_partition_key(key), storage, one)
    return rounds


def splits_of(story: Pipeline) -> dict[str, str]:
    return {row["run_id"]: row["split"] for row in story.ask("SELECT run_id, split FROM trajectory.export_runs")}


def busiest(story: Pipeline) -> datetime:
    rows = story.ask("SELECT partition_key FROM trajectory.export_runs GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1")
    return parse_partition_key(rows[0]["partition_key"])


def test_partition_is_written_once_and_again_only_where_it_changed(own_story: Pipeline, target: str) -> None:
    one = asset(target)
    assert all(export_stale(own_story, one).values())
    held = splits_of(own_story)
    assert set(held.values()) == {"train", "test"}
    hour = busiest(own_story)
    assert export_partition(hour, own_story.storage, one).replaced is False
    assert find_differences(one, hour_folder(hour)) == []
    publish_card(own_story.storage, one)
    # A run that is deleted at the source leaves the dataset, and the others of its partition stay.
    gone = next(
        row["run_id"]
        for row in own_story.ask(
            "SELECT run_id FROM trajectory.export_runs WHERE partition_key = %s ORDER BY 1", hour_key(hour)
        )
    )
    own_story.do(
        f"UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = '{gone}'",
        "UPDATE trajectory.partitions SET content_digest = 'another' WHERE asset = 'trajectories'"
        f" AND partition_key = '{hour_key(hour)}'",
    )
    assert [row["location"] for row in exports_holding(own_story.database, [gone])] == [one.location]
    assert "1 deleted: materialize the stale partitions of exports/sft" in stale_exports(own_story.database)[0]
    assert export_stale(own_story, one) == {hour_key(hour): True}
    assert exports_holding(own_story.database, [gone]) == []
    assert stale_exports(own_story.database) == []
    assert splits_of(own_story) == {run: split for run, split in held.items() if run != gone}


def hour_key(hour: datetime) -> str:
    from trajectory_pipeline.partition_keys import partition_key

    return partition_key(hour)


def test_runs_stay_in_their_split_and_a_family_is_never_in_two(own_story: Pipeline, tmp_path: Path) -> None:
    one = asset(str(tmp_path))
    export_stale(own_story, one)
    before = splits_of(own_story)
    assert len(set(before.values())) == 2
    # All runs turn out to be of one family, as if embeddings came late.
    own_story.do(
        "INSERT INTO trajectory.task_family_runs SELECT run_id, 'family-late', NULL, 'model', now()"
        " FROM trajectory.trajectories",
        "UPDATE trajectory.partitions SET inputs_digest = NULL WHERE asset LIKE 'exports/%'",
    )
    export_stale(own_story, one)
    after = splits_of(own_story)
    assert len(set(after.values())) == 1
    assert 0 < len(after) < len(before)
    assert after.items() <= before.items()


def test_files_that_others_changed_are_found_and_mended(own_story: Pipeline, target: str) -> None:
    one = replace(asset(target, ExportFormat.ATIF))
    export_stale(own_story, one)
    hour = busiest(own_story)
    manifest = read_manifest(one.location, hour_folder(hour))
    assert manifest is not None
    name = next(name for name in manifest["files"] if name.endswith(".json"))
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{one.location}/{hour_folder(hour)}/{name}")
    filesystem.pipe_file(path, b"mine")
    assert find_differences(one, hour_folder(hour)) == [f"{hour_folder(hour)}/{name} is not what was written"]
    assert export_partition(hour, own_story.storage, one).replaced
    assert find_differences(one, hour_folder(hour)) == []


@pytest.mark.heavy
def test_dataset_in_parts_is_loaded_by_datasets(
    own_story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    one = asset(str(tmp_path / "exports"))
    export_stale(own_story, one)
    publish_card(own_story.storage, one)
    loaded = load_dataset(one.location, cache_dir=str(tmp_path / "cache"))
    held = splits_of(own_story)
    assert {split: len(rows) for split, rows in loaded.items()} == {
        split: list(held.values()).count(split) for split in set(held.values())
    }


def test_pairs_of_all_partitions_are_one_dataset_that_follows_its_runs(own_story: Pipeline, target: str) -> None:
    one = asset(target, ExportFormat.DPO)
    done = export_pairs(own_story.storage, one)
    assert sum(done.manifest["records"].values()) > 0
    assert find_differences(one, PAIRS) == []
    assert export_pairs(own_story.storage, one).replaced is False
    publish_card(own_story.storage, one)
    held = splits_of(own_story)
    partitions = own_story.ask("SELECT DISTINCT partition_key FROM trajectory.export_runs")
    assert len(partitions) > 1
    gone = min(held)
    own_story.do(f"UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = '{gone}'")
    assert "1 deleted: materialize exports/dpo (its daily job does)" in stale_exports(own_story.database)[0]
    again = export_pairs(own_story.storage, one)
    assert again.replaced
    assert exports_holding(own_story.database, [gone]) == []
    assert find_differences(one, PAIRS) == []


@pytest.mark.parametrize("threshold", [0.5, pytest.param(1, marks=pytest.mark.heavy)])
def test_run_almost_the_same_as_one_in_another_partition_is_left_out(
    own_story: Pipeline, tmp_path: Path, threshold: float
) -> None:
    one = asset(str(tmp_path))
    one = replace(one, options=replace(one.options, near_duplicates=threshold))
    keys = export_stale(own_story, one)
    with own_story.storage.pooled() as storage:
        assert not any(export_partition(parse_partition_key(key), storage, one).replaced for key in keys)
    hour = busiest(own_story)
    (run, *_) = own_story.ask(
        "SELECT run_id FROM trajectory.export_runs WHERE partition_key = %s ORDER BY 1", hour_key(hour)
    )
    (other, *_) = own_story.ask(
        "SELECT run_id FROM trajectory.export_runs WHERE partition_key <> %s ORDER BY 1", hour_key(hour)
    )
    # As if a run of another hour said the same but for a few words.
    own_story.do(
        "UPDATE trajectory.export_runs o SET signature = r.signature, outcome = r.outcome"
        f" FROM trajectory.export_runs r WHERE o.run_id = '{other['run_id']}' AND r.run_id = '{run['run_id']}'",
        "INSERT INTO trajectory.export_bands SELECT export_id, '" + other["run_id"] + "', band"
        f" FROM trajectory.export_bands WHERE run_id = '{run['run_id']}' ON CONFLICT DO NOTHING",
    )
    done = export_partition(hour, own_story.storage, one)
    assert done.manifest["left_out"][SIMILAR_TEXT] == 1
    named = (tmp_path / "sft" / hour_folder(hour) / NEAR_DUPLICATES).read_text()
    assert json.loads(named) == {"run_id": run["run_id"], "like_run_id": other["run_id"], "similarity": 1.0}
    assert run["run_id"] not in splits_of(own_story)
    assert own_story.ask("SELECT FROM trajectory.export_bands WHERE run_id = %s", run["run_id"]) == []


@pytest.fixture
def alike(own_story: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two runs of different hours, the first earlier, that say the same; alone they would be in different splits."""
    export_until_nothing_is_stale(own_story, asset(str(tmp_path / "alone")))
    rows = own_story.ask("SELECT run_id, partition_key, split FROM trajectory.export_runs ORDER BY partition_key, 1")
    first = rows[0]
    other = next(
        row for row in rows if row["partition_key"] > first["partition_key"] and row["split"] != first["split"]
    )
    own_story.do(
        "TRUNCATE trajectory.exports, trajectory.export_runs, trajectory.export_bands, trajectory.export_groups,"
        " trajectory.export_duplicates",
        "DELETE FROM trajectory.partitions WHERE asset LIKE 'exports/%'",
    )
    say_the_same(monkeypatch, first["run_id"], other["run_id"])
    return [first, other]


def say_the_same(monkeypatch: pytest.MonkeyPatch, *run_ids: str) -> None:
    digest = export_encoder.text_digest
    monkeypatch.setattr(export_encoder, "text_digest", lambda run: "ab" * 32 if run.run_id in run_ids else digest(run))


def delete(story: Pipeline, run: dict[str, Any]) -> None:
    """Have a run be gone at the source, as a capture of its hour finds it."""
    story.do(
        f"UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = '{run['run_id']}'",
        "UPDATE trajectory.partitions SET content_digest = 'without it' WHERE asset = 'trajectories'"
        f" AND partition_key = '{run['partition_key']}'",
    )


def test_run_left_out_for_another_one_comes_when_that_one_goes(
    own_story: Pipeline, tmp_path: Path, alike: list[dict[str, Any]]
) -> None:
    first, other = alike
    one = asset(str(tmp_path / "exports"))
    export_until_nothing_is_stale(own_story, one)
    before = splits_of(own_story)
    assert (first["run_id"] in before, other["run_id"] in before) == (True, False)
    delete(own_story, first)
    # The hour of the deleted run, and then that of the run which was left out for it.
    assert export_until_nothing_is_stale(own_story, one) == [[first["partition_key"]], [other["partition_key"]]]
    after = splits_of(own_story)
    assert first["run_id"] not in after
    # Others may have trained on what it says.
    assert after[other["run_id"]] == before[first["run_id"]]
    assert own_story.ask("SELECT FROM trajectory.export_duplicates WHERE run_id = %s", other["run_id"]) == []


def test_run_like_one_in_another_partition_comes_when_that_one_has_another_outcome(
    own_story: Pipeline, tmp_path: Path
) -> None:
    one = asset(str(tmp_path))
    one = replace(one, options=replace(one.options, near_duplicates=0.5))
    export_until_nothing_is_stale(own_story, one)
    rows = own_story.ask(
        "SELECT d.run_id, d.partition_key, d.kept_run_id, x.partition_key AS kept_key"
        " FROM trajectory.export_duplicates d JOIN trajectory.export_runs x ON x.run_id = d.kept_run_id"
        " WHERE d.kept_outcome IS NOT NULL ORDER BY 1"
    )
    assert rows
    row = rows[0]
    own_story.do(
        # As if it had been exported with another outcome than it has now.
        f"UPDATE trajectory.export_duplicates SET kept_outcome = 'another' WHERE run_id = '{row['run_id']}'",
    )
    export_partition(parse_partition_key(row["kept_key"]), own_story.storage, one)
    assert stale_partitions(own_story.database, one) == [row["partition_key"]]


def test_run_that_changed_its_hour_comes_once_its_former_partition_is_made_again(
    own_story: Pipeline, tmp_path: Path
) -> None:
    one = asset(str(tmp_path))
    export_until_nothing_is_stale(own_story, one)
    rows = own_story.ask("SELECT run_id, partition_key FROM trajectory.export_runs ORDER BY partition_key, run_id")
    former, run = rows[0]["partition_key"], rows[-1]
    # As if it had been in the other hour when that one was exported, and said something else.
    own_story.do(
        f"UPDATE trajectory.export_runs SET partition_key = '{former}', text_digest = '{'cd' * 32}'"
        f" WHERE run_id = '{run['run_id']}'"
    )
    done = export_partition(parse_partition_key(run["partition_key"]), own_story.storage, one)
    assert done.manifest["left_out"][export_asset.IN_FORMER_PARTITION] == 1
    export_partition(parse_partition_key(former), own_story.storage, one)
    assert export_until_nothing_is_stale(own_story, one) == [[run["partition_key"]]]
    assert run["run_id"] in splits_of(own_story)


def test_two_partitions_at_once_do_not_both_take_runs_that_say_the_same(
    own_story: Pipeline, tmp_path: Path, alike: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = asset(str(tmp_path / "exports"))
    both = threading.Barrier(2)
    look = export_asset.held_elsewhere

    def look_together(*arguments: Any) -> Any:
        found = look(*arguments)
        # Who comes second has to wait for the first, which then is alone here.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=2)
        return found

    monkeypatch.setattr(export_asset, "held_elsewhere", look_together)
    with ThreadPoolExecutor(2) as threads:
        hours = [parse_partition_key(run["partition_key"]) for run in alike]
        done = list(threads.map(lambda hour: export_partition(hour, own_story.storage, one), hours))
    assert sum(run["run_id"] in splits_of(own_story) for run in alike) == 1
    assert sum(each.manifest["left_out"].get(SAME_TEXT, 0) for each in done) >= 1


def test_text_of_an_erased_run_stays_in_no_group(own_story: Pipeline, tmp_path: Path) -> None:
    one = asset(str(tmp_path))
    export_until_nothing_is_stale(own_story, one)
    (run, *_) = own_story.ask("SELECT run_id, partition_key, text_digest FROM trajectory.export_runs ORDER BY 1")
    group = "SELECT FROM trajectory.export_groups WHERE group_key = %s"
    assert len(own_story.ask(group, f"text {run['text_digest']}")) == 1
    own_story.do(
        "UPDATE trajectory.trajectories SET erased = true, deleted_at = now(), content_digest = 'erased'"
        f" WHERE run_id = '{run['run_id']}'"
    )
    export_partition(parse_partition_key(run["partition_key"]), own_story.storage, one)
    assert own_story.ask(group, f"text {run['text_digest']}") == []


@pytest.mark.heavy
def test_forgotten_dataset_of_an_asset_is_noted_again(own_story: Pipeline, tmp_path: Path) -> None:
    one = asset(str(tmp_path))
    export_until_nothing_is_stale(own_story, one)
    held = splits_of(own_story)
    assert forget_export(own_story.database, one.export.export_id)
    assert splits_of(own_story) == {}
    export_until_nothing_is_stale(own_story, one)
    assert splits_of(own_story) == held


def test_another_redaction_key_is_another_version_unless_nothing_is_redacted() -> None:
    one = asset("/datasets")
    other = replace(one, options=replace(one.options, redaction_key=b"another"))
    assert one.version != other.version
    off = [replace(each, options=replace(each.options, redaction=RedactionMode.OFF)) for each in (one, other)]
    assert off[0].version == off[1].version
