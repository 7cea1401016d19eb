"""Letta Code's local backend as a source: one or several folders, of one or several machines.

Read are ``agents/*.json`` and the four files of each folder in ``conversations``; nothing else is opened, least of all
``providers/auth.json``, which holds secrets.
"""

import base64
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.source_protocol import BadRecord, SourceIdentity
from trajectory_pipeline.sources.found_runs import UNREADABLE, FoundRun, FoundRuns, unreadable, utc_now
from trajectory_pipeline.sources.letta_code.rows import SHOWN_COLUMNS, Conversation, run_rows
from trajectory_pipeline.sources.letta_code.transcript import Transcript, TranscriptRun, read_transcript
from trajectory_pipeline.sources.raw_rows import utc_time
from trajectory_pipeline.text import pluralize

FORMATS = {(1, "pi-ai-message-jsonl"), (2, "pi-session-entry-jsonl")}
"""Versions of ``manifest.json`` that are read."""
_NO_AGENT = "agent-free"
"""The program's own word for a conversation without an agent."""
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_FILES_KEPT = 100_000
"""Conversations whose lines are remembered while their file does not change."""


@dataclass(frozen=True)
class LettaCodeSource:
    """Folders such as ``~/.letta/lc-local-backend``. One that is not there now says nothing of its runs."""

    kind: ClassVar[str] = "letta_code"
    cannot_know: ClassVar[tuple[str, ...]] = (
        "Whether a tool succeeded: `isError` is false for a command that failed. Only errors that are recorded count.",
        "Runs, which are cut out: from what the user sent to the next. How a run ended that another one cut off.",
        "Organizations, projects, feedback, durations of steps, tool definitions, context windows of the calls.",
        "Deletions: a conversation that is not there any more stays as it was captured.",
        "What the agent was told at the time: the system prompt is the one that the folder holds at capture.",
        "The beginning of a run whose first messages a repair of the file left out.",
    )

    name: str
    folders: tuple[Path, ...] = field()

    @contextmanager
    def snapshot(self) -> Iterator[FoundRuns]:
        """Read what changed since the last time.

        Raises:
            SourceError: none of the folders is there, or a file cannot be read.
        """
        taken_at = utc_now()
        found = _Found(self.name)
        there = [folder for folder in self.folders if (folder / "conversations").is_dir()]
        if not there:
            raise SourceError(
                f"There is no folder conversations in {self.described}: is the disk there, and the path in"
                f" TRAJECTORY_SOURCES ({self.name}) right? What was captured from it stays as it is."
            )
        for folder in self.folders:
            if folder in there:
                found.read_folder(folder)
            else:
                found.bad.append(BadRecord(str(folder), "is not there now: what was captured from it stays"))
        runs = found.unique()
        yield FoundRuns(
            source=self.name,
            identity=SourceIdentity(f"{self.name}: Letta Code in {self.described}"),
            described=self.described,
            taken_at=taken_at,
            runs=runs,
            unfinished=found.unfinished,
            shown_columns=SHOWN_COLUMNS,
            unknown_columns=sorted(found.unknown),
            notes=found.notes(),
            bad_records=found.bad,
        )

    @contextmanager
    def pooled(self) -> Iterator["LettaCodeSource"]:
        """Return the source: it holds nothing open."""
        yield self

    @property
    def described(self) -> str:
        """The folders."""
        return ", ".join(map(str, self.folders))


@dataclass
class _Found:
    """What was found in the folders so far."""

    source: str
    runs: dict[str, list[tuple[str, FoundRun]]] = field(default_factory=dict)
    sent: dict[tuple[str, datetime], dict[str, datetime]] = field(default_factory=dict)
    """In which conversations, made when, stands what a user sent at a time: a fork copies what was before it."""
    sent_in: dict[str, tuple[str, tuple[str, datetime]]] = field(default_factory=dict)
    """The conversation of each run, and what the user sent in it."""
    copied: list[tuple[str, tuple[str | None, datetime | None]]] = field(default_factory=list)
    """What users had sent before a fork was made, with the fork's file: runs of another conversation."""
    unfinished: dict[str, datetime] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)

    def read_folder(self, folder: Path) -> None:
        for conversation_dir in _listed(folder / "conversations"):
            read = _Reading(conversation_dir)
            conversation = _conversation(folder, read)
            manifest = read.object_in(conversation_dir / "manifest.json")
            version = (manifest or {}).get("schema_version"), (manifest or {}).get("message_format")
            if manifest is not None and version not in FORMATS:
                read.refuse(conversation_dir / "manifest.json", _unknown(version))
            transcript = _cached_transcript(conversation_dir / "messages.jsonl")
            if transcript.agent_id and not read.knows_agent:
                # Its runs would get other ids than they have.
                problem = f"names no agent, and the messages are those of {transcript.agent_id}"
                read.refuse(conversation_dir / "conversation.json", problem)
            self.bad += read.bad
            if read.refused:
                self._refuse(conversation_dir, transcript, read.refused[0])
                continue
            self.unknown.update(transcript.unknown)
            if transcript.unfinished_line:
                self.bad.append(BadRecord(str(transcript.path), "its last line has no end: being written, or cut off"))
            made_at = _made_at(conversation, manifest or {})
            copied = _copied(transcript, made_at)
            for number, run in enumerate(transcript.runs):
                if number < copied:
                    self.copied.append((str(transcript.path), (run.first.otid, run.first.at)))
                else:
                    self._add(conversation, made_at, transcript, run)

    def _add(
        self, conversation: Conversation, made_at: datetime | None, transcript: Transcript, run: TranscriptRun
    ) -> None:
        first = run.first
        native_id = ":".join(filter(None, (conversation.key, first.message_id, (first.otid or "")[:8])))
        if first.otid is not None and first.at is not None:
            sent = first.otid, first.at
            self.sent_in[native_id] = conversation.key, sent
            self.sent.setdefault(sent, {})[conversation.key] = made_at or _LAST
        # Without any time the file's own is the only one by which the run can be found again.
        at = run.last_at or _modified_at(transcript.path)
        problem = None
        if run.bad_line is not None:
            problem = BadRecord(f"{transcript.path}:{run.bad_line}", "is no message")
            self.bad.append(problem)
        elif run.ended is None:
            self.unfinished[native_id] = at
            return
        # What was captured of a run before it was damaged stays.
        shown_id = native_id if problem is None else f"{native_id}{UNREADABLE}"
        found = FoundRun(
            native_id=shown_id,
            ended_at=at,
            version=run.digest,
            read=lambda: run_rows(shown_id, conversation, transcript.path, run),
            depends_on=conversation.digest,
            size=run.size,
            agent_id=conversation.agent_id,
            problem=problem,
        )
        self.runs.setdefault(native_id, []).append((str(transcript.path), found))

    def _refuse(self, conversation_dir: Path, transcript: Transcript, record: BadRecord) -> None:
        """Capture nothing of a conversation, under no id: neither from it nor from a copy of what it holds."""
        # By the folder's name: what the files say of it may be what cannot be read.
        name = _decoded(conversation_dir.name) or conversation_dir.name
        path = Path(record.place)
        found = unreadable(name, record, _modified_at(path if path.exists() else conversation_dir))
        self.runs.setdefault(found.native_id, []).append((record.place, found))
        for run in transcript.runs:
            if run.first.otid is not None and run.first.at is not None:
                self.sent.setdefault((run.first.otid, run.first.at), {})[name] = _FIRST

    def notes(self) -> list[str]:
        """Return which files begin with runs of a conversation that is not there."""
        missing = Counter(path for path, sent in self.copied if sent not in self.sent)
        return [
            f"{path} begins with {pluralize(count, 'run')} that a fork copied from a conversation that is not there,"
            " or cannot be read, now: they are captured as runs of that one alone"
            for path, count in sorted(missing.items())
        ]

    def unique(self) -> list[FoundRun]:
        """Return one run of each id: of a conversation that is in several folders, the copy that went further.

        Of what stands in several conversations, the run is that of the one that was made first.
        """
        for native_id, (key, sent) in self.sent_in.items():
            stands_in = self.sent[sent]
            if key != min(stands_in, key=lambda each: (stands_in[each], each)):
                self.runs.pop(native_id, None)
                self.unfinished.pop(native_id, None)
        chosen = []
        for native_id, copies in sorted(self.runs.items()):
            self.unfinished.pop(native_id, None)
            path, run = max(copies, key=_how_far)
            chosen.append(run)
            self.bad += [
                BadRecord(other, f"holds another version of the run {native_id}, which is read from {path}")
                for other, copy in copies
                if copy.version != run.version and copy.problem is None
            ]
        return chosen


def _made_at(conversation: Conversation, manifest: dict[str, Any]) -> datetime | None:
    """Return when a conversation was made, as the earlier of its files says: what was migrated is older than a file."""
    times = (conversation.created_at, utc_time(manifest.get("created_at")))
    return min((moment for moment in times if moment is not None), default=None)


def _copied(transcript: Transcript, made_at: datetime | None) -> int:
    """Return how many runs at the beginning of a file a fork copied: those that had ended when it was made.

    The fork's own files tell it, so that these are no runs of the fork where the conversation that they are of is away.
    Only at the beginning, because a clock may be set back later.
    """
    copied = 0
    for number, run in enumerate(transcript.runs, 1):
        if made_at is not None and run.first.otid is not None and run.last_at is not None and run.last_at < made_at:
            copied = number
        elif run.bad_line is None:
            break
    return copied


def _how_far(copy: tuple[str, FoundRun]) -> tuple[Any, ...]:
    """Order copies of a run: last is the one that went further; of two that did, the one that can be read."""
    path, run = copy
    return run.size, run.problem is None, run.ended_at, run.version, path


@dataclass
class _Reading:
    """The small files of one conversation as they are read, and what is wrong with them.

    Attributes:
        bad: what is to be known of them.
        refused: why the conversation cannot be read now: who it belongs to, or what its runs show, may be damaged.
        knows_agent: whether a file says whose the conversation is, or that it is nobody's.
    """

    conversation_dir: Path
    bad: list[BadRecord] = field(default_factory=list)
    refused: list[BadRecord] = field(default_factory=list)
    knows_agent: bool = False

    def object_in(self, path: Path) -> dict[str, Any] | None:
        """Return the object in a file; None where there is none, or none that can be read."""
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                # The name is made of an id that a file says.
                self.bad.append(BadRecord(str(path), "cannot be there: its name would be too long"))
                return None
            raise SourceError(f"{path} cannot be read: {error.strerror}. Check that this user may read it.") from None
        except (ValueError, RecursionError) as error:
            self.refuse(path, f"is no JSON ({type(error).__name__})")
            return None
        if not isinstance(value, dict):
            self.refuse(path, "is no JSON object")
            return None
        return value

    def refuse(self, path: Path, problem: str) -> None:
        """Note why the conversation cannot be read."""
        record = BadRecord(str(path), problem)
        self.bad.append(record)
        self.refused.append(record)


def _conversation(folder: Path, read: _Reading) -> Conversation:
    path = read.conversation_dir / "conversation.json"
    # The folder's name says the same: `conversation:<id>`, or `default:<agent id>`.
    kind, _, rest = _decoded(read.conversation_dir.name).partition(":")
    record = read.object_in(path) or {}
    conversation_id = record.get("id") or (rest if kind == "conversation" else "default")
    agent_id = record.get("agent_id") or (rest if kind == "default" else None) or _NO_AGENT
    read.knows_agent = "agent_id" in record or agent_id != _NO_AGENT
    created_at = utc_time(record.get("created_at"))
    if created_at is None and record.get("created_at") is not None:
        read.refuse(path, "has a created_at that is no time")
    agent = read.object_in(folder / "agents" / f"{_encoded(str(agent_id))}.json")
    prompt = read.object_in(read.conversation_dir / "system-prompt.json")
    content = (prompt or {}).get("content")
    system = (agent or {}).get("system")
    depends_on = json.dumps([agent, content], sort_keys=True, default=str)
    return Conversation(
        agent_id=str(agent_id),
        conversation_id=str(conversation_id),
        created_at=created_at,
        agent=agent,
        system_prompt=content if isinstance(content, str) else system if isinstance(system, str) else None,
        digest=hashlib.sha256(depends_on.encode()).hexdigest(),
    )


def _listed(folder: Path) -> Sequence[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}. Check that this user may read it.") from None


def _cached_transcript(path: Path) -> Transcript:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return Transcript(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check that this user may read it.") from None
    return _transcript(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=_FILES_KEPT)
def _transcript(path: Path, *_: int) -> Transcript:
    return read_transcript(path)


def _modified_at(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check that this user may read it.") from None


def _decoded(name: str) -> str:
    try:
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
    except ValueError:
        return ""


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "backslashreplace")).decode().rstrip("=")


def _unknown(version: tuple[Any, Any]) -> str:
    known = " and ".join(f"{number} ({name})" for number, name in sorted(FORMATS))
    return f"has version {version[0]} ({version[1]}): known are {known}"
