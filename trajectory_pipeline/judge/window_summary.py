"""Summarizes the findings on the windows of a long transcript as excerpts, for the final question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from trajectory_pipeline.judge.citations import CitationChecker, normalize_text
from trajectory_pipeline.judge.response_schema import PartFindings
from trajectory_pipeline.judge.transcript.messages import TranscriptMessage
from trajectory_pipeline.judge.transcript.truncate import Line, cut
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, task_messages

_QUOTE_LENGTHS = (600, 300, 150, 60)
"""Characters that a quote and a reader's text may have; the first by which all of it fits is taken."""
_MARGIN = "[… "
_MARKS = ("-> call", "<- return", "?? approval", "(reasoning)", "!! ")


@dataclass(frozen=True)
class WindowSummary:
    """The excerpts as text; the counts are of citations that are not shown: invalid, or for lack of space."""

    text: str
    invalid_citations: int
    omitted_quotes: int


def summarize_windows(rendered: RenderedTranscript, found: Sequence[PartFindings], max_bytes: int) -> WindowSummary:
    """Return what the parts, in their order, were found to show, in at most so many UTF-8 bytes."""
    citations = CitationChecker(rendered)
    quotes: dict[str, list[str]] = {}
    invalid = 0
    for citation in (citation for part in found for finding in part.findings for citation in finding.evidence):
        if citations.check(citation, "failure")["valid"]:
            quotes.setdefault(citation.message_id, []).append(normalize_text(citation.quote))
        else:
            invalid += 1
    most_quotes = max((len(listed) for listed in quotes.values()), default=0)
    for length in _QUOTE_LENGTHS:
        text = _text(rendered, found, quotes, length)
        if len(text.encode()) <= max_bytes:
            return WindowSummary(text, invalid, 0)
    for limit in range(most_quotes, -1, -1):
        text = _text(rendered, (), {name: listed[:limit] for name, listed in quotes.items()}, _QUOTE_LENGTHS[-1])
        if len(text.encode()) <= max_bytes:
            break
    return WindowSummary(text, invalid, sum(max(len(listed) - limit, 0) for listed in quotes.values()))


def _text(
    rendered: RenderedTranscript, found: Sequence[PartFindings], quotes: Mapping[str, Sequence[str]], length: int
) -> str:
    lines: list[str] = []
    tasks = {id(message) for message in task_messages(rendered.messages)}
    for window, part in zip_longest(rendered.windows, found):
        if part is not None:
            texts = [part.account, *(finding.finding for finding in part.findings)]
            lines += [f"{_MARGIN}part {window.number}: {_reader_line(text, length)} …]" for text in texts]
        for message in window.messages:
            if id(message) in tasks or message.cited_as in quotes:
                excerpt = _excerpt(message, quotes.get(message.cited_as, ()), length, task=id(message) in tasks)
                if excerpt is not None:
                    lines.append(excerpt.text)
    last = rendered.messages[-1].run if rendered.messages else "-"
    return "\n".join([*lines, f"{_MARGIN}the run that is judged is {last} …]"])


def _excerpt(message: TranscriptMessage, quotes: Sequence[str], length: int, *, task: bool) -> TranscriptMessage | None:
    """Return a message with the quoted lines alone; of the task, the first line too."""
    passages = []
    remaining = list(dict.fromkeys(quotes))
    for passage in message.passages:
        texts = [normalize_text(text) for text in passage.quotable_texts]
        here = [quote for quote in remaining if any(quote in text for text in texts)]
        remaining = [quote for quote in remaining if quote not in here]
        if not here and not task:
            continue
        first = passage.lines[0].text
        shown = [first] if task or first.startswith(_MARKS) else []
        shown += [quote for quote in here if not shown or quote not in normalize_text(first)]
        passages.append(replace(passage, lines=tuple(Line(cut(text, length), verbatim=True) for text in shown)))
    return replace(message, passages=tuple(passages), notice=None) if passages else None


def _reader_line(text: str, length: int) -> str:
    # The text comes from a model that has read the transcript: it must not look like one of our own lines.
    return cut(normalize_text(text), length).replace("…]", "…)")
