"""Makes a dataset of trajectories in a form that other tools read: selected, redacted, deduplicated and split."""

import hashlib
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.card import dataset_card
from trajectory_pipeline.exports.chat import LABELS, preference, prompt_key, text_digest
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.exports.source import ExportRun, json_bytes, redacted
from trajectory_pipeline.exports.splits import SplitShares, groups_of, split_of
from trajectory_pipeline.exports.writers import JsonLines
from trajectory_pipeline.judge.redaction.redactor import REDACTION_VERSION, Redactor
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.runtime.private_files import create_file, make_folder
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, TRAJECTORIES
from trajectory_pipeline.storage.postgres.exports import ExportFilters, SelectedRun, select_runs
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key
from trajectory_pipeline.storage.storage import Storage

MANIFEST, RUNS = "manifest.json", "runs.jsonl"


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
        with_images: whether images are passed on, into which redaction cannot look.
        pairs_per_task: most pairs of one task.
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


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        records: by split.
        left_out: runs that the filters select and the dataset lacks, by reason.
        losses: what the form cannot hold, counted in the runs that are there.
    """

    folder: Path
    selected: int
    records: Counter[str]
    left_out: Counter[str]
    losses: Counter[str]


def export_dataset(
    storage: Storage, target: Path, filters: ExportFilters, options: ExportOptions, policy_status: str
) -> ExportResult:
    """Write a dataset into a new folder: all of it, or nothing.

    Args:
        storage: of trajectories and verdicts.
        target: a folder that does not exist, or is empty.
        filters: which runs.
        options: form, splits, redaction.
        policy_status: whether the judge's policy has passed its gates, as a sentence for the card.

    Raises:
        PipelineError: the target exists, or cannot be written; or the filters select nothing.
        SinkError: a sink cannot be read.
    """
    selected = select_runs(storage.postgres, filters)
    if not selected:
        raise PipelineError("No run passes the filters, so nothing was written. Widen them.")
    redact = Redactor(options.redaction, redaction_key(storage.postgres, options.redaction_key))
    with _new_folder(target) as folder:
        export = _Export(storage, folder, selected, options, redact)
        export.write()
        result = ExportResult(target, len(selected), export.records, export.left_out, export.losses)
        manifest = _manifest(folder, filters, options, result, policy_status, selected)
        _write(folder / MANIFEST, json_bytes(manifest))
        _write(folder / "README.md", dataset_card(manifest).encode())
    return result


class _Export:
    """One pass over the selected runs; pairs take two."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        selected: Sequence[SelectedRun],
        options: ExportOptions,
        redact: Callable[[str], str],
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._options = options
        self._redact = redact
        self._selected = {one.run_id: one for one in selected}
        self._groups = groups_of({one.run_id: _shared_keys(one) for one in selected})
        self.records: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()

    def write(self) -> None:
        with create_file(self._folder / RUNS) as runs:
            self._runs = runs
            open_writer = self._options.format.form.open_writer
            if open_writer is None:
                self._write_pairs()
                return
            form, options = self._options.format.form, self._options.writer
            writer = open_writer(self._folder, options)
            try:
                for run in self._each_once():
                    encoded = form.encode(run, options)
                    if encoded is None:
                        self.left_out[form.no_place] += 1
                        continue
                    split = self._split(run.run_id)
                    refused = writer.write(encoded, split)
                    if refused is None:
                        self.records[split] += 1
                        self._note(run, split)
                    else:
                        self.left_out[refused] += 1
            finally:
                writer.close()

    def _write_pairs(self) -> None:
        """Write the surest success with the surest failure of each task, then the next two, and so on."""
        sides: dict[bytes, dict[bool, list[tuple[float, str]]]] = defaultdict(lambda: {True: [], False: []})
        for run in self._each_once():
            label = LABELS.get(run.outcome)
            if label is None:
                self.left_out["no success and no failure"] += 1
                continue
            key = hashlib.sha256(prompt_key(run).encode()).digest()
            sides[key][label].append((-_confidence(run), run.run_id))
        pairs = [
            (chosen, rejected)
            for task in sides.values()
            for (_, chosen), (_, rejected) in list(zip(sorted(task[True]), sorted(task[False]), strict=False))[
                : self._options.pairs_per_task
            ]
        ]
        paired = {run_id for pair in pairs for run_id in pair}
        self.left_out["no run of the same task with the other outcome"] += sum(
            len(side) for task in sides.values() for side in task.values()
        ) - len(paired)
        self._groups = groups_of(
            {
                run_id: [*_shared_keys(self._selected[run_id]), *(f"pair {number}" for number in numbers)]
                for run_id, numbers in _pairs_of(pairs).items()
            }
        )
        runs = {run.run_id: run for run in self._all(paired)}
        writer = JsonLines(self._folder)
        try:
            for chosen, rejected in pairs:
                pair = preference(runs[chosen], runs[rejected])
                if pair is None:
                    self.left_out["they part at no decision of the agent"] += 2
                    continue
                split = self._split(chosen)
                writer.write(json_bytes({**pair.record, "chosen_run_id": chosen, "rejected_run_id": rejected}), split)
                self.records[split] += 1
                for run_id in (chosen, rejected):
                    self._note(runs[run_id], split)
        finally:
            writer.close()

    def _each_once(self) -> Iterator[ExportRun]:
        """Yield the selected runs; of those with the same content, the first."""
        seen: set[bytes] = set()
        for run in self._all(self._selected.keys()):
            digest = text_digest(run)
            if digest in seen:
                self.left_out["the same text as an earlier run"] += 1
                continue
            seen.add(digest)
            yield run

    def _all(self, wanted: Any) -> Iterator[ExportRun]:
        by_partition: dict[str, set[str]] = defaultdict(set)
        for run_id in wanted:
            by_partition[self._selected[run_id].partition_key].add(run_id)
        for key in sorted(by_partition):
            missing = set(by_partition[key])
            for batch in self._storage.parquet.read(TRAJECTORIES, parse_partition_key(key)):
                for row in rows_of(batch):
                    one = self._selected.get(row["run_id"])
                    if one is None or row["run_id"] not in missing or row["content_digest"] != one.content_digest:
                        continue
                    missing.remove(row["run_id"])
                    yield self._run(row, one)
            self.left_out["not in Parquet as Postgres has it: materialize trajectories"] += len(missing)

    def _run(self, row: dict[str, Any], one: SelectedRun) -> ExportRun:
        return ExportRun(
            redacted(row, self._redact),
            redacted(one.verdict, self._redact),
            one.family_id,
            self._options.with_reasoning,
            self._options.with_images,
        )

    def _split(self, run_id: str) -> str:
        return split_of(self._groups[run_id], self._options.shares, self._options.seed)

    def _note(self, run: ExportRun, split: str) -> None:
        self.losses.update(run.losses)
        noted = {
            "run_id": run.run_id,
            "content_digest": run.trajectory["content_digest"],
            "split": split,
            "group": self._groups[run.run_id],
            "outcome": run.outcome,
            "outcome_source": run.outcome_source,
        }
        self._runs.write(json_bytes(noted) + b"\n")


def _shared_keys(one: SelectedRun) -> list[str]:
    keys = [f"chain {one.chain}"]
    if one.conversation_id:
        keys.append(f"conversation {one.conversation_id}")
    if one.family_id:
        keys.append(f"family {one.family_id}")
    return keys


def _pairs_of(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        for run_id in pair:
            numbers[run_id].append(number)
    return numbers


def _confidence(run: ExportRun) -> float:
    judged = None if run.verdict is None else run.verdict["outcome_confidence"]
    return float(judged if judged is not None else 0.0)


def _manifest(
    folder: Path,
    filters: ExportFilters,
    options: ExportOptions,
    result: ExportResult,
    policy_status: str,
    selected: Sequence[SelectedRun],
) -> dict[str, Any]:
    policies = sorted({one.verdict["policy_id"] for one in selected if one.verdict})
    models = sorted({one.verdict["model"] for one in selected if one.verdict and one.verdict["model"]})
    return {
        "format": options.format.value,
        "format_version": options.writer.version or next(iter(options.format.versions), None),
        "conventions": options.writer.conventions if options.format is ExportFormat.OTEL else None,
        "endpoint": options.writer.endpoint,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"trajectory-pipeline {package_version('trajectory-pipeline')}",
        "schema_version": SCHEMA_VERSION,
        "filters": {name: value for name, value in _plain(asdict(filters)).items() if value},
        "selected": result.selected,
        "records": dict(sorted(result.records.items())),
        "left_out": dict(sorted((+result.left_out).items())),
        "losses": dict(sorted((+result.losses).items())),
        "redaction": {"mode": options.redaction.value, "version": REDACTION_VERSION},
        "reasoning": options.with_reasoning,
        "images": options.with_images,
        "splits": {**asdict(options.shares), "seed": options.seed},
        "judge": {
            "policies": policies,
            "models": models,
            "status": policy_status,
            "simulated": any(one.verdict["simulated"] for one in selected if one.verdict),
        },
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with create_file(path) as file:
        file.write(content)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes the target at the end, or is removed where anything fails."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PipelineError(f"{target} is there already, and nothing in it is replaced: name a new folder.")
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        make_folder(partial)
        yield partial
        partial.replace(target)
    except OSError as error:
        raise PipelineError(f"{target} cannot be written: {error.strerror or error}. Nothing of it is left.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
