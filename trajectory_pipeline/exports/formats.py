"""The forms that trajectories can be exported in: the command, the assets, the card and the docs list what stands here.

To add one: a member, and its entry in ``FORMS``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.atif import atif_trajectory
from trajectory_pipeline.exports.chat import kto_record, openai_record, sft_record
from trajectory_pipeline.exports.endpoint import headers_of
from trajectory_pipeline.exports.otel import Telemetry, telemetry_of
from trajectory_pipeline.exports.pairs import pair_side
from trajectory_pipeline.exports.source import ExportRun, JsonObject, NoPlace, json_bytes
from trajectory_pipeline.exports.trajectory_v1 import trajectory_v1_records


class ExportFormat(StrEnum):
    """A form, by the name that the command takes."""

    ATIF = "atif"
    TRAJECTORY_V1 = "trajectory-v1"
    SCOUT = "scout"
    OTEL = "otel"
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

    def check_version(self, version: str) -> None:
        """Check a version of the form that is asked for.

        Raises:
            PipelineError: it cannot be written.
        """
        if version not in self.versions:
            known = " or ".join(self.versions) or "none: the format has no versions"
            raise PipelineError(f"--version {version} of {self} is not known; there is {known}.")


@dataclass(frozen=True)
class WriterOptions:
    """How runs are encoded and written, beyond what is common to all formats.

    Attributes:
        version: of the format; None for the newest.
        openinference: whether spans have the attributes of OpenInference in place of OpenTelemetry's.
        endpoint: a collector that spans are sent to, in place of files.
        headers: of the requests to it, as ``name=value,name=value``.
        across_agents: whether runs of agents with different system prompts are paired.
    """

    version: str | None = None
    openinference: bool = False
    endpoint: str | None = None
    headers: str = field(default="", repr=False)
    across_agents: bool = False

    @property
    def conventions(self) -> str:
        """Whose attributes spans have."""
        return "openinference" if self.openinference else "genai"


Encoded = Any
"""What is written of a run: whatever the form's writer takes, if ``pickle`` takes it too."""


class Writer(Protocol):
    """Writes one form into a folder; ``close`` must be called, also after an error."""

    def write(self, encoded: Encoded, split: str) -> str | None:
        """Write what the form's ``encode`` made of a run; returns why the target did not take it, else None."""

    def close(self) -> None:
        """End the files."""


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        about: what it is, for the command's help and the docs.
        files: what a dataset consists of, as a sentence for its card.
        encode: makes what is written of a run, or says why the run has no place in the form. Most of the work: it
            writes nothing itself, so that several processes can do it.
        open_writer: opens a writer in a folder. Its libraries are imported then: naming the forms loads none. None
            where a record is a pair of runs.
        versions: that can be written, the newest first.
        images: whether it has a place for images.
        columns: of ``<split>.jsonl``, which ``datasets`` reads, with their types as its cards have them; empty for
            other files. Untold, it guesses them from each file, and refuses files that differ.
    """

    about: str
    files: str
    encode: Callable[[ExportRun, WriterOptions], Encoded | NoPlace]
    open_writer: Callable[[Path, WriterOptions], Writer] | None
    versions: tuple[str, ...] = ()
    images: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> bool:
        """Whether a record is a pair of runs; such a form has no writer of single runs."""
        return self.open_writer is None


_ATIF_VERSIONS = ("1.8", "1.7")
_JSON_LIST = "list: json"
_CHAT = {"messages": _JSON_LIST, "tools": _JSON_LIST}
_PAIR = {
    **dict.fromkeys(("prompt", "chosen", "rejected", "tools"), _JSON_LIST),
    "parted_at": "dtype: json",
    **dict.fromkeys(("chosen_run_id", "rejected_run_id"), "dtype: string"),
}
_TABLES = "Tables `runs`, `messages`, `tool_calls`."


def _line(record_of: Callable[[ExportRun], JsonObject | NoPlace], run: ExportRun, _: WriterOptions) -> bytes | NoPlace:
    record = record_of(run)
    return record if isinstance(record, NoPlace) else json_bytes(record)


def _pair_side(run: ExportRun, options: WriterOptions) -> tuple[str, bool, bytes] | NoPlace:
    side = pair_side(run, across_agents=options.across_agents)
    return side if isinstance(side, NoPlace) else (*side[:2], json_bytes(side[2]))


def _atif_files(run: ExportRun, options: WriterOptions) -> dict[str, bytes]:
    version = options.version or _ATIF_VERSIONS[0]
    ExportFormat.ATIF.check_version(version)
    trajectory, images = atif_trajectory(run, version)
    return {f"{run.trajectory['trajectory_id']}.json": json_bytes(trajectory), **images}


def _trajectory_v1(run: ExportRun, _: WriterOptions) -> bytes | NoPlace:
    records = trajectory_v1_records(run)
    return records if isinstance(records, NoPlace) else json_bytes(records)


def _scout_row(run: ExportRun, _: WriterOptions) -> JsonObject:
    from trajectory_pipeline.exports.scout import scout_row

    return scout_row(run)


def _rows(run: ExportRun, _: WriterOptions) -> list[tuple[str, JsonObject]]:
    from trajectory_pipeline.exports.flat import flat_rows

    return list(flat_rows(run))


def _lines(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import JsonLines

    return JsonLines(folder)


def _json_files(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import JsonFiles

    return JsonFiles(folder)


def _scout(folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import ScoutTables

    return ScoutTables(folder)


def _telemetry(run: ExportRun, options: WriterOptions) -> Telemetry | NoPlace:
    return telemetry_of(run, openinference=options.openinference)


def _spans(folder: Path, options: WriterOptions) -> Writer:
    if options.endpoint is None:
        from trajectory_pipeline.exports.writers import OtlpLines

        return OtlpLines(folder)
    try:
        from trajectory_pipeline.exports.otlp import OtlpSender
    except ImportError as error:
        raise PipelineError(
            "Sending spans needs another package: pip install 'trajectory-pipeline[otel]'. Without --endpoint they are"
            " written to files."
        ) from error
    return OtlpSender(options.endpoint, headers_of(options.headers))


def _tables(ending: str, folder: Path, _: WriterOptions) -> Writer:
    from trajectory_pipeline.exports.writers import FlatTables

    return FlatTables(folder, ending)


FORMS: dict[ExportFormat, Form] = {
    ExportFormat.ATIF: Form(
        "Agent Trajectory Interchange Format, a file a run",
        "One file a trajectory, in the Agent Trajectory Interchange Format.",
        _atif_files,
        _json_files,
        versions=_ATIF_VERSIONS,
        images=True,
    ),
    ExportFormat.TRAJECTORY_V1: Form(
        "Letta's records, a line a run (agent-trajectory)",
        "One trajectory a line: a list of records of trajectory-v1, as Letta's package `agent-trajectory` makes them.",
        _trajectory_v1,
        _lines,
    ),
    ExportFormat.SCOUT: Form(
        "transcripts for Inspect Scout, a row a run",
        "A table of transcripts a split, as Inspect Scout reads them: `transcripts_from` takes this folder.",
        _scout_row,
        _scout,
        images=True,
    ),
    ExportFormat.OTEL: Form(
        "spans of OpenTelemetry, a trace a run; to files, or to a collector",
        "Spans and evaluation events in the JSON encoding of OTLP, an export request a line: `<split>-traces.jsonl`,"
        " `<split>-logs.jsonl`. Sent to a collector, there are no such files.",
        _telemetry,
        _spans,
        images=True,
    ),
    ExportFormat.OPENAI: Form(
        "chats with tools, a line a run (OpenAI's fine-tuning)",
        "One chat a line, in the form of OpenAI's fine-tuning API: `messages`, `tools`.",
        partial(_line, openai_record),
        _lines,
        images=True,
        columns=_CHAT,
    ),
    ExportFormat.SFT: Form(
        "chats with tools, a line a run (TRL)",
        "One chat a line for supervised fine-tuning with TRL: `messages`, `tools`.",
        partial(_line, sft_record),
        _lines,
        columns=_CHAT,
    ),
    ExportFormat.KTO: Form(
        "chats with a label, a line a run (TRL)",
        "One run a line for KTO with TRL: `prompt`, `completion`, `label` (whether it is a success).",
        partial(_line, kto_record),
        _lines,
        columns={"prompt": _JSON_LIST, "completion": _JSON_LIST, "label": "dtype: bool", "tools": _JSON_LIST},
    ),
    ExportFormat.DPO: Form(
        "pairs of a success and a failure (TRL)",
        "One pair a line for DPO with TRL: `prompt`, `chosen`, `rejected`.",
        _pair_side,
        None,
        columns=_PAIR,
    ),
    ExportFormat.CSV: Form("flat tables of runs, messages and tool calls", _TABLES, _rows, partial(_tables, "csv")),
    ExportFormat.PARQUET: Form("the same tables", _TABLES, _rows, partial(_tables, "parquet")),
}
