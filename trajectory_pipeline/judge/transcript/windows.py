"""What the judge is shown: a trajectory in one prompt where it fits, in windows where it does not.

Belongs here: how much is shown of each piece, and which blocks go into which prompt. Does not belong here: what a
block looks like (``blocks``), and the rules that the judge is given (``prompt``).

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
from trajectory_pipeline.judge.transcript.truncate import collapse_whitespace

TRUNCATION_STEPS = ((20_000, 1), (8_000, 1), (3_000, 1), (8_000, 8), (3_000, 8), (1_000, 16), (300, 32))
"""Characters that one piece of text may keep, and the windows that there may be then; the first that fits is taken."""
MAX_WINDOWS = TRUNCATION_STEPS[-1][1]
_CARRIED_SHARE = 8
"""Each task that is carried along has at most this part of a window's room."""
_NOTES = 200
"""Bytes for what is said at a window's margin."""
_LEAST_ROOM = 1_000


@dataclass(frozen=True)
class Window:
    """What one prompt shows.

    Attributes:
        number: from 1.
        of: how many there are.
        blocks: what it shows of its own.
        carried: the task, where it stands in another window.
    """

    number: int
    of: int
    blocks: tuple[TranscriptMessage, ...]
    carried: tuple[TranscriptMessage, ...] = ()

    @property
    def text(self) -> str:
        """As it is shown."""
        own = [block.text for block in self.blocks]
        if self.of == 1:
            return "\n".join(own)
        carried = [f"[… part {self.number} of {self.of} of a long transcript …]"]
        if self.carried:
            carried += ["[… the task, from an earlier part …]", *(block.text for block in self.carried)]
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
    def blocks(self) -> tuple[TranscriptMessage, ...]:
        """What is shown, in order, each once."""
        return tuple(block for window in self.windows for block in window.blocks)

    @cached_property
    def cited(self) -> Mapping[str, tuple[TranscriptMessage, ...]]:
        """By the id that a citation names: the blocks that were shown under it."""
        found: dict[str, tuple[TranscriptMessage, ...]] = {}
        for block in self.blocks:
            found[block.cited_as] = (*found.get(block.cited_as, ()), block)
        return found

    @cached_property
    def steps(self) -> frozenset[str]:
        """Ids of the steps that are named."""
        return frozenset(block.step for block in self.blocks if block.step != "-")

    @property
    def coverage(self) -> float:
        """Share of the content's characters that is shown, 0–1."""
        there = sum(block.exists for block in self.blocks)
        return sum(block.included for block in self.blocks) / there if there else 1.0


def render_transcript(
    documents: Sequence[Mapping[str, Any]], room: int, redaction: Callable[[str], str]
) -> RenderedTranscript:
    """Return the transcript of a chain of runs, as one task.

    Args:
        documents: of the runs that are shown, the earliest first, the judged one last.
        room: UTF-8 bytes that the transcript, or a window of it, may have in one prompt.
        redaction: what is replaced before anything is shown.
    """
    redacted: dict[str, str] = {}

    def redact(text: str) -> str:
        if text not in redacted:
            redacted[text] = redaction(text)
        return redacted[text]

    limit = 0
    blocks: list[TranscriptMessage] = []
    for rung, most in TRUNCATION_STEPS:
        if rung != limit:
            limit, blocks = rung, transcript_messages(documents, rung, redact)
        if most == 1:
            whole = Window(1, 1, tuple(blocks))
            if _size(whole.text) <= room:
                return RenderedTranscript((whole,), limit)
        elif room >= _LEAST_ROOM and len(windows := _windows(blocks, room)) <= most:
            return RenderedTranscript(windows, limit)
    return RenderedTranscript((), limit)


def tasks_of(blocks: Sequence[TranscriptMessage]) -> list[TranscriptMessage]:
    """Return the task of the judged run, and before it that of the run that the chain begins with."""
    tasks = [block for block in blocks if block.task]
    return [*tasks[:1], *tasks[-1:]] if len(tasks) > 1 else tasks


def _windows(blocks: Sequence[TranscriptMessage], room: int) -> tuple[Window, ...]:
    tasks = tasks_of(blocks)
    carried = [_fitted(block, room // _CARRIED_SHARE) for block in tasks]
    own_room = room - sum(_size(block.text) for block in carried) - _NOTES
    parts: list[list[TranscriptMessage]] = [[]]
    used = 0
    for group in _steps(blocks):
        size = sum(_size(block.text) for block in group)
        if used and used + size > own_room and size <= own_room:
            parts.append([])
            used = 0
        for block in (_fitted(block, own_room) for block in group):
            size = _size(block.text)
            if used and used + size > own_room:
                parts.append([])
                used = 0
            parts[-1].append(block)
            used += size
    return tuple(
        Window(number, len(parts), tuple(part), tuple(_not_in(part, carried)))
        for number, part in enumerate(parts, start=1)
    )


def _steps(blocks: Iterable[TranscriptMessage]) -> list[list[TranscriptMessage]]:
    return [list(group) for _, group in groupby(blocks, key=lambda block: (block.run, block.step))]


def _not_in(part: Sequence[TranscriptMessage], carried: Sequence[TranscriptMessage]) -> list[TranscriptMessage]:
    there = {block.position for block in part if block.task}
    return [block for block in carried if block.position not in there]


def _size(text: str) -> int:
    return len(text.encode()) + 1


def _fitted(block: TranscriptMessage, room: int) -> TranscriptMessage:
    """Return a block that is no larger than there is room."""
    if _size(block.text) <= room:
        return block
    owners = [(passage, line) for passage in block.passages for line in passage.lines]
    fixed = _size(block.header) + (_size(block.note) if block.note else 0)
    kept = collapse_whitespace([line for _, line in owners], room - fixed - _NOTES)
    passages: list[Passage] = []
    numbers = [number for number, passage in enumerate(block.passages) for _ in passage.lines]
    for owner, lines in groupby(kept, key=lambda item: numbers[item[0]]):
        passages.append(replace(block.passages[owner], lines=tuple(line for _, line in lines)))
    before = sum(len(line.text) for _, line in owners if line.verbatim)
    after = sum(len(line.text) for _, line in kept if line.verbatim)
    return replace(
        block, passages=tuple(passages), included=block.included * after // before if before else block.included
    )
