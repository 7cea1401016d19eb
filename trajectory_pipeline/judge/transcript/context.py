"""Renders what the agent was told (instructions, tools, memory) and its earlier turns, to stand before the transcript.

It is context: what is in it shows nothing of what the judged run did, and has no id that a citation could name. Each
block stands between two lines with a marker that is made of its content and a key, so that its bytes are the same for
all runs of one agent and a provider's prefix cache serves them, and that nobody without the key can forge its end.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from trajectory_pipeline.budget.token_estimate import BYTES_PER_TOKEN
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.judge.transcript.truncate import Line, shorten_to_bytes
from trajectory_pipeline.lossless_json import as_text, exact_numbers, json_or_none, object_or_empty

_INSTRUCTIONS, _MEMORY, _TOOLS = 0.5, 0.375, 0.125
"""Shares of the bound, fixed: what one part does not use must not change the bytes of another."""
_PROMPT_SHARE = 4
"""Instructions, memory and tools together have at most this part of a prompt without its rules; earlier turns too."""
_LEAST_TRANSCRIPT_BYTES = 4_000
"""Of a prompt that the transcript has for itself: in a small one, context must not crowd it out."""
_TOOL_CHARACTERS = 120
_TURN_BYTES = 900
"""Of one request or answer in an earlier turn."""
_RUN_SHARE = 3
"""One earlier run has at most this part of their bound."""
_NOTICE_BYTES = 200
_MEMORY_TAG = re.compile(r"<(/?)(memory_\w+)>\s*")
"""A line of its own: Letta compiles memory into the system prompt, as ``<memory_blocks>`` and ``<memory_metadata>``."""
_VOLATILE = "<memory_metadata>"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
_SOURCES = {
    "provider_trace": "as sent with the run's first call",
    "at_capture": "as it stood when the run was captured, perhaps later than the run",
}
_SPEAKERS = {"user": "person", "agent": "other agent"}

Document = Mapping[str, Any]
StoredDocument = str | Document
"""A trajectory's document, or its JSON text, which is parsed where it is read: see ``parsed``."""


def parsed(document: StoredDocument) -> Document:
    """Return a document whose text may not have been parsed yet."""
    found: Document = exact_numbers(document) if isinstance(document, str) else document
    return found


@dataclass(frozen=True)
class AgentContext:
    """What an agent was told: a row of ``schema.raw.CONTEXT``."""

    system_prompt: str | None
    tools: str | None
    source: str | None


@dataclass(frozen=True)
class TaskContext:
    """What is known beside the runs of a task: what its agent was told, and its earlier turns, the earliest first."""

    agent: AgentContext | None = None
    earlier: Sequence[StoredDocument] = ()


NO_CONTEXT = TaskContext()


@dataclass(frozen=True)
class ContextLimits:
    """How much is shown, in estimated tokens; 0 shows none of it. ``prompt_bytes`` has a prompt without its rules."""

    instructions_tokens: int
    earlier_turns_tokens: int
    prompt_bytes: int

    @property
    def _most_bytes(self) -> int:
        return max(self.prompt_bytes - _LEAST_TRANSCRIPT_BYTES, 0) // _PROMPT_SHARE

    @property
    def told_bytes(self) -> int:
        """Most bytes of instructions, memory and tools."""
        return min(self.instructions_tokens * BYTES_PER_TOKEN, self._most_bytes)

    @property
    def earlier_bytes(self) -> int:
        """Most bytes of earlier turns."""
        return min(self.earlier_turns_tokens * BYTES_PER_TOKEN, self._most_bytes)


@dataclass(frozen=True)
class RenderedContext:
    """What stands before the transcript; ``coverage`` says how much there is of each part, and was shown."""

    told: str = ""
    earlier: str = ""
    coverage: Mapping[str, Any] = field(default_factory=dict)
    key: bytes = field(default=b"", repr=False, compare=False)

    @property
    def text(self) -> str:
        """As it is shown; empty where there is nothing."""
        # The instructions come first, and the marker must not change with memory, which changes more often.
        told = _framed("TOLD", self.told, self.told.split("\n\n", 1)[0], self.key)
        return told + _framed("EARLIER", self.earlier, self.earlier, self.key)

    @property
    def bodies(self) -> list[str]:
        """What is shown, without markers."""
        return [body for body in (self.told, self.earlier) if body]


def render_context(context: TaskContext, limits: ContextLimits, redact: Redactor) -> RenderedContext:
    """Return what is shown of a context, redacted, each text before it is shortened.

    Raises:
        RedactionTimeoutError: the redactor's deadline has passed.
    """
    told, coverage = ("", {}) if context.agent is None else _told(context.agent, limits.told_bytes, redact)
    earlier, counts = _earlier([parsed(one) for one in context.earlier], limits.earlier_bytes, redact)
    return RenderedContext(told, earlier, {**coverage, **counts}, redact.key)


def _framed(name: str, body: str, marked: str, key: bytes) -> str:
    if not body:
        return ""
    marker = hmac.new(key, f"{name}\0{marked}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
    return f"<<<{name} {marker}\n{body}\n{name} {marker}>>>\n"


@lru_cache(maxsize=32)
def _told(agent: AgentContext, max_bytes: int, redact: Redactor) -> tuple[str, dict[str, Any]]:
    """Return instructions, tools and memory, what changes most often last; the runs of an agent share one."""
    instructions, memory = _split(agent.system_prompt or "")
    parts = []
    coverage: dict[str, Any] = {"source": agent.source}
    for name, title, text, share in (
        ("instructions", "Instructions", instructions, _INSTRUCTIONS),
        ("tools", "Tools that it could call", _tools(agent.tools), _TOOLS),
        ("memory", "Memory", memory, _MEMORY),
    ):
        lines, shown = _shortened(redact(text), int(max_bytes * share))
        coverage[name] = {"characters": len(text), "shown": min(shown, len(text))}
        if shown:
            parts.append("\n".join([f"{title}:", *(f"  {line}" for line in lines)]))
    if not parts:
        return "", coverage
    head = f"What the agent was told, {_SOURCES.get(agent.source or '', 'at an unknown time')}."
    return "\n\n".join([f"{head}\n{parts[0]}", *parts[1:]]), coverage


def _split(system_prompt: str) -> tuple[str, str]:
    """Return the instructions and the memory of a system prompt; what tells the time goes last."""
    lines = system_prompt.splitlines()
    tags = {at: found for at, line in enumerate(lines) if (found := _MEMORY_TAG.fullmatch(line))}
    # The last end of a section: memory may quote an earlier one.
    ends = {found[2]: at for at, found in tags.items() if found[1]}
    instructions: list[str] = []
    sections: list[list[str]] = []
    at = 0
    while at < len(lines):
        opening = tags.get(at)
        end = ends.get(opening[2], -1) if opening and not opening[1] else -1
        if end > at:
            sections.append(lines[at : end + 1])
            at = end + 1
        else:
            instructions.append(lines[at])
            at += 1
    sections.sort(key=lambda section: section[0].startswith(_VOLATILE))
    return "\n".join(instructions).strip(), "\n".join(line for section in sections for line in section)


def _tools(tools: str | None) -> str:
    """Return the names of tools, each with the first sentence of its description, sorted: their order may vary."""
    listed = json_or_none(tools or "[]")
    lines = []
    for tool in listed if isinstance(listed, list) else []:
        function = object_or_empty(object_or_empty(tool).get("function")) or object_or_empty(tool)
        if isinstance(function.get("name"), str):
            description = _SENTENCE_END.split(as_text(function.get("description") or "").strip(), maxsplit=1)[0]
            lines.append(f"{function['name']}: {description[:_TOOL_CHARACTERS]}".rstrip(": "))
    return "\n".join(sorted(lines))


def _shortened(text: str, max_bytes: int) -> tuple[list[str], int]:
    """Return the lines of a text, head and tail where it is too long, and how many of its characters they hold."""
    # Each line is indented: see ``Line``, whose bytes are counted by ``shorten_to_bytes``.
    lines = [Line(line, verbatim=True) for line in text.splitlines()]
    kept = [line for _, line in shorten_to_bytes(lines, max_bytes)]
    if len(kept) == len(lines) and all(line.verbatim for line in kept):
        return [line.text for line in kept], len(text)
    shown = sum(len(line.text) + 1 for line in kept if line.verbatim)
    return ([line.text for line in kept] if shown else []), shown


def _earlier(documents: Sequence[Document], max_bytes: int, redact: Callable[[str], str]) -> tuple[str, dict[str, Any]]:
    """Return the latest runs that fit, in order, as requests, tools by name, and final answers."""
    if not documents:
        return "", {}
    shown: list[str] = []
    left = max_bytes - _NOTICE_BYTES
    for document in reversed(documents):
        lines = [Line(line, verbatim=True) for line in _run_lines(document, redact)]
        text = "\n".join(line.text for _, line in shorten_to_bytes(lines, max_bytes // _RUN_SHARE))
        left -= len(text.encode("utf-8", "surrogatepass")) + 1
        if left < 0:
            break
        shown.append(text)
    counts = {"earlier_runs": {"count": len(documents), "shown": len(shown)}}
    if not shown:
        return "", counts
    omitted = len(documents) - len(shown)
    before = f"[… {omitted} earlier ones left out …]\n" if omitted else ""
    return f"Earlier runs of the same conversation, shortened.\n\n{before}" + "\n".join(shown[::-1]), counts


def _run_lines(document: Document, redact: Callable[[str], str]) -> Iterator[str]:
    ended = document["metadata"].get("end_time") or document["metadata"].get("start_time")
    yield f"Run that ended {_minute(ended)}:"
    messages = [m for turn in document["turns"] for m in turn["messages"] if not m.get("is_deleted")]
    for message in messages:
        speaker = _SPEAKERS.get(str(message["kind"])) if message["role"] == "user" else None
        if speaker is not None:
            yield from _spoken_lines(speaker, _text_of(message), redact)
        for approval in message.get("approvals", ()):
            if isinstance(approval.get("approve"), bool):
                decision = "approved a call" if approval["approve"] else "denied a call"
                yield from _spoken_lines(f"person {decision}", as_text(approval.get("reason") or ""), redact)
    names = [as_text(object_or_empty(call.get("function")).get("name")) for m in messages for call in _calls(m)]
    if names:
        yield from _spoken_lines("agent called", ", ".join(dict.fromkeys(names)), redact)
    answers = [text for m in messages if (text := m.get("assistant_text"))]
    if answers:
        yield from _spoken_lines("agent", as_text(answers[-1]), redact)


def _calls(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [object_or_empty(call) for call in message.get("tool_calls", ())]


def _spoken_lines(who: str, text: str, redact: Callable[[str], str]) -> Iterator[str]:
    lines, _ = _shortened(redact(text), _TURN_BYTES)
    yield f"  {who}: {lines[0]}" if lines else f"  {who}"
    yield from (f"    {line}" for line in lines[1:])


def _text_of(message: Mapping[str, Any]) -> str:
    parts = (object_or_empty(part) for part in message["content"])
    return "\n".join(
        as_text(part["text"]) if part.get("type") == "text" else "(an image)"
        for part in parts
        if part.get("type") in ("text", "image")
    )


def _minute(value: Any) -> str:
    try:
        return datetime.fromisoformat(value).strftime("%Y-%m-%d %H:%M UTC")
    except (TypeError, ValueError):
        return "at an unknown time"
