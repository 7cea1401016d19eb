"""Makes a dataset of trajectories in a form that other tools read: selected, redacted, deduplicated and split."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.card import dataset_card
from trajectory_pipeline.exports.formats import ExportFormat, Writer, WriterOptions
from trajectory_pipeline.exports.source import JsonObject, NoPlace, json_bytes
from trajectory_pipeline.exports.splits import SplitShares, split_of
from trajectory_pipeline.exports.writers import JsonLines
from trajectory_pipeline.judge.redaction.redactor import REDACTION_VERSION, Redactor
from trajectory_pipeline.pipeline.export_duplicates import Duplicate, WrittenTexts
from trajectory_pipeline.pipeline.export_encoder import EncodedRun, Encoding
from trajectory_pipeline.pipeline.export_encoding import encode_runs
from trajectory_pipeline.pipeline.export_pairs import FamilyPairs, Pair, PairFinder
from trajectory_pipeline.pipeline.export_spool import Spool
from trajectory_pipeline.runtime.private_files import create_file
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION
from trajectory_pipeline.storage.export_target import MANIFEST, NewDataset, location_of, new_dataset
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.export_registry import (
    Export,
    ExportedRun,
    forget_export,
    lock_location,
    record_runs,
    register_export,
)
from trajectory_pipeline.storage.postgres.exports import PassingRuns, count_passing, select_runs
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key
from trajectory_pipeline.storage.scratch.run_groups import RunGroups
from trajectory_pipeline.storage.scratch.run_selection import RunSelection
from trajectory_pipeline.storage.storage import Storage

RUNS, NEAR_DUPLICATES = "runs.jsonl", "near_duplicates.jsonl"


class NothingSelectedError(PipelineError):
    """No run passes the filters, or none of those that pass has a place in the format.

    Attributes:
        passing: how many runs each condition leaves by itself; None where some run passes all of them.
    """

    def __init__(self, message: str, passing: PassingRuns | None = None) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class ExportOptions:
    """How a dataset is made.

    Attributes:
        writer: what the form's writer is told: version, attributes, collector.
        shares: of the splits.
        seed: of the splits: another one draws others.
        redaction: what is replaced in texts.
        redaction_key: of placeholders; None for the one in the database.
        with_reasoning: whether the model's reasoning is passed on.
        with_images: whether images are passed on, into which redaction cannot look, if the format has a place for them.
        pairs_per_task: most pairs of one task.
        near_duplicates: how similar to an earlier run a run must be to be left out, 0–1; None: only the same text is.
    """

    format: ExportFormat
    writer: WriterOptions = field(default_factory=WriterOptions)
    shares: SplitShares = field(default_factory=lambda: SplitShares(0.8, 0.1, 0.1))
    seed: int = 1
    redaction: RedactionMode = RedactionMode.SECRETS
    redaction_key: bytes | None = field(default=None, repr=False)
    with_reasoning: bool = False
    with_images: bool = False
    pairs_per_task: int = 3
    near_duplicates: float | None = None

    @property
    def passes_on_images(self) -> bool:
        """Whether the dataset holds images."""
        return self.with_images and self.format.form.images

    def encoding(self, storage: Storage) -> Encoding:
        """Return what encodes runs so.

        Raises:
            SinkError: the stored key of placeholders cannot be read.
        """
        return Encoding(
            self.format,
            self.writer,
            Redactor(self.redaction, redaction_key(storage.postgres, self.redaction_key)),
            self.with_reasoning,
            self.passes_on_images,
            self.near_duplicates is not None,
        )


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        location: an absolute path, or the URL.
        records: by split.
        left_out: runs that the filters select and the dataset lacks, by reason.
        losses: what the form cannot hold, counted in the runs that are there.
        policy_status: whether the judge's policy has passed its gates; empty where there is none.
        simulated: whether any verdict in it is of a simulated judge.
    """

    location: str
    selected: int
    records: Counter[str]
    left_out: Counter[str]
    losses: Counter[str]
    policy_status: str
    simulated: bool


def export_dataset(
    storage: Storage,
    target: str,
    filters: ExportFilters,
    options: ExportOptions,
    policy_status: Callable[[], str] = lambda: "",
) -> ExportResult:
    """Write a dataset into a new place: all of it, or nothing; and note which runs it holds.

    Args:
        storage: of trajectories and verdicts.
        target: a folder that does not exist, or is empty; or an fsspec URL with nothing below it.
        filters: which runs.
        options: form, splits, redaction.
        policy_status: returns whether the judge's policy has passed its gates, as a sentence for the card; called when
            the runs are written, since it may need much memory.

    Raises:
        NothingSelectedError: there is nothing to write; nothing was written.
        PipelineError: the target exists, or cannot be written.
        SinkError: a sink cannot be read.
    """
    export = Export(location_of(target), options.format.value, False, plain(asdict(filters)))
    with new_dataset(target) as dataset:
        folder = dataset.folder
        with (
            closing(_select(storage, filters, folder)) as selected,
            DatasetFiles(folder, options.near_duplicates) as files,
        ):
            if options.format.form.pairs:
                _write_pairs(files, storage, selected, options)
            else:
                _write_runs(files, storage, selected, options)
        if not files.records.total():
            reasons = "; ".join(f"{number} × {reason}" for reason, number in sorted((+files.left_out).items()))
            raise NothingSelectedError(
                f"{len(selected)} runs pass the filters, but none gives a record of {options.format}: {reasons}."
                " Nothing was written."
            )
        status = policy_status()
        manifest = {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **files.manifest(filters, options, len(selected), status),
        }
        digest = _write_manifest(folder, manifest, described_files(folder))
        write_file(folder / "README.md", dataset_card(manifest, digest).encode())
        _publish(storage.postgres, dataset, export)
    return ExportResult(
        export.location, len(selected), files.records, files.left_out, files.losses, status, files.simulated
    )


def _write_manifest(folder: Path, manifest: Mapping[str, Any], files: Iterator[tuple[str, JsonObject]]) -> str:
    """Write a manifest that names these files, of which there may be very many; returns a digest of them."""
    digest = hashlib.sha256()
    with create_file(folder / MANIFEST) as file:
        file.write(json_bytes(manifest)[:-1] + b',"files":{')
        for number, (name, described) in enumerate(files):
            entry = b"," * bool(number) + json_bytes(name) + b":" + json_bytes(described)
            digest.update(entry)
            file.write(entry)
        file.write(b"}}")
    return digest.hexdigest()


def _publish(database: TrajectoryDatabase, dataset: NewDataset, export: Export) -> None:
    """Note which runs a dataset holds, and put it into its place."""
    with database.connect() as holder, translating_database_errors(database.url, "Exporting"):
        # Two exports to one place: the second one sees the first one's files, and notes nothing.
        lock_location(holder, export)
        dataset.require_vacant()
        # Before it appears: a dataset that nobody knows of could not be found when a run in it must be erased.
        with database.connect() as connection:
            register_export(connection, export)
            record_runs(connection, export, noted_runs(dataset.folder))
        try:
            dataset.publish()
        except BaseException:
            forget_export(database, export.export_id)
            raise


def pairs_by_family(
    storage: Storage, filters: ExportFilters, options: ExportOptions, folder: Path
) -> list[FamilyPairs]:
    """Return how many pairs there are to export, by task family; ``folder`` is for what is kept meanwhile.

    Raises:
        NothingSelectedError: the filters select nothing.
        SinkError: a sink cannot be read.
    """
    # Near-duplicates are no option of counting: there is no file of them.
    with (
        closing(_select(storage, filters, folder)) as selected,
        closing(WrittenTexts(folder / NEAR_DUPLICATES, None)) as texts,
        closing(PairFinder(folder, options.pairs_per_task, texts)) as finder,
    ):
        for run in encode_runs(storage, options.encoding(storage), selected, Counter()):
            if not isinstance(run.encoded, NoPlace):
                finder.add(run)
        return finder.families()


def _select(storage: Storage, filters: ExportFilters, folder: Path) -> RunSelection:
    selected = RunSelection(folder, select_runs(storage.postgres, filters))
    if not len(selected):
        selected.close()
        raise NothingSelectedError("No run passes the filters.", count_passing(storage.postgres, filters))
    return selected


def _write_runs(files: "DatasetFiles", storage: Storage, selected: RunSelection, options: ExportOptions) -> None:
    writer = files.open(options)
    with closing(RunGroups(files.folder, (one.group_keys for one in selected))) as groups:
        for run in encode_runs(storage, options.encoding(storage), selected, files.left_out):
            if isinstance(run.encoded, NoPlace):
                files.left_out[run.encoded.reason] += 1
            elif files.leave_out_duplicate(run) is None:
                group = groups.name_of(run.selected.group_keys[0])
                split = split_of(group, options.shares, options.seed)
                files.write(writer, run, split, group)


def _write_pairs(files: "DatasetFiles", storage: Storage, selected: RunSelection, options: ExportOptions) -> None:
    with closing(find_pairs(files, storage, selected, options)) as pairs:
        # Both sides of a pair are in one split, and so is whatever else belongs together with one of them.
        keys = (pair.chosen.run.selected.group_keys + pair.rejected.run.selected.group_keys for pair in pairs)
        with closing(RunGroups(files.folder, keys)) as groups:
            lines = files.add_writer(JsonLines(files.folder))
            for pair in pairs:
                group = groups.name_of(pair.chosen.run.selected.group_keys[0])
                files.write_pair(lines, pair, split_of(group, options.shares, options.seed), group)


def find_pairs(files: "DatasetFiles", storage: Storage, selected: RunSelection, options: ExportOptions) -> Spool[Pair]:
    """Return the pairs of the selected runs, to be closed, and count those that are in none.

    Raises:
        SinkError: a sink cannot be read.
    """
    with closing(PairFinder(files.folder, options.pairs_per_task, files.texts)) as finder:
        for run in encode_runs(storage, options.encoding(storage), selected, files.left_out):
            if isinstance(run.encoded, NoPlace):
                files.left_out[run.encoded.reason] += 1
            else:
                finder.add(run)
        pairs = Spool[Pair](files.folder)
        for pair in finder.pairs():
            pairs.add(pair)
        files.left_out.update(finder.left_out)
        return pairs


class DatasetFiles:
    """The files of a dataset, or of one partition of it, and what they hold; to be used in a ``with`` statement.

    Attributes:
        folder: where the files are.
        records: by split.
        left_out: selected runs that are not there, by reason.
        losses: what the form cannot hold of those that are there.
        texts: of the runs that are there, by which duplicates are found.
        simulated: whether any verdict there is of a simulated judge.
    """

    def __init__(self, folder: Path, near_duplicates: float | None = None) -> None:
        self.folder = folder
        self.texts = WrittenTexts(folder / NEAR_DUPLICATES, near_duplicates)
        self.records: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()
        self._policies: set[str] = set()
        self._models: set[str] = set()
        self.simulated = False
        self._writers: list[Writer] = []

    def __enter__(self) -> "DatasetFiles":
        self._runs = create_file(self.folder / RUNS)
        return self

    def __exit__(self, *_: object) -> None:
        self._runs.close()
        for writer in self._writers:
            writer.close()
        self.texts.close()

    def open(self, options: ExportOptions) -> Writer:
        """Open the writer of a format of single runs."""
        open_writer = options.format.form.open_writer
        if open_writer is None:
            raise ValueError(f"{options.format} is made of pairs")
        return self.add_writer(open_writer(self.folder, options.writer))

    def write(self, writer: Writer, run: EncodedRun, split: str, group: str) -> bool:
        """Write a run and note that it is there; or count why the target did not take it, and return False."""
        refused = writer.write(run.encoded, split)
        if refused is not None:
            self.left_out[refused] += 1
            return False
        self.records[split] += 1
        self.note(run, split, group)
        return True

    def write_pair(self, lines: Writer, pair: Pair, split: str, group: str) -> None:
        """Write a pair and note that both of its runs are there."""
        chosen, rejected = pair.chosen.run, pair.rejected.run
        ids = {"chosen_run_id": chosen.selected.run_id, "rejected_run_id": rejected.selected.run_id}
        lines.write(json_bytes({**pair.preference.record, **ids}), split)
        self.records[split] += 1
        self.note(chosen, split, group)
        self.note(rejected, split, group)

    def add_writer(self, writer: Writer) -> Writer:
        """Take over the closing of a writer."""
        self._writers.append(writer)
        return writer

    def leave_out_duplicate(self, run: EncodedRun) -> Duplicate | None:
        """Count a run as left out where one that is there says the same, or almost; returns which, or None."""
        duplicate = self.texts.find(run)
        if duplicate is not None:
            self.left_out[duplicate.reason] += 1
        return duplicate

    def note(self, run: EncodedRun, split: str, group: str) -> None:
        """Note that a run is there."""
        self.texts.add(run)
        self.losses.update(run.losses)
        if run.policy_id is not None:
            self._policies.add(run.policy_id)
            self._models.update([run.model] if run.model else [])
            self.simulated = self.simulated or run.simulated
        noted = {
            "run_id": run.selected.run_id,
            "partition_key": run.selected.partition_key,
            "content_digest": run.selected.content_digest,
            "text_digest": run.text_digest,
            "split": split,
            "group": group,
            "outcome": run.outcome,
            "outcome_source": run.outcome_source,
        }
        self._runs.write(json_bytes(noted) + b"\n")

    def manifest(
        self, filters: ExportFilters, options: ExportOptions, selected: int, policy_status: str
    ) -> dict[str, Any]:
        """Return what the dataset holds and how it was made, without its files; once these are written."""
        return {
            "format": options.format.value,
            "format_version": options.writer.version or next(iter(options.format.versions), None),
            "conventions": options.writer.conventions if options.format is ExportFormat.OTEL else None,
            "endpoint": options.writer.endpoint,
            "made_by": f"trajectory-pipeline {package_version('trajectory-pipeline')}",
            "schema_version": SCHEMA_VERSION,
            "filters": {name: value for name, value in plain(asdict(filters)).items() if value},
            "selected": selected,
            "records": dict(sorted(self.records.items())),
            "left_out": dict(sorted((+self.left_out).items())),
            "losses": dict(sorted((+self.losses).items())),
            "redaction": {"mode": options.redaction.value, "version": REDACTION_VERSION},
            "reasoning": options.with_reasoning,
            "images": options.passes_on_images,
            "splits": {**asdict(options.shares), "seed": options.seed},
            "near_duplicates": options.near_duplicates,
            "across_agents": options.writer.across_agents if options.format.form.pairs else None,
            "judge": {
                "policies": sorted(self._policies),
                "models": sorted(self._models),
                "status": policy_status,
                "simulated": self.simulated,
            },
        }


def noted_runs(folder: Path) -> Iterator[ExportedRun]:
    """Yield the runs that a dataset's list of runs names; each is there once, also in one of pairs."""
    with (folder / RUNS).open("rb") as lines:
        for noted in map(json.loads, lines):
            yield ExportedRun(**{name: noted[name] for name in ExportedRun.__slots__})


def plain(value: Any) -> Any:
    """Return filters as JSON holds them."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return value.isoformat() if isinstance(value, datetime) else value


def described_files(folder: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield the files of a dataset by name, each with its size and digest."""
    for name in sorted(_files_below(str(folder))):
        if name != MANIFEST:
            yield name, _described(f"{folder}/{name}")


def _files_below(folder: str) -> Iterator[str]:
    """Yield the paths of all files in a folder, relative to it."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from (f"{entry.name}/{name}" for name in _files_below(entry.path))
        else:
            yield entry.name


def _described(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:  # noqa: PTH123 - a path object for each of many thousand files takes longer
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_file(path: Path, content: bytes) -> None:
    """Create a small file."""
    with create_file(path) as file:
        file.write(content)
