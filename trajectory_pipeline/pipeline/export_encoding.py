"""Reads the runs of an export from Parquet, redacts them and encodes each: most of the work, in several processes.

The order is that of partitions, and in each that of its file, however many processes there are.
"""

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.chat import text_digest
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.exports.source import ExportRun, redacted
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.partition_keys import parse_partition_key
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Sink
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.exports import SelectedRun, read_verdicts
from trajectory_pipeline.storage.storage import Storage

_COLUMNS = [
    column.name for column in TRAJECTORIES.in_sink(Sink.PARQUET) if column.name not in ("assistant_text", "signals")
]
"""What forms are made from: the other two are made of the messages themselves."""
_RUNS_AT_ONCE = 64
"""Runs that are encoded at once: as many more as processes are in memory, as Arrow has them and as they are written."""
_REMEMBERED_CHARACTERS = 8_000_000
WORTH_PROCESSES = 2_000
"""Runs from which on more processes save more than their start costs."""


@dataclass(frozen=True)
class Encoding:
    """What a process needs to encode runs.

    Attributes:
        with_reasoning: whether the model's reasoning is passed on.
        with_images: whether images are.
        with_signature: whether runs that say almost the same are to be found.
    """

    store: ParquetStore
    format: ExportFormat
    options: WriterOptions
    redactor: Redactor
    with_reasoning: bool
    with_images: bool
    with_signature: bool


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """A run as it is written.

    Attributes:
        encoded: what the form's writer takes; None where the run has no place in the form.
        text_digest: of what its messages say; see ``exports.chat.text_digest``.
        outcome_source: ``judge`` or ``heuristic``.
        confidence: of the judged outcome.
        probability_success: what people's labels say of it; None where there are too few.
        losses: what the form cannot hold of it.
        signature: by which runs that say almost the same are found; None where that is not asked for.
    """

    selected: SelectedRun
    encoded: Any
    text_digest: str
    outcome: str
    outcome_source: str
    confidence: float | None
    probability_success: float | None
    policy_id: str | None
    model: str | None
    simulated: bool
    losses: Counter[str]
    signature: Any

    def without_content(self) -> "EncodedRun":
        """Return it without what is large."""
        return replace(self, encoded=None, signature=None)


@dataclass(frozen=True)
class _Portion:
    """A few trajectories as Parquet holds them, with what is known of each: which run it is, and its verdict."""

    rows: pa.RecordBatch
    selected: Mapping[str, SelectedRun]
    verdicts: Mapping[str, Mapping[str, Any]]


def encode_runs(
    storage: Storage, encoding: Encoding, selected: Sequence[SelectedRun], missing: Counter[str]
) -> Iterator[EncodedRun]:
    """Yield the selected runs, encoded.

    Args:
        storage: with the trajectories and their verdicts.
        encoding: how.
        selected: which.
        missing: runs by the reason why they could not be read, which are counted here.

    Raises:
        SinkError: a sink cannot be read.
        PipelineError: a process was killed.
    """
    portions = _portions(storage, selected, missing)
    processes = os.cpu_count() or 1
    if len(selected) < WORTH_PROCESSES or processes == 1:
        encoder = _Encoder(encoding)
        for portion in portions:
            yield from encoder.encode(portion)
        return
    # Not forked: this process may have threads, of Arrow and of database clients.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(encoding,)) as pool:
        pending: deque[Future[list[EncodedRun]]] = deque()
        try:
            for portion in portions:
                pending.append(pool.submit(_encode_in_worker, portion))
                # No more than are worked on, and one that waits: they are large.
                if len(pending) > processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool:
            raise PipelineError(
                "A process that encodes runs was killed, most likely for want of memory. Nothing was written."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _portions(storage: Storage, selected: Sequence[SelectedRun], missing: Counter[str]) -> Iterator[_Portion]:
    by_partition: dict[str, dict[str, SelectedRun]] = {}
    for one in selected:
        by_partition.setdefault(one.partition_key, {})[one.run_id] = one
    for key in sorted(by_partition):
        wanted = by_partition[key]
        found = 0
        for batch in storage.parquet.read(TRAJECTORIES, parse_partition_key(key), _COLUMNS):
            ids = zip(batch.column("run_id").to_pylist(), batch.column("content_digest").to_pylist(), strict=True)
            places = {
                run_id: place
                for place, (run_id, digest) in enumerate(ids)
                if run_id in wanted and wanted[run_id].content_digest == digest
            }
            found += len(places)
            run_ids = list(places)
            for start in range(0, len(run_ids), _RUNS_AT_ONCE):
                some = run_ids[start : start + _RUNS_AT_ONCE]
                yield _Portion(
                    # Not a slice: that would be sent to another process with all of the batch.
                    batch.take([places[run_id] for run_id in some]),
                    {run_id: wanted[run_id] for run_id in some},
                    read_verdicts(storage.postgres, some),
                )
        if found < len(wanted):
            missing["not in Parquet as Postgres has it: materialize trajectories"] += len(wanted) - found


class _Remembering:
    """A redactor that remembers what it lately made of each text.

    Runs of one agent have one system prompt and one list of tools, and what a tool returned stands in a run twice.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._redacted: dict[str, str] = {}
        self._characters = 0

    def __call__(self, text: str) -> str:
        known = self._redacted.get(text)
        if known is None:
            if self._characters > _REMEMBERED_CHARACTERS:
                self._redacted.clear()
                self._characters = 0
            known = self._redacted[text] = self._redactor(text)
            self._characters += len(text)
        return known


class _Encoder:
    """Encodes portions, one after another."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._redact = _Remembering(encoding.redactor)
        self._sign: Callable[[ExportRun], Any] | None = None
        if encoding.with_signature:
            from trajectory_pipeline.exports.near_duplicates import signature_of

            self._sign = signature_of

    def encode(self, portion: _Portion) -> Iterator[EncodedRun]:
        """Yield the runs of a portion, encoded."""
        encoding, redact = self._encoding, self._redact
        for row in rows_of(portion.rows):
            one = portion.selected[row["run_id"]]
            verdict = portion.verdicts.get(one.run_id) or {}
            run = ExportRun(
                redacted(row, redact),
                redacted(verdict, redact) or None,
                one.family_id,
                encoding.with_reasoning,
                encoding.with_images,
            )
            yield EncodedRun(
                one,
                encoding.format.form.encode(run, encoding.options),
                text_digest(run),
                run.outcome,
                run.outcome_source,
                verdict.get("outcome_confidence"),
                verdict.get("probability_success"),
                verdict.get("policy_id"),
                verdict.get("model"),
                bool(verdict.get("simulated")),
                run.losses,
                self._sign(run) if self._sign else None,
            )


_encoder: _Encoder | None = None


def _start_worker(encoding: Encoding) -> None:
    global _encoder
    pa.set_cpu_count(1)
    _encoder = _Encoder(encoding)


def _encode_in_worker(portion: _Portion) -> list[EncodedRun]:
    if _encoder is None:
        raise RuntimeError("the process was started without its encoding")
    return list(_encoder.encode(portion))
