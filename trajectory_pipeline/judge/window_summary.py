"""What the parts of a long transcript were found to show, as a transcript of excerpts for the last question.

Belongs here: which findings hold, and the form in which they are shown. Does not belong here: the questions
(``deliberate``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trajectory_pipeline.judge.citations import CitationChecker, normalize_text
from trajectory_pipeline.judge.response_schema import PartFindings
from trajectory_pipeline.judge.transcript.messages import TranscriptMessage
from trajectory_pipeline.judge.transcript.truncate import Line
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, tasks_of

_LENGTHS = (600, 300, 150, 60)
"""Characters that a quote and a reader's word may have; the first by which all of it fits is taken."""
_MARGIN = "[… "


@dataclass(frozen=True)
class WindowSummary:
    """A transcript of excerpts.

    Attributes:
        text: as the judge is shown it.
        invalid: citations of findings that did not hold, and are not shown.
        left_out: findings for which there was no room.
    """

    text: str
    invalid: int
    left_out: int


def summarize_window(rendered: RenderedTranscript, found: Sequence[PartFindings], room: int) -> WindowSummary:
    """Return what the parts were found to show.

    Args:
        rendered: what the parts showed.
        found: their findings, in the order of the parts.
        room: UTF-8 bytes that the text may have.
    """
    evidence = CitationChecker(rendered)
    quotes: dict[str, list[str]] = {}
    invalid = 0
    for part in found:
        for citation in (citation for finding in part.findings for citation in finding.evidence):
            if evidence.checked(citation, "failure")["valid"]:
                quotes.setdefault(citation.message_id, []).append(normalize_text(citation.quote))
            else:
                invalid += 1
    fewest = max((len(listed) for listed in quotes.values()), default=0)
    for length in _LENGTHS:
        text = _text(rendered, found, quotes, length)
        if len(text.encode()) <= room:
            return WindowSummary(text, invalid, 0)
    for most in range(fewest, -1, -1):
        kept = {name: listed[:most] for name, listed in quotes.items()}
        text = _text(rendered, (), kept, _LENGTHS[-1])
        if len(text.encode()) <= room or most == 0:
            break
    left_out = sum(len(listed) for listed in quotes.values()) - sum(len(listed) for listed in kept.values())
    return WindowSummary(text, invalid, left_out)


def _text(
    rendered: RenderedTranscript, found: Sequence[PartFindings], quotes: Mapping[str, Sequence[str]], length: int
) -> str:
    lines: list[str] = []
    tasks = {id(block) for block in tasks_of(rendered.blocks)}
    for window in rendered.windows:
        if window.number <= len(found):
            part = found[window.number - 1]
            words = [part.account, *(finding.finding for finding in part.findings)]
            lines += [f"{_MARGIN}part {window.number}: {_word(word, length)} …]" for word in words]
        for block in window.blocks:
            if id(block) in tasks or block.cited_as in quotes:
                shown = _excerpt(block, quotes.get(block.cited_as, ()), length, task=id(block) in tasks)
                if shown is not None:
                    lines.append(shown.text)
    last = rendered.blocks[-1].run if rendered.blocks else "-"
    return "\n".join([*lines, f"{_MARGIN}the run that is judged is {last} …]"])


def _excerpt(block: TranscriptMessage, quotes: Sequence[str], length: int, *, task: bool) -> TranscriptMessage | None:
    """Return a block with the lines of it that were quoted; of the task, its beginning too."""
    passages = []
    left = list(dict.fromkeys(quotes))
    for passage in block.passages:
        stretches = [normalize_text(stretch) for stretch in passage.stretches]
        here = [quote for quote in left if any(quote in stretch for stretch in stretches)]
        left = [quote for quote in left if quote not in here]
        if not here and not task:
            continue
        lines = list(passage.lines[:1]) if _is_marked(passage.lines[0].text) or task else []
        lines += [
            Line(quote, verbatim=True) for quote in here if not lines or quote not in normalize_text(lines[0].text)
        ]
        passages.append(replace(passage, lines=tuple(replace(line, text=_cut(line.text, length)) for line in lines)))
    return replace(block, passages=tuple(passages), note=None) if passages else None


def _is_marked(line: str) -> bool:
    return line.startswith(("-> call", "<- return", "?? approval", "(reasoning)", "!! "))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} [… {len(text) - length} characters left out …]"


def _word(word: str, length: int) -> str:
    # A reader's word is of a model that has read the transcript: it may not look like a line of ours.
    return _cut(" ".join(word.split()), length).replace("…]", "…)")
