"""What the judge is shown: a trajectory in one prompt where it fits, in windows where it does not.

Nothing overflows, by construction: text is shortened by the first of ``LADDER`` by which all of it fits; a window ends
where a step ends; a step that is larger than a window is divided between its messages, and one message that is larger
than a window is shortened to it. The task, as a person stated it, stands at the head of every window.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from trajectory_pipeline.judge.transcript.messages import Passage, TranscriptMessage, transcript_messages
from trajectory_pipeline.judge.transcript.truncate import shorten_to_bytes

TRUNCATION_STEPS = ((20_000, 1), (8_000, 1), (3_000, 1), (8_000, 8), (3_000, 8), (1_000, 16), (300, 32))
"""Characters that one piece of text may keep, and the most windows then; the first step that fits is taken."""
MAX_WINDOWS = TRUNCATION_STEPS[-1][1]
_CARRIED_SHARE = 8
"""Each carried task has at most this part of a window."""
_NOTICE_BYTES = 200
"""Bytes for what is said at a window's margin."""
_MIN_WINDOW_BYTES = 1_000


@dataclass(frozen=True)
class Window:
    """What one prompt shows.

    Attributes:
        number: from 1.
        window_count: of the transcript.
        messages: what it shows of its own.
        carried: the task, where it stands in another window.
    """

    number: int
    window_count: int
    messages: tuple[TranscriptMessage, ...]
    carried_tasks: tuple[TranscriptMessage, ...] = ()

    @property
    def text(self) -> str:
        """As it is shown."""
        own = [message.text for message in self.messages]
        if self.window_count == 1:
            return "\n".join(own)
        carried = [f"[… part {self.number} of {self.window_count} of a long transcript …]"]
        if self.carried_tasks:
            carried += ["[… the task, from an earlier part …]", *(message.text for message in self.carried_tasks)]
            carried += ["[… messages between stand in other parts …]"]
        return "\n".join([*carried, *own])


@dataclass(frozen=True)
class RenderedTranscript:
    """A transcript as it is shown.

    Attributes:
        windows: the prompts that show it; none where even the shortest form takes more than ``MOST_WINDOWS``.
        limit: characters that one piece of text kept.
    """

    windows: tuple[Window, ...]
    limit: int

    @property
    def fits(self) -> bool:
        """Whether it can be shown at all."""
        return bool(self.windows)

    @property
    def text(self) -> str:
        """All that is shown, window by window."""
        return "\n".join(window.text for window in self.windows)

    @cached_property
    def messages(self) -> tuple[TranscriptMessage, ...]:
        """What is shown, in order, each once."""
        return tuple(message for window in self.windows for message in window.messages)

    @cached_property
    def by_cited_id(self) -> Mapping[str, tuple[TranscriptMessage, ...]]:
        """By the id that a citation names: the messages that were shown under it."""
        found: dict[str, tuple[TranscriptMessage, ...]] = {}
        for message in self.messages:
            found[message.cited_as] = (*found.get(message.cited_as, ()), message)
        return found

    @cached_property
    def step_ids(self) -> frozenset[str]:
        """Ids of the steps that are named."""
        return frozenset(message.step for message in self.messages if message.step != "-")

    @property
    def coverage(self) -> float:
        """Share of the content's characters that is shown, 0–1."""
        total = sum(message.content_characters for message in self.messages)
        return sum(message.shown_characters for message in self.messages) / total if total else 1.0


def render_transcript(
    documents: Sequence[Mapping[str, Any]], max_bytes: int, redaction: Callable[[str], str]
) -> RenderedTranscript:
    """Return the transcript of a chain of runs, as one task.

    Args:
        documents: of the runs that are shown, the earliest first, the judged one last.
        max_bytes: UTF-8 bytes that the transcript, or a window of it, may have in one prompt.
        redaction: what is replaced before anything is shown.
    """
    redacted: dict[str, str] = {}

    def redact(text: str) -> str:
        if text not in redacted:
            redacted[text] = redaction(text)
        return redacted[text]

    limit = 0
    messages: list[TranscriptMessage] = []
    for rung, most in TRUNCATION_STEPS:
        if rung != limit:
            limit, messages = rung, transcript_messages(documents, rung, redact)
        if most == 1:
            whole = Window(1, 1, tuple(messages))
            if _size(whole.text) <= max_bytes:
                return RenderedTranscript((whole,), limit)
        elif max_bytes >= _MIN_WINDOW_BYTES and len(windows := _windows(messages, max_bytes)) <= most:
            return RenderedTranscript(windows, limit)
    return RenderedTranscript((), limit)


def task_messages(messages: Sequence[TranscriptMessage]) -> list[TranscriptMessage]:
    """Return the task of the judged run, and before it that of the run that the chain begins with."""
    tasks = [message for message in messages if message.is_task]
    return [*tasks[:1], *tasks[-1:]] if len(tasks) > 1 else tasks


def _windows(messages: Sequence[TranscriptMessage], max_bytes: int) -> tuple[Window, ...]:
    tasks = task_messages(messages)
    carried = [_fit(message, max_bytes // _CARRIED_SHARE) for message in tasks]
    own_bytes = max_bytes - sum(_size(message.text) for message in carried) - _NOTICE_BYTES
    parts: list[list[TranscriptMessage]] = [[]]
    used = 0
    for group in _group_by_step(messages):
        size = sum(_size(message.text) for message in group)
        if used and used + size > own_bytes and size <= own_bytes:
            parts.append([])
            used = 0
        for message in (_fit(message, own_bytes) for message in group):
            size = _size(message.text)
            if used and used + size > own_bytes:
                parts.append([])
                used = 0
            parts[-1].append(message)
            used += size
    return tuple(
        Window(number, len(parts), tuple(part), tuple(_carried_into(part, carried)))
        for number, part in enumerate(parts, start=1)
    )


def _group_by_step(messages: Iterable[TranscriptMessage]) -> list[list[TranscriptMessage]]:
    return [list(group) for _, group in groupby(messages, key=lambda message: (message.run, message.step))]


def _carried_into(part: Sequence[TranscriptMessage], carried: Sequence[TranscriptMessage]) -> list[TranscriptMessage]:
    total = {message.number for message in part if message.is_task}
    return [message for message in carried if message.number not in total]


def _size(text: str) -> int:
    return len(text.encode()) + 1


def _fit(message: TranscriptMessage, max_bytes: int) -> TranscriptMessage:
    """Return a message that has at most so many bytes."""
    if _size(message.text) <= max_bytes:
        return message
    owners = [(passage, line) for passage in message.passages for line in passage.lines]
    fixed = _size(message.header) + (_size(message.notice) if message.notice else 0)
    kept = shorten_to_bytes([line for _, line in owners], max_bytes - fixed - _NOTICE_BYTES)
    passages: list[Passage] = []
    numbers = [number for number, passage in enumerate(message.passages) for _ in passage.lines]
    for owner, lines in groupby(kept, key=lambda item: numbers[item[0]]):
        passages.append(replace(message.passages[owner], lines=tuple(line for _, line in lines)))
    before = sum(len(line.text) for _, line in owners if line.verbatim)
    after = sum(len(line.text) for _, line in kept if line.verbatim)
    return replace(
        message,
        passages=tuple(passages),
        shown_characters=message.shown_characters * after // before if before else message.shown_characters,
    )
