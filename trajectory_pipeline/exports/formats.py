"""The forms that trajectories can be exported in: the command, the assets, the card and the docs list what stands here.

To add one: a member, and its entry in ``FORMS``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.chat import kto_record, openai_record, sft_record
from trajectory_pipeline.exports.source import ExportRun, JsonObject, json_bytes


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


Encoded = Any
"""What is written of a run: whatever the form's writer takes, if ``pickle`` takes it too."""


class Writer(Protocol):
    """Writes one form into a folder; ``close`` must be called, also after an error."""

    def write(self, encoded: Encoded, split: str) -> None:
        """Write what the form's ``encode`` made of a run."""

    def close(self) -> None:
        """End the files."""


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        about: what it is, for the command's help and the docs.
        files: what a dataset consists of, as a sentence for its card.
        encode: makes what is written of a run; None where the run has no place in the form. Most of the work: it
            writes nothing itself, so that several processes can do it.
        open_writer: opens a writer in a folder. Its libraries are imported then: naming the forms loads none. None
            where a record is a pair of runs.
        no_place: why a run has no place.
        versions: that can be written, the newest first.
        read_by_datasets: whether ``datasets`` reads ``<split>.jsonl``, which the card tells the Hugging Face Hub.
    """

    about: str
    files: str
    encode: Callable[[ExportRun, WriterOptions], Encoded | None]
    open_writer: Callable[[Path], Writer] | None
    no_place: str = ""
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


def _line(record_of: Callable[[ExportRun], JsonObject | None], run: ExportRun, _: WriterOptions) -> bytes | None:
    record = record_of(run)
    return None if record is None else json_bytes(record)


def _atif_file(run: ExportRun, options: WriterOptions) -> tuple[str, bytes]:
    trajectory = atif_trajectory(run, options.version or _ATIF_VERSIONS[0])
    return f"{run.trajectory['trajectory_id']}.json", json_bytes(trajectory)


def _rows(run: ExportRun, _: WriterOptions) -> list[tuple[str, JsonObject]]:
    from trajectory_pipeline.exports.flat import flat_rows

    return list(flat_rows(run))


def _lines(folder: Path) -> Writer:
    from trajectory_pipeline.exports.writers import JsonLines

    return JsonLines(folder)


def _json_files(folder: Path) -> Writer:
    from trajectory_pipeline.exports.writers import JsonFiles

    return JsonFiles(folder)


def _tables(ending: str, folder: Path) -> Writer:
    from trajectory_pipeline.exports.writers import FlatTables

    return FlatTables(folder, ending)


FORMS: dict[ExportFormat, Form] = {
    ExportFormat.ATIF: Form(
        "Agent Trajectory Interchange Format, a file a run",
        "One file a trajectory, in the Agent Trajectory Interchange Format.",
        _atif_file,
        _json_files,
        versions=_ATIF_VERSIONS,
    ),
    ExportFormat.OPENAI: Form(
        "chats with tools, a line a run (OpenAI's fine-tuning)",
        "One chat a line, in the form of OpenAI's fine-tuning API: `messages`, `tools`.",
        partial(_line, openai_record),
        _lines,
        _NO_ANSWER,
        read_by_datasets=True,
    ),
    ExportFormat.SFT: Form(
        "chats with tools, a line a run (TRL)",
        "One chat a line for supervised fine-tuning with TRL: `messages`, `tools`.",
        partial(_line, sft_record),
        _lines,
        _NO_ANSWER,
        read_by_datasets=True,
    ),
    ExportFormat.KTO: Form(
        "chats with a label, a line a run (TRL)",
        "One run a line for KTO with TRL: `prompt`, `completion`, `label` (whether it is a success).",
        partial(_line, kto_record),
        _lines,
        _NO_LABEL,
        read_by_datasets=True,
    ),
    ExportFormat.DPO: Form(
        "pairs of a success and a failure (TRL)",
        "One pair a line for DPO with TRL: `prompt`, `chosen`, `rejected`.",
        partial(_line, sft_record),
        None,
        read_by_datasets=True,
    ),
    ExportFormat.CSV: Form("flat tables of runs, messages and tool calls", _TABLES, _rows, partial(_tables, "csv")),
    ExportFormat.PARQUET: Form("the same tables", _TABLES, _rows, partial(_tables, "parquet")),
}
