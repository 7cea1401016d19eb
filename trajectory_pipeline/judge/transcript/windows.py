"""What the judge is shown: a trajectory in one prompt where it fits, in windows where it does not.

Nothing overflows, by construction: text is shortened by the first of ``TRUNCATION_STEPS`` by which all of it fits. A
window ends where a step ends. A step that is larger than a window is divided between its messages, and a message that
is larger than a window is shortened to it. The task, as a person stated it, is at the head of every window.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from typing import Any

from trajectory_pipeline.judge.transcript.messages import TranscriptMessage, joined_text, transcript_messages
from trajectory_pipeline.judge.transcript.truncate import shorten_to_bytes

TRUNCATION_STEPS = ((20_000, 1), (8_000, 1), (3_000, 1), (8_000, 8), (3_000, 8), (1_000, 16), (300, 32))
"""Characters that one piece of text may keep, and the most windows then; the first step that fits is taken."""
MAX_WINDOWS = TRUNCATION_STEPS[-1][1]
_CARRIED_SHARE = 8
"""Each carried task has at most this part of a window."""
_NOTICE_BYTES = 200
"""Bytes for the notes at a window's head."""
_MIN_WINDOW_BYTES = 1_000


@dataclass(frozen=True)
class Window:
    """What one prompt shows: its own messages, and the task where that is in another window; numbered from 1."""

    number: int
    window_count: int
    messages: tuple[TranscriptMessage, ...]
    carried_tasks: tuple[TranscriptMessage, ...] = ()

    @property
    def text(self) -> str:
        """As it is shown."""
        lines = []
        if self.window_count > 1:
            lines += [f"[… part {self.number} of {self.window_count} of a long transcript …]"]
        if self.carried_tasks:
            lines += ["[… the task, from an earlier part …]", joined_text(self.carried_tasks)]
            lines += ["[… messages between stand in other parts …]"]
        return "\n".join([*lines, joined_text(self.messages)])


@dataclass(frozen=True)
class RenderedTranscript:
    """A transcript in windows, one a prompt; in none where even the shortest form takes more than ``MAX_WINDOWS``.

    ``share_read`` is the share of the prompts that the server read, as far as its token counts tell.
    """

    windows: tuple[Window, ...]
    share_read: float = 1.0

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
        """All messages that are shown, in order, each once."""
        return tuple(message for window in self.windows for message in window.messages)

    @cached_property
    def by_cited_id(self) -> Mapping[str, tuple[TranscriptMessage, ...]]:
        """The messages that were shown under each id that a citation may name."""
        found: dict[str, tuple[TranscriptMessage, ...]] = {}
        for message in self.messages:
            found[message.cited_as] = (*found.get(message.cited_as, ()), message)
        return found

    @cached_property
    def step_ids(self) -> Mapping[str, str]:
        """The steps that are named: short id → whole id."""
        return {message.step: message.step_id for message in self.messages if message.step != "-"}

    @property
    def coverage(self) -> float:
        """Share of the content's characters that the judge was shown and can have read, 0–1."""
        total = sum(message.content_characters for message in self.messages)
        shown = sum(message.shown_characters for message in self.messages) / total if total else 1.0
        return shown * self.share_read


def render_transcript(
    documents: Sequence[Mapping[str, Any]], max_bytes: int, redact: Callable[[str], str]
) -> RenderedTranscript:
    """Return the transcript of a chain of runs, the earliest first, the judged one last, as one task.

    In one prompt, the transcript or a window of it has at most ``max_bytes`` of UTF-8.
    """
    # The same texts are redacted at each step, and redacting takes longer than rendering.
    redact = cache(redact)
    limit = 0
    messages: list[TranscriptMessage] = []
    for step_limit, max_windows in TRUNCATION_STEPS:
        if step_limit != limit:
            limit, messages = step_limit, transcript_messages(documents, step_limit, redact)
        if max_windows == 1:
            whole = Window(1, 1, tuple(messages))
            if _size(whole.text) <= max_bytes:
                return RenderedTranscript((whole,))
        elif max_bytes >= _MIN_WINDOW_BYTES and len(windows := _windows(messages, max_bytes)) <= max_windows:
            return RenderedTranscript(windows)
    return RenderedTranscript(())


def task_messages(messages: Sequence[TranscriptMessage]) -> list[TranscriptMessage]:
    """Return the task of the first run of the chain, and that of the judged run where it is another."""
    tasks = [message for message in messages if message.is_task]
    return [*tasks[:1], *tasks[-1:]] if len(tasks) > 1 else tasks


def _windows(messages: Sequence[TranscriptMessage], max_bytes: int) -> tuple[Window, ...]:
    tasks = task_messages(messages)
    carried = [_fit(message, max_bytes // _CARRIED_SHARE) for message in tasks]
    own_bytes = max_bytes - sum(_size(message.text) for message in carried) - _NOTICE_BYTES
    parts: list[list[TranscriptMessage]] = [[]]
    used = 0
    for _, step in groupby(messages, key=lambda message: (message.run, message.step)):
        group = list(step)
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
    windows = []
    for number, part in enumerate(parts, start=1):
        own_tasks = {message.number for message in part if message.is_task}
        carried_tasks = tuple(message for message in carried if message.number not in own_tasks)
        windows.append(Window(number, len(parts), tuple(part), carried_tasks))
    return tuple(windows)


def _size(text: str) -> int:
    return len(text.encode()) + 1


def _fit(message: TranscriptMessage, max_bytes: int) -> TranscriptMessage:
    """Return a message, shortened where it has more than so many bytes."""
    if _size(message.text) <= max_bytes:
        return message
    lines = [line for passage in message.passages for line in passage.lines]
    fixed = _size(replace(message, passages=()).text)
    kept = shorten_to_bytes(lines, max_bytes - fixed - _NOTICE_BYTES)
    owners = [passage for passage in message.passages for _ in passage.lines]
    passages = tuple(
        replace(owners[part[0][0]], lines=tuple(line for _, line in part))
        for part in (list(group) for _, group in groupby(kept, key=lambda item: id(owners[item[0]])))
    )
    before = sum(len(line.text) for line in lines if line.verbatim)
    after = sum(len(line.text) for _, line in kept if line.verbatim)
    shown = message.shown_characters * after // before if before else message.shown_characters
    return replace(message, passages=passages, shown_characters=shown)
