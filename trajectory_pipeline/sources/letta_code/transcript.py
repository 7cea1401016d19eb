"""A conversation's ``messages.jsonl`` as runs: which lines make each run, and how it ended.

The program appends lines, rewrites the file on repair and migration, and appends a message again when it changed; the
last snapshot of a message counts. Version 2 wraps each message in an entry; version 1 has the messages alone. There are
no runs: one begins with each message that the user sent, and has ended where the model said so or the next one begins.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.sources.raw_rows import utc_time

ENDINGS = {
    "stop": ("completed", "end_turn"),
    "length": ("completed", "max_tokens_exceeded"),
    "error": ("failed", "error"),
    "aborted": ("cancelled", "cancelled"),
}
"""Status and stop reason of a run by the ``stopReason`` of its last answer; any other says that it goes on."""
NOT_RECORDED = ("unknown", None)
"""Status and stop reason of a run that the next one cut off: how it ended is written nowhere."""
_MESSAGE_FIELDS = frozenset(
    (
        *("id", "role", "content", "timestamp", "metadata", "otid", "api", "provider", "model", "responseModel"),
        *("responseId", "usage", "stopReason", "errorMessage", "diagnostics", "toolCallId", "toolName", "isError"),
        *("details", "parts"),
    )
)
"""What the program is known to write in a message."""
_NEVER_IN_JSON = re.compile(rb"[\x00-\x08\x0a-\x1f]")
"""Bytes that are nowhere in a line of JSON, such as the zeros that a power cut leaves in the place of a line."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: where it is, and what was read of it.

    Attributes:
        number: from 1.
        offset: of its first byte.
        length: in bytes.
        message_id: of the message in it; of a line that cannot be read, its number.
        role: ``user``, ``assistant``, ``toolResult``, ``summary``; None if it cannot be read.
        at: time of the message.
        stop_reason: of an answer.
        otid: the id that the client gave to what it sent.
        agent_id: the agent that the message names as its own.
    """

    number: int
    offset: int
    length: int
    message_id: str
    role: str | None
    at: datetime | None = None
    stop_reason: str | None = None
    otid: str | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True)
class TranscriptRun:
    """One run of a file: little, because it is remembered of all files of a folder as long as they do not change.

    Attributes:
        first: its first line, the summary before it left aside: what the user sent.
        began_at: time of its first message that has one.
        last_at: time of its last message that has one; of a run without any, that of the run before it.
        ended: status and stop reason; None while it goes on.
        bad_line: number of its first line that cannot be read; None if all can be.
        digest: of its lines.
        spans: number, offset and length of each of its lines, in order.
    """

    first: Line
    began_at: datetime | None
    last_at: datetime | None
    ended: tuple[str, str | None] | None
    bad_line: int | None
    digest: str
    spans: "array[int]"

    @property
    def size(self) -> int:
        """Bytes of its lines."""
        return sum(self.spans[2::3])


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation's file as it was read.

    ``unfinished_line`` says that its last line has no end yet; ``unknown`` names fields and entries that are not read;
    ``agent_id`` is the agent that the last message with one names.
    """

    path: Path
    runs: tuple[TranscriptRun, ...] = ()
    unfinished_line: bool = False
    unknown: frozenset[str] = frozenset()
    agent_id: str | None = None


def read_transcript(path: Path) -> Transcript:
    """Read a conversation's file; one that is not there has no runs.

    Raises:
        SourceError: it cannot be read.
    """
    lines: dict[str, Line] = {}
    digests: dict[int, bytes] = {}
    unfinished, unknown = False, set[str]()
    try:
        with path.open("rb") as file:
            offset = 0
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n") and _can_become_a_message(raw):
                    # Being written now, or cut off by a crash: nobody can tell which, until more follows.
                    unfinished = True
                    break
                line = _parse_line(raw, number, offset, unknown)
                offset += len(raw)
                if line is not None:
                    # The newest snapshot of a message counts, at the place of the first.
                    lines[line.message_id] = line
                    digests[number] = hashlib.sha256(raw).digest()
    except FileNotFoundError:
        return Transcript(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check that this user may read it.") from None
    runs: list[TranscriptRun] = []
    for run, ended in _cut(lines.values()):
        runs.append(_run(run, ended, digests, runs[-1].last_at if runs else None))
    agents = [line.agent_id for line in lines.values() if line.agent_id is not None]
    return Transcript(path, tuple(runs), unfinished, frozenset(unknown), agents[-1] if agents else None)


def _can_become_a_message(raw: bytes) -> bool:
    """Return whether more bytes can make a message of a line that has no end: one that is being written."""
    return raw.lstrip().startswith(b"{") and _NEVER_IN_JSON.search(raw) is None


def _run(
    lines: list[Line],
    ended: tuple[str, str | None] | None,
    digests: dict[int, bytes],
    before: datetime | None,
) -> TranscriptRun:
    times = [line.at for line in lines if line.at is not None]
    return TranscriptRun(
        first=next((line for line in lines if line.role != "summary"), lines[0]),
        began_at=times[0] if times else None,
        last_at=times[-1] if times else before,
        ended=ended,
        bad_line=next((line.number for line in lines if line.role is None), None),
        digest=_digest(digests[line.number] for line in lines),
        spans=array("Q", (value for line in lines for value in (line.number, line.offset, line.length))),
    )


def read_lines(path: Path, run: TranscriptRun) -> Iterator[tuple[Line, Record | None, str | None]]:
    """Yield a run's lines as they stand in the file now: each with its message; one that is unreadable with its text.

    Raises:
        SourceError: the file cannot be read, or was changed since.
    """
    spans = list(zip(run.spans[::3], run.spans[1::3], run.spans[2::3], strict=True))
    raws: list[bytes] = []
    try:
        with path.open("rb") as file:
            for _, offset, length in spans:
                file.seek(offset)
                raws.append(file.read(length))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check that this user may read it.") from None
    if _digest(hashlib.sha256(raw).digest() for raw in raws) != run.digest:
        raise SourceError(f"{path} was rewritten while it was read: materialize the partition again.")
    for (number, offset, _), raw in zip(spans, raws, strict=True):
        line = _parse_line(raw, number, offset, set())
        if line is not None:
            if line.role is None:
                yield line, None, raw.decode("utf-8", "backslashreplace")
            else:
                yield line, message_of(json.loads(raw)), None


def message_of(entry: Record) -> Record:
    """Return the message of a line, whichever version wrote it; of a compaction its summary."""
    if entry.get("type") == "compaction":
        message = entry.get("message")
        kept = message if isinstance(message, dict) else {}
        message_id = kept.get("id") or f"compaction-{entry.get('id')}"
        at = {"id": message_id, "entry_timestamp": entry.get("timestamp")}
        return {**kept, **at, "role": "summary", "summary": entry.get("summary")}
    message = entry["message"] if entry.get("type") == "message" else entry
    compaction = (message.get("metadata") or {}).get("compaction")
    if isinstance(compaction, dict):
        # What a compaction left, in a file that was rewritten since.
        return {**message, "role": "summary", "summary": compaction.get("summary")}
    return dict(message)


def time_of(message: Record) -> datetime | None:
    """Return when a message was made."""
    metadata = message.get("metadata")
    created = metadata.get("created_at") if isinstance(metadata, dict) else None
    return utc_time(created) or utc_time(message.get("timestamp")) or utc_time(message.get("entry_timestamp"))


def _parse_line(raw: bytes, number: int, offset: int, unknown: set[str]) -> Line | None:
    """Return what a line is; None where it holds no message. What is not known in it is added to ``unknown``."""
    if not raw.strip():
        return None
    bad = Line(number, offset, len(raw), f"line-{number}", None)
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return bad
    if not isinstance(entry, dict):
        return bad
    kind = entry.get("type")
    if kind not in (None, "message", "compaction"):
        # The program itself passes over what it does not know.
        unknown.update({f"entry.{kind}"} - {"entry.session"})
        return None
    if kind == "message" and not isinstance(entry.get("message"), dict):
        return bad
    metadata = (entry["message"] if kind == "message" else entry).get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        return bad
    message = message_of(entry)
    message_id, role = message.get("id"), message.get("role")
    # A message in parts without content is of a version that the program itself only repairs.
    if not isinstance(message_id, str) or not isinstance(role, str) or ("content" not in message and role != "summary"):
        return bad
    if role != "summary":
        unknown.update(f"message.{name}" for name in message.keys() - _MESSAGE_FIELDS)
    stop_reason, otid, agent_id = message.get("stopReason"), message.get("otid"), (metadata or {}).get("agent_id")
    return Line(
        number,
        offset,
        len(raw),
        message_id,
        role,
        time_of(message),
        stop_reason if isinstance(stop_reason, str) and role == "assistant" else None,
        otid if isinstance(otid, str) else None,
        agent_id if isinstance(agent_id, str) else None,
    )


def _cut(lines: Iterable[Line]) -> Iterator[tuple[list[Line], tuple[str, str | None] | None]]:
    """Yield the lines of each run, and how it ended."""
    current: list[Line] = []
    waiting: list[Line] = []
    for line in lines:
        ended = _ending(current)
        if line.role == "user":
            if current:
                yield current, ended or NOT_RECORDED
            current, waiting = [*waiting, line], []
        elif line.role == "summary" and (ended or not current):
            # Made between two runs: what the next one begins with. A run that has ended does not change for it.
            waiting.append(line)
        elif line.role is None and ended:
            # Nobody knows what it was: it may be what the user sent next, so that what follows is not of this run.
            yield current, ended
            current, waiting = [*waiting, line], []
        else:
            current += [*waiting, line]
            waiting = []
    if current:
        yield current, _ending(current)


def _ending(lines: list[Line]) -> tuple[str, str | None] | None:
    """Return how a run ended, if its last line says that it did."""
    last = lines[-1] if lines else None
    return ENDINGS.get(last.stop_reason or "") if last is not None and last.role == "assistant" else None


def _digest(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
