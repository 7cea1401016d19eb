"""An export as an asset: a dataset that is kept up to date partition by partition.

A partition's files are replaced only where they change. Runs that are deleted, and content that was erased, are gone
with the next materialization. No run ever changes its split: one that would bring two splits together is left out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.card import asset_card
from trajectory_pipeline.exports.source import NoPlace, json_bytes
from trajectory_pipeline.exports.splits import split_of
from trajectory_pipeline.exports.writers import JsonLines
from trajectory_pipeline.judge.redaction.redactor import REDACTION_VERSION
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.export import (
    DatasetFiles,
    ExportOptions,
    described_files,
    find_pairs,
    noted_runs,
    plain,
    write_file,
)
from trajectory_pipeline.pipeline.export_duplicates import SIMILAR_TEXT, Duplicate
from trajectory_pipeline.pipeline.export_encoder import EncodedRun
from trajectory_pipeline.pipeline.export_encoding import encode_runs
from trajectory_pipeline.pipeline.export_pairs import PairSide
from trajectory_pipeline.pipeline.export_spool import Spool
from trajectory_pipeline.schema.enums import FileAccess, PartitionResult, RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters, SelectedRun
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.versions import EXPORT_VERSION
from trajectory_pipeline.storage.export_target import (
    MANIFEST,
    differences,
    location_of,
    read_manifest,
    replace_part,
    staging,
    write_small,
)
from trajectory_pipeline.storage.parquet.store import hour_folder
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.export_registry import (
    Export,
    LeftOut,
    PartitionInputs,
    Signature,
    asset_name,
    assign_groups,
    contents_digest,
    current_policy,
    forget_erased_texts,
    forget_inputs,
    forget_inputs_without_original,
    held_elsewhere,
    lock_location,
    near_elsewhere,
    partition_inputs,
    record_left_out,
    record_runs,
    register_export,
    splits_of,
    text_key,
)
from trajectory_pipeline.storage.postgres.exports import select_runs
from trajectory_pipeline.storage.postgres.partition_writer import LedgerEntry, PartitionTransaction
from trajectory_pipeline.storage.scratch.run_selection import RunSelection
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.urls import without_credentials

PAIRS = "pairs"
"""Folder of a dataset of pairs: they join runs of many partitions."""
IN_FORMER_PARTITION = "it is still in the partition that it was in before"
TWO_SPLITS = "it belongs together with runs of two splits"
_RUNS_AT_ONCE = 250


@dataclass(frozen=True)
class ExportAsset:
    """One dataset that is an asset.

    Attributes:
        target: folder or URL of all exports; the dataset is the folder below it that has the format's name.
        access: who may read local files.
    """

    target: str
    options: ExportOptions
    filters: ExportFilters
    access: FileAccess = FileAccess.PRIVATE

    @property
    def name(self) -> str:
        """The asset, as the ledger names it."""
        return asset_name(self.options.format.value)

    @property
    def location(self) -> str:
        """Where the dataset is."""
        return f"{location_of(self.target).rstrip('/')}/{self.options.format.value}"

    @property
    def export(self) -> Export:
        """Its entry among the exported datasets."""
        return Export(self.location, self.options.format.value, True, plain(asdict(self.filters)))

    @property
    def version(self) -> str:
        """Digest of how it is made: a change makes all partitions stale."""
        made = {
            "filters": plain(asdict(self.filters)),
            "format": [self.options.format.value, self.options.writer.version],
            "shares": asdict(self.options.shares),
            "redaction": [self.options.redaction.value, REDACTION_VERSION, _key_digest(self.options)],
            "reasoning": self.options.with_reasoning,
            "near_duplicates": self.options.near_duplicates,
            "location": without_credentials(self.location),
            "versions": [EXPORT_VERSION, SCHEMA_VERSION],
        }
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _key_digest(options: ExportOptions) -> str | None:
    """Return a digest of the key of placeholders, by which a new one is noticed; None for the one in the database."""
    if options.redaction is RedactionMode.OFF or not options.redaction_key:
        return None
    return hashlib.sha256(b"key of placeholders in exports " + options.redaction_key).hexdigest()


@dataclass(frozen=True)
class ExportedPartition:
    """What a partition of the dataset holds.

    Attributes:
        selected: runs that the filters leave.
        manifest: of the partition.
        manifest_digest: SHA-256 (hex) of its manifest, which has the digests of its files.
        replaced: whether any file had to be replaced.
    """

    uri: str
    selected: int
    manifest: Mapping[str, Any]
    manifest_digest: str
    replaced: bool


def export_partition(
    hour: datetime, storage: Storage, asset: ExportAsset, *, dagster_run_id: str | None = None
) -> ExportedPartition:
    """Make a partition of the dataset hold what the filters select now; files that are the same stay untouched.

    Raises:
        PipelineError: there are no trajectories of the partition, or the target cannot be written.
        SinkError: a sink cannot be read or written.
    """
    key, database = partition_key(hour), storage.postgres
    with database.connect() as connection, translating_database_errors(database.url, f"Noting {asset.name}"):
        # Apart: partitions that are written at the same time must not wait for each other.
        register_export(connection, asset.export)
    with database.partition(asset.name, key, reads=TRAJECTORIES.name) as partition:
        converted = partition.entry(TRAJECTORIES.name)
        if converted is None:
            raise PipelineError(
                f"There are no trajectories of {key}: materialize trajectories of that partition first."
            )
        # Read first: what changes from here on makes the partition stale.
        inputs = partition_inputs(database, asset.name, asset.filters, [key])[key]
        digest = inputs_digest(asset, current_policy(database), inputs)
        pruned = converted.result == PartitionResult.PRUNED
        selected = [] if pruned else list(select_runs(database, asset.filters, key))
        with staging(asset.location) as folder:
            with DatasetFiles(folder, asset.options.near_duplicates) as files:
                left_out, signed = _write(files, storage, asset, selected, partition)
            manifest, content, sizes = _write_manifest(files, asset, len(selected))
            runs = list(noted_runs(folder))
            with translating_database_errors(database.url, f"Noting what {asset.name} {key} holds"):
                forget_erased_texts(partition.connection, asset.export, key)
                were_held = record_runs(partition.connection, asset.export, runs, key, _signatures(signed, asset))
                record_left_out(partition.connection, asset.export, key, left_out)
                forget_inputs_without_original(partition.connection, asset.name, asset.export, key, were_held)
            partition.record(
                LedgerEntry(
                    asset=asset.name,
                    partition_key=key,
                    result=PartitionResult.COMPLETE,
                    counts={"selected": len(selected), "exported": len(runs)},
                    content_digest=hashlib.sha256(content).hexdigest(),
                    schema_version=SCHEMA_VERSION,
                    upstream_digest=converted.content_digest,
                    dagster_run_id=dagster_run_id,
                    inputs_digest=digest,
                )
            )
            if not pruned and list(select_runs(database, asset.filters, key)) != selected:
                # Runs joined a family, or were judged, meanwhile.
                forget_inputs(partition.connection, asset.name, key)
            replaced = replace_part(asset.location, hour_folder(hour), folder, sizes, asset.access)
    uri = f"{without_credentials(asset.location)}/{hour_folder(hour)}"
    return ExportedPartition(uri, len(selected), manifest, hashlib.sha256(content).hexdigest(), replaced)


def export_pairs(storage: Storage, asset: ExportAsset) -> ExportedPartition:
    """Make the dataset of a format of pairs hold those of all runs now, in one folder; unchanged files stay untouched.

    Raises:
        PipelineError: the target cannot be written.
        SinkError: a sink cannot be read or written.
    """
    database, options = storage.postgres, asset.options
    with staging(asset.location) as folder:
        with (
            closing(RunSelection(folder, select_runs(database, asset.filters))) as selected,
            DatasetFiles(folder, options.near_duplicates) as files,
            closing(find_pairs(files, storage, selected, options)) as pairs,
        ):
            keys = {
                str(number): [key for side in (pair.chosen, pair.rejected) for key in _keys_of_side(side)]
                for number, pair in enumerate(pairs)
            }
            groups = assign_groups(database, keys)
            lines = files.add_writer(JsonLines(folder))
            for number, pair in enumerate(pairs):
                splits = {split_of(group, options.shares, options.seed) for group in groups[str(number)]}
                if len(splits) > 1:
                    files.left_out[TWO_SPLITS] += 2
                else:
                    files.write_pair(lines, pair, splits.pop(), groups[str(number)][0])
        manifest, content, sizes = _write_manifest(files, asset, len(selected))
        with database.connect() as connection, translating_database_errors(database.url, f"Noting {asset.name}"):
            register_export(connection, asset.export)
            record_runs(connection, asset.export, noted_runs(folder))
        replaced = replace_part(asset.location, PAIRS, folder, sizes, asset.access)
    uri = f"{without_credentials(asset.location)}/{PAIRS}"
    return ExportedPartition(uri, len(selected), manifest, hashlib.sha256(content).hexdigest(), replaced)


def publish_card(storage: Storage, asset: ExportAsset) -> None:
    """Write the card of the dataset, which names its splits and a digest of what it holds, unless it is there.

    Raises:
        PipelineError: the target cannot be written.
    """
    held = contents_digest(storage.postgres, asset.export)
    digest = hashlib.sha256(f"{asset.version} {held}".encode()).hexdigest()
    card = asset_card(asset.options.format, splits_of(storage.postgres, asset.export), digest)
    write_small(asset.location, "README.md", card.encode(), asset.access)


def stale_partitions(database: TrajectoryDatabase, asset: ExportAsset) -> list[str]:
    """Return the partitions whose trajectories, verdicts, labels or families changed since they were exported.

    Also all of them where the way in which they are made changed. Those without runs that were never exported are not
    among them.

    Raises:
        SinkError: the database cannot be read.
    """
    policy = current_policy(database)
    return [
        key
        for key, inputs in partition_inputs(database, asset.name, asset.filters).items()
        if (inputs.has_runs if inputs.recorded is None else inputs.recorded != inputs_digest(asset, policy, inputs))
    ]


def inputs_digest(asset: ExportAsset, policy_id: str | None, inputs: PartitionInputs) -> str:
    """Return what a partition of the dataset depends on, as one digest."""
    parts = (asset.version, policy_id or "", inputs.trajectories, inputs.verdicts, inputs.labels)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_differences(asset: ExportAsset, name: str) -> list[str]:
    """Return how the files in a folder of the dataset differ from its manifest, as sentences.

    Raises:
        PipelineError: the target cannot be read.
    """
    manifest = read_manifest(asset.location, name)
    return [f"{name} has no {MANIFEST}"] if manifest is None else differences(asset.location, name, manifest)


def _write_manifest(
    files: DatasetFiles, asset: ExportAsset, selected: int
) -> tuple[dict[str, Any], bytes, dict[str, int]]:
    """Write the manifest; returns it, also as bytes, and the sizes of the files that it names."""
    manifest = {
        **files.manifest(asset.filters, asset.options, selected, ""),
        "files": dict(described_files(files.folder)),
    }
    content = json_bytes(manifest)
    write_file(files.folder / MANIFEST, content)
    return manifest, content, {name: entry["bytes"] for name, entry in manifest["files"].items()}


def _keys_of_side(side: PairSide) -> list[str]:
    return [*side.run.selected.group_keys, text_key(side.run.text_digest)]


def _write(
    files: DatasetFiles,
    storage: Storage,
    asset: ExportAsset,
    selected: list[SelectedRun],
    partition: PartitionTransaction,
) -> tuple[list[LeftOut], list[EncodedRun]]:
    """Write the runs that the dataset does not hold elsewhere.

    Returns those that it does, or almost; and those that were written, without content, where almost equal ones are
    looked for.
    """
    options = asset.options
    texts: dict[str, str] = {}
    with (
        closing(Spool[EncodedRun](files.folder)) as runs,
        closing(RunSelection(files.folder, selected)) as selection,
    ):
        for run in encode_runs(storage, options.encoding(storage), selection, files.left_out):
            runs.add(run)
            if not isinstance(run.encoded, NoPlace):
                texts[run.selected.run_id] = run.text_digest
        # From here to the commit, no other partition of the dataset decides what it writes. Encoding, most of the work,
        # is done: as long as other partitions are, they are made at the same time.
        with translating_database_errors(storage.postgres.url, f"Waiting for other partitions of {asset.name}"):
            lock_location(partition.connection, asset.export)
        elsewhere = _Elsewhere(files, storage.postgres, asset, partition.partition_key, texts)
        groups = _groups(storage.postgres, selected, texts)
        writer = files.open(options)
        left_out: list[LeftOut] = []
        signed: list[EncodedRun] = []
        for batch in _batches(iter(runs)):
            elsewhere.look_for_near(batch)
            for run in batch:
                splits = {split_of(group, options.shares, options.seed) for group in groups[run.selected.run_id]}
                if isinstance(run.encoded, NoPlace):
                    files.left_out[run.encoded.reason] += 1
                elif (duplicate := elsewhere.itself(run) or files.texts.find(run)) is not None:
                    files.left_out[duplicate.reason] += 1
                    left_out += elsewhere.left_out(run, duplicate)
                elif len(splits) > 1:
                    files.left_out[TWO_SPLITS] += 1
                elif (
                    files.write(writer, run, splits.pop(), groups[run.selected.run_id][0]) and run.signature is not None
                ):
                    signed.append(run.without_content())
        return left_out, signed


def _groups(
    database: TrajectoryDatabase, selected: Sequence[SelectedRun], texts: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return the groups of each run: of what it belongs together with, and of what it says."""
    keys = {one.run_id: one.group_keys for one in selected}
    for run_id, digest in texts.items():
        keys[run_id].append(text_key(digest))
    return assign_groups(database, keys)


class _Elsewhere:
    """The runs that the dataset holds in its other partitions: they were there before those that are looked at."""

    def __init__(
        self, files: DatasetFiles, database: TrajectoryDatabase, asset: ExportAsset, key: str, texts: Mapping[str, str]
    ) -> None:
        self._files, self._database, self._asset, self._key = files, database, asset, key
        self._held = {run.run_id: run for run in held_elsewhere(database, asset.export, key, texts)}
        files.texts.add_elsewhere({run.text_digest: run.run_id for run in self._held.values()})

    def look_for_near(self, batch: Sequence[EncodedRun]) -> None:
        """Have the runs that may be almost the same as one of these count as before them."""
        threshold = self._asset.options.near_duplicates
        if threshold is None:
            return
        from trajectory_pipeline.exports.near_duplicates import bands_of, read_signature

        bands = {band for run in batch for band in bands_of(run.signature, run.outcome, threshold)}
        for run in near_elsewhere(self._database, self._asset.export, self._key, sorted(bands)):
            self._held[run.run_id] = run
            self._files.texts.add_near_elsewhere(run.run_id, run.outcome or "", read_signature(run.signature or ""))

    def itself(self, run: EncodedRun) -> Duplicate | None:
        """Return a run as its own duplicate where another partition still holds it: its hour at the source changed."""
        run_id = run.selected.run_id
        return Duplicate(IN_FORMER_PARTITION, run_id) if run_id in self._held else None

    def left_out(self, run: EncodedRun, duplicate: Duplicate) -> Iterator[LeftOut]:
        """Yield what to note of a run that is left out, if the run that it is like is in another partition."""
        held = self._held.get(duplicate.kept_run_id)
        if held is not None:
            # Runs that say the same do so whatever came of them.
            outcome = held.outcome if duplicate.reason == SIMILAR_TEXT else None
            yield LeftOut(run.selected.run_id, held.run_id, held.text_digest, outcome)


def _signatures(signed: Sequence[EncodedRun], asset: ExportAsset) -> dict[str, Signature]:
    threshold = asset.options.near_duplicates
    if threshold is None:
        return {}
    from trajectory_pipeline.exports.near_duplicates import bands_of, signature_text

    return {
        run.selected.run_id: Signature(signature_text(run.signature), bands_of(run.signature, run.outcome, threshold))
        for run in signed
    }


def _batches(runs: Iterator[EncodedRun]) -> Iterator[list[EncodedRun]]:
    while batch := list(islice(runs, _RUNS_AT_ONCE)):
        yield batch
