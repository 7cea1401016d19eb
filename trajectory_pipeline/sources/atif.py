"""A folder of ATIF files as a source: what Harbor and the converters of Claude Code, Codex, Gemini and others write.

A file is a run, and so is each sub-agent's trajectory inside it. A run's id is the file's path: session ids are shared
by sub-agents and continuations. Copied context is what another run did: its steps are that run's, as in Letta.
Source of the format: RFC 0001 of harbor-framework/harbor and its reference models (package ``atif`` 1.8.0).
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, ClassVar

import fsspec

from trajectory_pipeline.errors import SourceError, describe_defect
from trajectory_pipeline.schema.raw import TERMINAL_STATUSES
from trajectory_pipeline.source_protocol import BadRecord, SourceIdentity
from trajectory_pipeline.sources.found_runs import FoundRun, FoundRuns, unreadable, utc_now
from trajectory_pipeline.sources.raw_rows import (
    Row,
    RunRows,
    json_text,
    naive,
    object_of,
    reasoning_part,
    shown_columns,
    text_part,
    tool_call,
    tool_return,
    utc_time,
    whole,
)
from trajectory_pipeline.urls import without_credentials

VERSIONS = ("ATIF-v1.5", "ATIF-v1.6", "ATIF-v1.7", "ATIF-v1.8")
SUFFIX = ".json"
SECRETS = frozenset(("auth.json", ".credentials.json", "credentials.json"))
"""Names under which harnesses keep logins, beside their runs or above them: never opened."""
_PREFIX = "ATIF-v"
_ROLES = {"user": "user", "system": "system", "agent": "assistant"}
_CONTINUATION = re.compile(r"(?P<first>.+)\.cont-(?P<number>[1-9][0-9]{0,5})\.json")
"""Harbor's name of a file that continues another: ``trajectory.cont-2.json`` after ``trajectory.cont-1.json``."""
_FILES_KEPT = 100_000
_STEP_FIELDS = frozenset(
    (
        *("step_id", "timestamp", "source", "model_name", "reasoning_effort", "message", "reasoning_content"),
        *("tool_calls", "observation", "metrics", "extra", "llm_call_count", "is_copied_context"),
    )
)
_ROOT_FIELDS = frozenset(
    (
        *("schema_version", "session_id", "trajectory_id", "agent", "steps", "notes", "final_metrics", "extra"),
        *("continued_trajectory_ref", "subagent_trajectories"),
    )
)
SHOWN_COLUMNS = shown_columns(
    runs="id status stop_reason completed_at created_at agent_id conversation_id metadata_",
    steps="id run_id agent_id model prompt_tokens completion_tokens total_tokens cached_input_tokens reasoning_tokens"
    " created_at",
    messages="id run_id step_id sequence_id agent_id conversation_id role content tool_calls tool_call_id tool_returns"
    " name model created_at",
    agents="id name",
)


@dataclass(frozen=True)
class _Part:
    """One trajectory of a file: the file's own (``inner`` is empty), or a sub-agent's, by its place.

    ``copies`` says that it begins with context of the run that it continues.
    """

    inner: str
    ended_at: datetime | None
    agent_id: str
    copies: bool


@dataclass(frozen=True)
class _File:
    """What is remembered of a file; ``problem`` says why it cannot be read as ATIF, ``is_other`` that it is none."""

    digest: str
    size: int
    parts: tuple[_Part, ...] = ()
    continued_by: str | None = None
    unknown_fields: frozenset[str] = frozenset()
    problem: str | None = None
    is_other: bool = False


@dataclass(frozen=True)
class AtifSource:
    """Files ``*.json`` below a folder of any fsspec store that say that they are ATIF."""

    kind: ClassVar[str] = "atif"
    cannot_know: ClassVar[tuple[str, ...]] = (
        "How a run ended: ATIF records no status. Whether a tool succeeded, unless the file says so in `extra`.",
        "Whether a file is complete: it is read when it is whole JSON, and again when it changes.",
        "Organizations, projects, feedback, durations of steps, providers, cache writes.",
        "Token ids, log probabilities and `extra` of steps and metrics: they stay in the files.",
        "Deletions: a file that is not there any more stays as it was captured. A file that moves is another run.",
    )

    name: str
    location: str = field(repr=False)

    @contextmanager
    def snapshot(self) -> Iterator[FoundRuns]:
        """List the files, and read those that changed since the last time.

        Raises:
            SourceError: the folder is not there, or cannot be read.
        """
        taken_at = utc_now()
        files = self._files()
        bad: list[BadRecord] = []
        runs: list[FoundRun] = []
        unknown: set[str] = set()
        continued = _Continued.among({path: file for path, (file, _) in files.items()})
        for path, (file, modified_at) in files.items():
            if file.is_other:
                continue
            if file.problem:
                # Its runs are not known now, nor when they ended: those that were captured stay.
                runs.append(unreadable(path, BadRecord(f"{self.described}/{path}", file.problem), modified_at))
                continue
            unknown.update(file.unknown_fields)
            if continued.is_unknown_now(path, file):
                bad.append(BadRecord(path, "waits: a file beside it that cannot be read may be what it continues"))
                continue
            for part in file.parts:
                native_id = f"{path}#{part.inner}" if part.inner else path
                by = continued.by(path) if part.copies else None
                runs.append(
                    FoundRun(
                        native_id=native_id,
                        # The file's own time is only a place to find it by: it says not when the run ended.
                        ended_at=part.ended_at or modified_at,
                        # Its rows name the run that it continues, which may appear later.
                        version=file.digest if by is None else f"{file.digest} {by}",
                        read=partial(self._read, path, file, part, by),
                        size=file.size,
                        agent_id=part.agent_id,
                    )
                )
        yield FoundRuns(
            source=self.name,
            identity=SourceIdentity(f"{self.name}: ATIF files in {self.described}"),
            described=self.described,
            taken_at=taken_at,
            runs=runs,
            shown_columns=SHOWN_COLUMNS,
            unknown_columns=sorted(unknown),
            bad_records=bad,
        )

    @contextmanager
    def pooled(self) -> Iterator["AtifSource"]:
        """Return the source: it holds nothing open."""
        yield self

    @property
    def described(self) -> str:
        """The folder, without a login."""
        return without_credentials(self.location)

    def _files(self) -> dict[str, tuple[_File, datetime]]:
        """Return what is in each file, by its path below the folder, with when it was changed."""
        with _translating("listing", self.described):
            filesystem, root = fsspec.core.url_to_fs(self.location)
            filesystem.invalidate_cache()
            if not filesystem.isdir(root):
                raise SourceError(
                    f"There is no folder {self.described}: is the disk or bucket there, and the place in"
                    f" TRAJECTORY_SOURCES ({self.name}) right? What was captured from it stays as it is."
                )
            found = filesystem.find(root, detail=True)
        files = {}
        for name in sorted(found):
            is_asked_for = name.endswith(SUFFIX) and posixpath.basename(name) not in SECRETS
            if is_asked_for and found[name]["type"] == "file":
                signature = json.dumps(found[name], sort_keys=True, default=str)
                path = posixpath.relpath(name, root)
                with _translating("reading", f"{self.described}/{path}"):
                    file = _file(self.location, name, signature)
                files[path] = (file, _modified_at(found[name]))
        return files

    def _read(self, path: str, file: _File, part: _Part, continued: str | None) -> RunRows:
        with _translating("reading", f"{self.described}/{path}"):
            filesystem, root = fsspec.core.url_to_fs(self.location)
            content = filesystem.cat_file(posixpath.join(root, path))
        if hashlib.sha256(content).hexdigest() != file.digest:
            raise SourceError(f"{self.described}/{path} changed while it was read: materialize the partition again.")
        document = json.loads(content)
        for step in filter(None, part.inner.split("/")):
            document = document["subagent_trajectories"][int(step)]
        return _rows(f"{path}#{part.inner}" if part.inner else path, document, continued)


@dataclass(frozen=True)
class _Continued:
    """Which file each continues.

    Attributes:
        named: what files say of those that continue them.
        unreadable_in: folders of files that cannot be read: these may say more.
    """

    named: Mapping[str, str]
    unreadable_in: frozenset[str]

    @classmethod
    def among(cls, files: Mapping[str, _File]) -> "_Continued":
        """Return what these files say, by their paths."""
        return cls(
            {
                posixpath.normpath(posixpath.join(posixpath.dirname(path), file.continued_by)): path
                for path, file in files.items()
                if file.continued_by
            },
            frozenset(posixpath.dirname(path) for path, file in files.items() if file.problem),
        )

    def by(self, path: str) -> str | None:
        """Return the file that this one continues, if any is known.

        Its own name may tell it, also where the other file is not there, or cannot be read.
        """
        if path in self.named:
            return self.named[path]
        if (match := _CONTINUATION.fullmatch(path)) is None:
            return None
        first, number = match["first"], int(match["number"])
        return f"{first}.json" if number == 1 else f"{first}.cont-{number - 1}.json"

    def is_unknown_now(self, path: str, file: _File) -> bool:
        """Return whether a file continues another, and only one that cannot be read may say which."""
        copies = any(part.copies for part in file.parts)
        return copies and self.by(path) is None and posixpath.dirname(path) in self.unreadable_in


@contextmanager
def _translating(doing: str, place: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        # Each store has errors of its own.
        reason = without_credentials(str(error)) if "://" in str(error) else str(error)
        raise SourceError(
            f"{doing.capitalize()} {place} failed ({type(error).__name__}: {reason}). Check that this user or these"
            " credentials may do that there."
        ) from None


def _modified_at(info: Mapping[str, Any]) -> datetime:
    """Return when a file was changed, as its store says; the year 1970 where it says nothing."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if (moment := utc_time(value)) is not None:
            return moment
    return datetime.fromtimestamp(0, UTC)


@lru_cache(maxsize=_FILES_KEPT)
def _file(location: str, name: str, _: str) -> _File:
    """Read a file; it is not read again while its store says that it is the same."""
    filesystem, _root = fsspec.core.url_to_fs(location)
    content = filesystem.cat_file(name)
    digest, size = hashlib.sha256(content).hexdigest(), len(content)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return _File(digest, size, problem=f"is no JSON: being written, or cut off ({type(error).__name__}: {error})")
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith(_PREFIX):
        return _File(digest, size, is_other=True)
    if version not in VERSIONS:
        return _File(digest, size, problem=f"is {version}: {', '.join(VERSIONS)} can be read")
    unknown: set[str] = set()
    parts: list[_Part] = []
    try:
        _look(document, "", parts, unknown)
    except _NotAtifError as error:
        return _File(digest, size, problem=str(error))
    except Exception as error:
        # One file must not keep the others from being read, whatever it holds.
        return _File(digest, size, problem=f"cannot be read: {describe_defect(error)}")
    reference = document.get("continued_trajectory_ref")
    return _File(digest, size, tuple(parts), reference if isinstance(reference, str) else None, frozenset(unknown))


class _NotAtifError(Exception):
    """What in a file is not as ATIF says."""


def _look(document: Any, inner: str, parts: list[_Part], unknown: set[str]) -> None:
    """Check a trajectory as far as rows are made of it, and note its parts and the fields that are not known."""
    place = f"subagent_trajectories {inner}: " if inner else ""
    steps = _required(document, "steps", list, place)
    agent = _required(document, "agent", dict, place)
    name = _required(agent, "name", str, f"{place}agent.")
    unknown.update(f"trajectory.{each}" for each in document.keys() - _ROOT_FIELDS)
    for number, step in enumerate(steps, 1):
        at = f"{place}step {number}: "
        if _required(step, "source", str, at) not in _ROLES:
            raise _NotAtifError(f"{at}source is {step['source']!r}")
        if not isinstance(step.get("message"), str | list):
            raise _NotAtifError(f"{at}message is neither text nor a list of parts")
        for call in _list(step, "tool_calls", at):
            _required(call, "tool_call_id", str, f"{at}tool_calls.")
            _required(call, "function_name", str, f"{at}tool_calls.")
        observation = step.get("observation")
        if observation is not None:
            for result in _list(observation, "results", f"{at}observation."):
                if not isinstance(result, dict):
                    raise _NotAtifError(f"{at}observation.results holds what is no object")
        unknown.update(f"step.{each}" for each in step.keys() - _STEP_FIELDS)
    parts.append(_Part(inner, _last_time(steps), name, any(step.get("is_copied_context") for step in steps)))
    for number, sub in enumerate(_list(document, "subagent_trajectories", place)):
        _look(sub, f"{inner}/{number}".lstrip("/"), parts, unknown)


def _required(value: Any, name: str, kind: type, place: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise _NotAtifError(f"{place}{name} is missing, or no {kind.__name__}")
    return value[name]


def _list(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, dict):
        raise _NotAtifError(f"{place}is no object")
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _NotAtifError(f"{place}{name} is no list")
    return found


def _last_time(steps: list[Row]) -> datetime | None:
    own = (utc_time(step.get("timestamp")) for step in reversed(steps) if not step.get("is_copied_context"))
    return next(filter(None, own), None)


def _rows(native_id: str, document: Row, continued: str | None) -> RunRows:
    agent, session = document["agent"], document.get("session_id")
    common = {"agent_id": agent["name"], "conversation_id": session if isinstance(session, str) else None}
    # Short, because a judge cites them; and unlike those of a run that this one continues, which it is shown too.
    short, of_continued = _short_id(native_id), _short_id(continued or native_id)
    steps: list[Row] = []
    foreign: list[Row] = []
    messages: list[Row] = []
    for number, step in enumerate(document["steps"], 1):
        at = utc_time(step.get("timestamp"))
        step_id: str | None = None
        if step.get("is_copied_context"):
            step_id = f"{of_continued}-copied-{number}"
            foreign.append({"id": step_id, "run_id": continued, "created_at": at})
        elif step["source"] == "agent" and step.get("llm_call_count") != 0:
            step_id = f"{short}-{number}"
            steps.append({**_step(step, agent), "id": step_id, "agent_id": agent["name"], "created_at": at})
        for row in _messages(step, agent):
            row["id"] = f"{short}-{number}{row.pop('suffix', '')}"
            messages.append({**row, **common, "step_id": step_id, "created_at": at})
    _step_of_first(messages, steps)
    extra = object_of(document.get("extra"))
    status, stop_reason = extra.get("status"), extra.get("stop_reason")
    own = [step for step in document["steps"] if not step.get("is_copied_context")]
    known = status in TERMINAL_STATUSES
    rest = {name: document.get(name) for name in ("schema_version", "trajectory_id", "notes", "final_metrics", "extra")}
    return RunRows(
        run={
            "id": native_id,
            # Written by this pipeline's own export; nothing else says how a run ended.
            "status": status if known else "unknown",
            "stop_reason": stop_reason if known and isinstance(stop_reason, str) else None,
            "created_at": next(filter(None, (utc_time(step.get("timestamp")) for step in own)), None),
            "completed_at": naive(_last_time(own)),
            **common,
            "metadata_": json_text({"atif": {**rest, "agent": {**agent, "tool_definitions": None}}}),
        },
        steps=steps,
        foreign_steps=foreign,
        messages=messages,
        agent={"id": agent["name"], "name": agent["name"]},
        tools=json_text(agent["tool_definitions"]) if agent.get("tool_definitions") is not None else None,
        context_source="provider_trace",
    )


def _short_id(native_id: str) -> str:
    return hashlib.sha256(native_id.encode("utf-8", "backslashreplace")).hexdigest()[:6]


def _step_of_first(messages: list[Row], steps: list[Row]) -> None:
    """Give what came before the first answer to its step, as Letta does."""
    first = steps[0]["id"] if steps else None
    for message in messages:
        if message["step_id"] == first:
            return
        if message["step_id"] is None:
            message["step_id"] = first


def _step(step: Row, agent: Row) -> Row:
    metrics = object_of(step.get("metrics"))
    extra = object_of(metrics.get("extra"))
    prompt, completion = whole(metrics.get("prompt_tokens")), whole(metrics.get("completion_tokens"))
    model = step.get("model_name") or agent.get("model_name")
    return {
        "model": model if isinstance(model, str) else None,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": None if prompt is None or completion is None else prompt + completion,
        "cached_input_tokens": whole(metrics.get("cached_tokens")),
        "reasoning_tokens": whole(extra.get("reasoning_tokens")),
    }


def _messages(step: Row, agent: Row) -> Iterator[Row]:
    reasoning = step.get("reasoning_content")
    content = [reasoning_part(reasoning)] if isinstance(reasoning, str) and reasoning else []
    calls = [
        tool_call(call["tool_call_id"], call["function_name"], call.get("arguments", {}))
        for call in step.get("tool_calls") or ()
    ]
    model = step.get("model_name") or agent.get("model_name")
    observation = step.get("observation") or {}
    results = observation.get("results") or []
    # A system step may hold results alone.
    if step["message"] or calls or content or not results:
        yield {
            "role": _ROLES[step["source"]],
            "content": json_text([*content, *_parts(step["message"])]),
            "tool_calls": json_text(calls),
            "tool_returns": "[]",
            "tool_call_id": calls[0]["id"] if calls else None,
            "model": model if step["source"] == "agent" and isinstance(model, str) else None,
        }
    if results:
        names = {call["id"]: call["function"]["name"] for call in calls}
        first = results[0].get("source_call_id")
        yield {
            "role": "tool",
            "content": json_text([part for result in results for part in _parts(result.get("content"))]),
            "tool_calls": "[]",
            "tool_returns": json_text(list(map(_return, results))),
            "tool_call_id": first if isinstance(first, str) else None,
            "name": names.get(first),
            "suffix": "-results",
        }


def _return(result: Row) -> Row:
    extra = object_of(result.get("extra"))
    status, texts = extra.get("status"), [part["text"] for part in _parts(result.get("content")) if part.get("text")]
    more = {name: value for name, value in result.items() if name not in ("source_call_id", "content") and value}
    known = status if status in ("success", "error") else None
    return tool_return(result.get("source_call_id"), "\n".join(texts) if texts else None, known, **more)


def _parts(content: Any) -> list[Row]:
    if isinstance(content, str):
        return [text_part(content)] if content else []
    return [part if isinstance(part, dict) else {"type": None, "value": part} for part in content or ()]
