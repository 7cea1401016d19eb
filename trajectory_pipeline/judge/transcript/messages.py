"""A trajectory as messages: each message, and each error that the server recorded, as the judge is shown it.

Form: a header line per message, ``[3] message-… role=tool kind=tool step=step-… run=run-…``, then its body, every line
indented by two blanks, so that no text of a message can pass for a header; ids have no blank or line break in them. A
line of text that begins like a mark of ours (``->``, ``<-``, ``??``, ``!!``, ``[…``, ``(text)``) is indented by one
more. An error that the server recorded is a line of its own, ``!! step step-… failed: …`` or ``!! run run-… error: …``.
Run status, model names and the heuristic outcome are not shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trajectory_pipeline.judge.transcript.truncate import Line, Truncation
from trajectory_pipeline.lossless_json import write_json

RENDERER_VERSION = "2"
"""Goes up with any change of the text below."""

PassageSource = Literal[
    "person",
    "other_agent",
    "automatic",
    "summary",
    "system",
    "agent_text",
    "agent_speech",
    "agent_thought",
    "agent_call",
    "tool_return",
    "tool_error",
    "speech_return",
    "approval",
    "denial",
    "server_error",
    "unknown",
]
"""Whose words a passage is. ``agent_speech``: what an agent tells a person through ``send_message``; ``speech_return``:
what that call returned, which says that words were sent and nothing else."""

SPEAKING_TOOLS = frozenset({"send_message"})
"""Letta's older agents speak through this tool."""
_MARKS = ("->", "<-", "??", "!!", "[…", "(reasoning)", "(text)", "(stdout)", "(stderr)")
_USER_KINDS: dict[str, PassageSource] = {
    "user": "person",
    "agent": "other_agent",
    "heartbeat": "automatic",
    "system_alert": "automatic",
    "login": "automatic",
    "summary": "summary",
}
_ROLES: dict[str, PassageSource] = {
    "assistant": "agent_text",
    "approval": "agent_text",
    "tool": "tool_return",
    "system": "system",
    "summary": "summary",
}


@dataclass(frozen=True)
class Passage:
    """Words of one source in one block.

    Attributes:
        source: whose words they are.
        lines: as they are shown.
        call_words: what the agent wrote in the call that a tool's return answers: a return may only repeat it.
    """

    source: PassageSource
    lines: tuple[Line, ...]
    call_text: str = ""

    @property
    def quotable_texts(self) -> list[str]:
        """What a quote must stand in: the lines between what was left out."""
        stretches: list[list[str]] = [[]]
        for line in self.lines:
            if line.verbatim:
                stretches[-1].append(line.text)
            else:
                stretches.append([])
        return ["\n".join(stretch) for stretch in stretches if stretch]


@dataclass(frozen=True)
class TranscriptMessage:
    """One message, or one error that the server recorded.

    Attributes:
        cited_as: the id by which a citation names it: of the message, or of the step or run that failed.
        header: its first line.
        passages: its body.
        position: number of the message; an error has the one of the message before it.
        step: the step that it belongs to, ``-`` where there is none.
        run: the run that it belongs to.
        role: of the message; ``error`` for an error.
        task: whether it is a person's first message of its run.
        notice: a line before it, at the margin.
        there: characters that its content has.
        kept: of these, what is shown.
    """

    cited_as: str
    header: str
    passages: tuple[Passage, ...]
    number: int
    step: str
    run: str
    role: str
    is_task: bool = False
    notice: str | None = None
    content_characters: int = 0
    shown_characters: int = 0

    @property
    def text(self) -> str:
        """As it is shown."""
        notice = [] if self.notice is None else [self.notice]
        if self.role == "error":
            return "\n".join([*notice, " ".join(line.text for passage in self.passages for line in passage.lines)])
        body = (f"  {line.text}" for passage in self.passages for line in passage.lines)
        return "\n".join([*notice, self.header, *body])


def transcript_messages(
    documents: Sequence[Mapping[str, Any]], limit: int, redaction: Callable[[str], str]
) -> list[TranscriptMessage]:
    """Return the messages of a chain of runs, as one task.

    Args:
        documents: of the runs that are shown, the earliest first, the judged one last.
        limit: characters that one piece of text may keep.
        redaction: what is replaced before anything is shown.
    """
    return list(_TranscriptBuilder(documents, limit, redaction).build())


class _TranscriptBuilder:
    def __init__(self, documents: Sequence[Mapping[str, Any]], limit: int, redaction: Callable[[str], str]) -> None:
        self._documents = documents
        self._redaction = redaction
        self._truncation = Truncation(limit)
        self._calls: dict[str, list[tuple[str, str]]] = {}
        self._number = 0

    def build(self) -> Iterator[TranscriptMessage]:
        runs = {document["run_id"] for document in self._documents}
        for document in self._documents:
            run = self._name(document["run_id"])
            before = document["metadata"].get("continues_run_id")
            missing = before is not None and before not in runs
            notice = f"[… the run {self._name(before)}, which {run} continues, is not shown …]" if missing else None
            task = True
            for turn in document["turns"]:
                for message in turn["messages"]:
                    person = task and message.get("kind") == "user"
                    task = task and not person
                    yield self._message(message, self._name(turn["step_id"]), run, task=person, notice=notice)
                    notice = None
                # Another run's step is shown with its own run, if that is shown at all.
                if turn.get("error") and not turn.get("step_run_id"):
                    error, step = turn["error"], self._name(turn["step_id"])
                    words = f"{error.get('type') or 'error'}: {error.get('message') or '-'}"
                    yield self._error(f"!! step {step} failed:", words, step, step, run, notice)
                    notice = None
            if document["metadata"].get("error"):
                error = document["metadata"]["error"]
                words = " ".join(filter(None, [error.get("type"), error.get("message"), error.get("detail")]))
                yield self._error(f"!! run {run} error:", words, run, "-", run, notice)

    def _error(
        self, head: str, words: str, cited_as: str, step: str, run: str, notice: str | None
    ) -> TranscriptMessage:
        text = " ".join(self._redaction(words).split())
        line = Line(f"{head} {text}", verbatim=True)
        passage = Passage("server_error", (line,))
        return TranscriptMessage(
            cited_as,
            "",
            (passage,),
            self._number,
            step,
            run,
            "error",
            notice=notice,
            content_characters=len(text),
            shown_characters=len(text),
        )

    def _message(
        self, message: Mapping[str, Any], step: str, run: str, *, task: bool, notice: str | None
    ) -> TranscriptMessage:
        self._number += 1
        self._truncation.start_message(self._name(message["message_id"]))
        passages = tuple(passage for passage in self._passages(message) if passage.lines)
        name = self._name(message["message_id"])
        role, kind = self._name(message["role"]), self._name(message["kind"])
        return TranscriptMessage(
            cited_as=name,
            header=f"[{self._number}] {name} role={role} kind={kind} step={step} run={run}",
            passages=passages,
            number=self._number,
            step=step,
            run=run,
            role=str(message["role"]),
            is_task=task,
            notice=notice,
            content_characters=self._truncation.content_characters,
            shown_characters=self._truncation.shown_characters,
        )

    def _passages(self, message: Mapping[str, Any]) -> Iterator[Passage]:
        role = str(message["role"])
        own = _USER_KINDS.get(str(message["kind"]), "unknown") if role == "user" else _ROLES.get(role, "unknown")
        # A tool's row repeats its returns as text, and the returns say which call they answer.
        if not message.get("tool_returns"):
            yield from self._content(message["content"], own)
        for call in message.get("tool_calls", ()):
            yield self._call(call)
        for item in message.get("tool_returns", ()):
            yield self._return(item)
        for entry in message.get("approvals", ()):
            yield self._approval(entry)

    def _content(self, parts: Sequence[Mapping[str, Any]], own: PassageSource) -> Iterator[Passage]:
        reasoned = False
        for part in parts:
            kind = str(part.get("type"))
            if kind == "text":
                mark = [_mark("(text)")] if reasoned else []
                yield Passage(own, (*mark, *self._lines(_text_of(part.get("text")))))
            elif kind in ("reasoning", "summarized_reasoning"):
                thoughts = part.get("summary") if kind == "summarized_reasoning" else part.get("reasoning")
                lines = [line for thought in _as_list(thoughts) for line in self._lines(_text_of(thought))]
                yield Passage("agent_thought", (_mark("(reasoning)"), *lines))
            elif kind == "image":
                source = part.get("source")
                media = source.get("media_type") if isinstance(source, dict) else None
                stub = f"(an image, {self._name(media) if media else 'of unknown type'}: not shown)"
                yield Passage(own, (_mark(stub),))
            elif kind in ("redacted_reasoning", "omitted_reasoning"):
                yield Passage("agent_thought", (_mark("(reasoning that the provider withheld)"),))
            else:
                yield Passage(own, tuple(self._lines(write_json(part))))
            reasoned = "reasoning" in kind

    def _call(self, call: Mapping[str, Any]) -> Passage:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else write_json(arguments)
        name = self._name(function.get("name"))
        self._calls.setdefault(str(call.get("id")), []).append((name, text))
        lines = _framed(f"-> call {self._name(call.get('id'))} {name}(", self._lines(text), ")")
        return Passage("agent_speech" if name in SPEAKING_TOOLS else "agent_call", lines)

    def _return(self, item: Mapping[str, Any]) -> Passage:
        status = "denied" if item.get("denied") else self._name(item.get("status"))
        text = item["text"] if item["text"] is not None else write_json(item.get("func_response"))
        lines = [_quotable(f"<- return {self._name(item.get('tool_call_id'))} status={status}")]
        lines += self._lines(text, whole=status == "error")
        for name in ("stdout", "stderr"):
            for output in item.get(name) or ():
                lines += _framed(f"({name}) ", self._lines(str(output)), "")
        calls = self._calls.get(str(item.get("tool_call_id")), [])
        source: PassageSource = "tool_return"
        if status in ("error", "denied"):
            source = "tool_error"
        elif any(name in SPEAKING_TOOLS for name, _ in calls):
            source = "speech_return"
        return Passage(source, tuple(lines), call_text="\n".join(self._redaction(words) for _, words in calls))

    def _approval(self, entry: Mapping[str, Any]) -> Passage:
        decided = entry.get("approve")
        approve = str(decided).lower() if isinstance(decided, bool) else "-"
        reason = self._lines(_text_of(entry.get("reason")) or "-")
        head = f"?? approval {self._name(entry.get('tool_call_id'))} approve={approve} reason="
        return Passage("denial" if decided is False else "approval", _framed(head, reason, ""))

    def _lines(self, text: str, *, whole: bool = False) -> list[Line]:
        lines = self._truncation.truncate(self._redaction(text), whole=whole)
        return [_escape_mark(line) if line.verbatim and line.text.startswith(_MARKS) else line for line in lines]

    def _name(self, value: Any) -> str:
        """Return an id or a label as one word, whatever is in it; ``-`` where there is none."""
        if value is None or value == "":
            return "-"
        name = str(value)
        # A blank is the only white space that is printable.
        if not name.isprintable() or " " in name:
            name = "".join(c if c.isprintable() and not c.isspace() else f"\\u{{{ord(c):x}}}" for c in name)
        return self._redaction(name)


def _mark(text: str) -> Line:
    """Return a line of ours, which no quote may rest on."""
    return Line(text, verbatim=False)


def _quotable(text: str) -> Line:
    """Return a line of ours that says what happened, and may be quoted."""
    return Line(text, verbatim=True)


def _escape_mark(line: Line) -> Line:
    """Return a line of text that begins like a mark of ours so that it does not."""
    return Line(f" {line.text}", verbatim=True)


def _framed(before: str, lines: Sequence[Line], after: str) -> tuple[Line, ...]:
    """Return lines with words of ours on the same line before the first and after the last."""
    if not lines:
        return (_quotable(before + after),)
    first = _quotable(before + lines[0].text) if lines[0].verbatim else None
    framed = [first, *lines[1:]] if first else [_quotable(before), *lines]
    last = framed[-1]
    framed[-1] = _quotable(last.text + after) if last.verbatim else last
    return tuple(framed if last.verbatim or not after else [*framed, _quotable(after)])


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        return ""
    return value if isinstance(value, str) else write_json(value)
