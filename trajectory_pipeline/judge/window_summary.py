"""Summarizes the findings on the windows of a long transcript as excerpts, for the final question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trajectory_pipeline.judge.citations import CitationChecker, normalize_text
from trajectory_pipeline.judge.response_schema import PartFindings
from trajectory_pipeline.judge.transcript.messages import TranscriptMessage
from trajectory_pipeline.judge.transcript.truncate import Line
from trajectory_pipeline.judge.transcript.windows import RenderedTranscript, task_messages

_QUOTE_LENGTHS = (600, 300, 150, 60)
"""Characters that a quote and a reader's text may have; the first by which all of it fits is taken."""
_MARGIN = "[… "


@dataclass(frozen=True)
class WindowSummary:
    """A transcript of excerpts.

    Attributes:
        text: as the judge is shown it.
        invalid_citations: of findings; they are not shown.
        omitted_quotes: for which there was no space.
    """

    text: str
    invalid_citations: int
    omitted_quotes: int


def summarize_windows(rendered: RenderedTranscript, found: Sequence[PartFindings], max_bytes: int) -> WindowSummary:
    """Return what the parts were found to show.

    Args:
        rendered: what the parts showed.
        found: their findings, in the order of the parts.
        max_bytes: UTF-8 bytes that the text may have.
    """
    evidence = CitationChecker(rendered)
    quotes: dict[str, list[str]] = {}
    invalid = 0
    for part in found:
        for citation in (citation for finding in part.findings for citation in finding.evidence):
            if evidence.check(citation, "failure")["valid"]:
                quotes.setdefault(citation.message_id, []).append(normalize_text(citation.quote))
            else:
                invalid += 1
    fewest = max((len(listed) for listed in quotes.values()), default=0)
    for length in _QUOTE_LENGTHS:
        text = _text(rendered, found, quotes, length)
        if len(text.encode()) <= max_bytes:
            return WindowSummary(text, invalid, 0)
    for most in range(fewest, -1, -1):
        shortened = {name: listed[:most] for name, listed in quotes.items()}
        text = _text(rendered, (), shortened, _QUOTE_LENGTHS[-1])
        if len(text.encode()) <= max_bytes or most == 0:
            break
    left_out = sum(len(listed) for listed in quotes.values()) - sum(len(listed) for listed in shortened.values())
    return WindowSummary(text, invalid, left_out)


def _text(
    rendered: RenderedTranscript, found: Sequence[PartFindings], quotes: Mapping[str, Sequence[str]], length: int
) -> str:
    lines: list[str] = []
    tasks = {id(message) for message in task_messages(rendered.messages)}
    for window in rendered.windows:
        if window.number <= len(found):
            part = found[window.number - 1]
            words = [part.account, *(finding.finding for finding in part.findings)]
            lines += [f"{_MARGIN}part {window.number}: {_reader_line(text, length)} …]" for text in words]
        for message in window.messages:
            if id(message) in tasks or message.cited_as in quotes:
                excerpt = _excerpt(message, quotes.get(message.cited_as, ()), length, task=id(message) in tasks)
                if excerpt is not None:
                    lines.append(excerpt.text)
    last = rendered.messages[-1].run if rendered.messages else "-"
    return "\n".join([*lines, f"{_MARGIN}the run that is judged is {last} …]"])


def _excerpt(message: TranscriptMessage, quotes: Sequence[str], length: int, *, task: bool) -> TranscriptMessage | None:
    """Return a message with the lines of it that were quoted; of the task, its beginning too."""
    passages = []
    left = list(dict.fromkeys(quotes))
    for passage in message.passages:
        stretches = [normalize_text(stretch) for stretch in passage.quotable_texts]
        here = [quote for quote in left if any(quote in stretch for stretch in stretches)]
        left = [quote for quote in left if quote not in here]
        if not here and not task:
            continue
        lines = list(passage.lines[:1]) if _is_marked(passage.lines[0].text) or task else []
        lines += [
            Line(quote, verbatim=True) for quote in here if not lines or quote not in normalize_text(lines[0].text)
        ]
        passages.append(replace(passage, lines=tuple(replace(line, text=_cut(line.text, length)) for line in lines)))
    return replace(message, passages=tuple(passages), notice=None) if passages else None


def _is_marked(line: str) -> bool:
    return line.startswith(("-> call", "<- return", "?? approval", "(reasoning)", "!! "))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} [… {len(text) - length} characters left out …]"


def _reader_line(text: str, length: int) -> str:
    # The text comes from a model that has read the transcript: it must not look like one of our own lines.
    return _cut(" ".join(text.split()), length).replace("…]", "…)")
