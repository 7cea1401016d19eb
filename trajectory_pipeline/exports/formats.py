"""The forms that trajectories can be exported in: the command, the assets, the card and the docs list what stands here.

To add one: a member, and its entry in ``FORMS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from trajectory_pipeline.exports.source import ExportRun


class ExportFormat(StrEnum):
    """A form, by the name that the command takes."""

    ATIF = "atif"
    OPENAI = "openai"
    SFT = "sft"
    KTO = "kto"
    DPO = "dpo"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def form(self) -> "Form":
        """How it is written."""
        return FORMS[self]

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions of the form that can be written, the newest first; empty where it has none."""
        return self.form.versions


@dataclass(frozen=True)
class WriterOptions:
    """What a writer may be told.

    Attributes:
        version: of the format; None for the newest.
    """

    version: str | None = None


class Writer(Protocol):
    """Writes one form into a folder; ``close`` must be called, also after an error."""

    def add(self, run: ExportRun, split: str) -> str | None:
        """Write a run; returns why it has no place in the form, else None."""

    def close(self) -> None:
        """End the files."""


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        about: what it is, for the command's help and the docs.
        files: what a dataset consists of, as a sentence for its card.
        open_writer: opens a writer in a folder. Its libraries are imported then: naming the forms loads none. None
            where a record is a pair of runs.
        versions: that can be written, the newest first.
        read_by_datasets: whether ``datasets`` reads ``<split>.jsonl``, which the card tells the Hugging Face Hub.
    """

    about: str
    files: str
    open_writer: Callable[[Path, WriterOptions], Writer] | None
    versions: tuple[str, ...] = ()
    read_by_datasets: bool = False

    @property
    def pairs(self) -> bool:
        """Whether a record is a pair of runs; such a form has no writer of single runs."""
        return self.open_writer is None


_NO_ANSWER = "the agent said nothing"
_NO_LABEL = "no success and no failure, or the agent said nothing"
_ATIF_VERSIONS = ("1.8", "1.7")
_TABLES = "Tables `runs`, `messages`, `tool_calls`."


def _atif(folder: Path, options: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import AtifWriter

    return AtifWriter(folder, options.version or _ATIF_VERSIONS[0])


def _openai(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.chat import openai_record
    from trajectory_pipeline.exports.writers import JsonLinesWriter

    return JsonLinesWriter(folder, openai_record, _NO_ANSWER)


def _sft(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.chat import sft_record
    from trajectory_pipeline.exports.writers import JsonLinesWriter

    return JsonLinesWriter(folder, sft_record, _NO_ANSWER)


def _kto(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.chat import kto_record
    from trajectory_pipeline.exports.writers import JsonLinesWriter

    return JsonLinesWriter(folder, kto_record, _NO_LABEL)


def _csv(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import FlatWriter

    return FlatWriter(folder, "csv")


def _parquet(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import FlatWriter

    return FlatWriter(folder, "parquet")


FORMS: dict[ExportFormat, Form] = {
    ExportFormat.ATIF: Form(
        "Agent Trajectory Interchange Format, a file a run",
        "One file a trajectory, in the Agent Trajectory Interchange Format.",
        _atif,
        versions=_ATIF_VERSIONS,
    ),
    ExportFormat.OPENAI: Form(
        "chats with tools, a line a run (OpenAI's fine-tuning)",
        "One chat a line, in the form of OpenAI's fine-tuning API: `messages`, `tools`.",
        _openai,
        read_by_datasets=True,
    ),
    ExportFormat.SFT: Form(
        "chats with tools, a line a run (TRL)",
        "One chat a line for supervised fine-tuning with TRL: `messages`, `tools`.",
        _sft,
        read_by_datasets=True,
    ),
    ExportFormat.KTO: Form(
        "chats with a label, a line a run (TRL)",
        "One run a line for KTO with TRL: `prompt`, `completion`, `label` (whether it is a success).",
        _kto,
        read_by_datasets=True,
    ),
    ExportFormat.DPO: Form(
        "pairs of a success and a failure (TRL)",
        "One pair a line for DPO with TRL: `prompt`, `chosen`, `rejected`.",
        None,
        read_by_datasets=True,
    ),
    ExportFormat.CSV: Form("flat tables of runs, messages and tool calls", _TABLES, _csv),
    ExportFormat.PARQUET: Form("the same tables", _TABLES, _parquet),
}
