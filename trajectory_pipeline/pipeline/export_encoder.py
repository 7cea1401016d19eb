"""Redacts and encodes runs, in this process or another: it imports no database, which would be memory in each."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.exports.source import ExportRun, FieldRedactor
from trajectory_pipeline.exports.text_digest import text_digest
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.runtime.arrow_without_pandas import keep_arrow_from_pandas
from trajectory_pipeline.runtime.worker_process import prepare_worker_process
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline.schema.exports import SelectedRun


@dataclass(frozen=True)
class Encoding:
    """What a process needs to encode runs.

    Attributes:
        with_reasoning: whether the model's reasoning is passed on.
        with_images: whether images are.
        with_signature: whether runs that say almost the same are to be found.
    """

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
        encoded: what the form's writer takes, or a ``NoPlace``.
        text_digest: of what its messages say; see ``exports.text_digest``.
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
        """Return it without what is large; a signature has half a kilobyte."""
        return replace(self, encoded=None)


@dataclass(frozen=True)
class Portion:
    """A few trajectories as Parquet holds them, with what is known of each: which run it is, and its verdict."""

    rows: pa.RecordBatch
    selected: Mapping[str, SelectedRun]
    verdicts: Mapping[str, dict[str, Any]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the rows in Arrow's own stream, which leaves out what a slice does not show."""
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, self.rows.schema) as writer:
            writer.write_batch(self.rows)
        return _portion, (stream.getvalue().to_pybytes(), self.selected, self.verdicts)


def _portion(stream: bytes, selected: Mapping[str, SelectedRun], verdicts: Mapping[str, dict[str, Any]]) -> Portion:
    with pa.ipc.open_stream(stream) as reader:
        return Portion(reader.read_next_batch(), selected, verdicts)


class Encoder:
    """Encodes portions, one after another."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._redact = FieldRedactor(encoding.redactor)
        self._sign: Callable[[ExportRun], Any] | None = None
        if encoding.with_signature:
            from trajectory_pipeline.exports.near_duplicates import signature_of

            self._sign = signature_of

    def encode(self, portion: Portion) -> Iterator[EncodedRun]:
        """Yield the runs of a portion, encoded."""
        encoding, redact = self._encoding, self._redact
        for row in rows_of(portion.rows, redact):
            one = portion.selected[row["run_id"]]
            verdict = portion.verdicts.get(one.run_id) or {}
            redact.redact_row(verdict)
            run = ExportRun(
                row,
                verdict or None,
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


_encoder: Encoder | None = None


def start_worker(encoding: Encoding) -> None:
    """Make this process encode so."""
    global _encoder
    # The process that started this one decides what an interrupt ends: a terminal sends it to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_arrow_from_pandas()
    pa.set_cpu_count(1)
    prepare_worker_process()
    _encoder = Encoder(encoding)


def encode_in_worker(portion: Portion) -> list[EncodedRun]:
    """Return the runs of a portion, encoded, in a process that ``start_worker`` was called in."""
    if _encoder is None:
        raise RuntimeError("the process was started without its encoding")
    return list(_encoder.encode(portion))
