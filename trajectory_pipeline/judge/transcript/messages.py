"""Renders each message of a trajectory, and each error that the server recorded, as the judge is shown it.

A message has a header line, ``[4de6] tool step=8095 run=018c``, then a body, every line of it indented by two blanks,
so that no text of a message can pass for a header. Ids are short (see ``short_ids``) and have no blank or line break in
them; calls are numbered. Step and run stand where they change, and a kind (``user kind=heartbeat``) where it is not the
role. A line of text that begins like a mark of ours (``->``, ``<-``, ``??``, ``!!``, ``[…``, ``(text)``) is indented by
one more. An error that the server recorded is a line of its own, ``!! step 8095 failed: …`` or ``!! run 018c error:
…``. Run status, model names and the heuristic outcome are not shown.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from trajectory_pipeline.judge.transcript.short_ids import short_ids
from trajectory_pipeline.judge.transcript.truncate import Line, Truncation
from trajectory_pipeline.lossless_json import as_text, object_or_empty, write_json

RENDERER_VERSION = "5"
"""Raised with any change of what is shown."""

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
"""Who wrote a passage. ``agent_speech``: what an agent tells a person through ``send_message``; ``speech_return``: what
that call returned, which shows only that words were sent."""

AGENT_SOURCES = frozenset[PassageSource]({"agent_text", "agent_speech", "agent_thought", "agent_call"})
"""What an agent says, thinks or asks for; it does not show that something was done."""
_PERSON = r"(?:_?(?:to|with|back|the|user|human|person|people|customer|client|operator|caller|chat|everyone))*"
_SPEAKING_TOOL = re.compile(
    r"(?:[a-z0-9]+[.:/-]+)?(?:(?:send|post|write|give|emit|return|final)_?)?(?:message|reply|response|answer)"
    rf"{_PERSON}|(?:reply|respond|speak|say|talk|tell|answer|chat){_PERSON}|send_message_to_agent_async",
    re.IGNORECASE,
)
"""Tools that only speak, by what their name says: ``send_message`` of Letta's older agents, ``reply_to_user``."""
_SOURCE_ID = re.compile(r"(?:(?:run|step|message|agent)-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""Ids of this form hold nothing to redact, and a transcript has hundreds."""
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
    """Lines from one source in one message.

    ``call_text`` is what the agent wrote in a call, whole: of the call itself, and of the one that a return answers.
    """

    source: PassageSource
    lines: tuple[Line, ...]
    call_text: str = ""

    @property
    def quotable_texts(self) -> list[str]:
        """The texts that a quote must be within: the lines between those that are not verbatim."""
        groups = groupby(self.lines, key=lambda line: line.verbatim)
        return ["\n".join(line.text for line in lines) for verbatim, lines in groups if verbatim]


@dataclass(frozen=True)
class TranscriptMessage:
    """One message, or one error that the server recorded.

    Attributes:
        cited_as: the short id by which a citation names it: of the message, or of the step or run that failed.
        source_id: the whole id.
        title: the header without step and run.
        number: from 1; an error has that of the message before it.
        step: short id of its step, ``-`` where there is none.
        step_id: the whole id.
        run: short id.
        role: of the message; ``error`` for an error, which has no header.
        is_task: whether it is a person's first message of its run.
        notice: a line before it that is not indented.
    """

    cited_as: str
    source_id: str
    title: str
    passages: tuple[Passage, ...]
    number: int
    step: str
    step_id: str
    run: str
    role: str
    is_task: bool = False
    notice: str | None = None
    content_characters: int = 0
    shown_characters: int = 0

    @property
    def text(self) -> str:
        """As it is shown by itself."""
        return self.text_after(None)

    def text_after(self, previous: "TranscriptMessage | None") -> str:
        """Return it as it is shown after another message: with step and run where these are others."""
        notice = [] if self.notice is None else [self.notice]
        lines = [line.text for passage in self.passages for line in passage.lines]
        if self.role == "error":
            return "\n".join([*notice, " ".join(lines)])
        step = "" if previous and previous.step == self.step else f" step={self.step}"
        run = "" if previous and previous.run == self.run else f" run={self.run}"
        return "\n".join([*notice, f"{self.title}{step}{run}", *(f"  {line}" for line in lines)])


def joined_text(messages: Iterable[TranscriptMessage]) -> str:
    """Return messages as they are shown one after another."""
    texts, previous = [], None
    for message in messages:
        texts.append(message.text_after(previous))
        previous = previous if message.role == "error" else message
    return "\n".join(texts)


def transcript_messages(
    documents: Sequence[Mapping[str, Any]], limit: int, redact: Callable[[str], str]
) -> list[TranscriptMessage]:
    """Return the messages of a chain of runs, as one task; see ``windows.render_transcript``.

    A piece of text is shortened to ``limit`` characters.
    """
    return list(_TranscriptBuilder(limit, redact).build(documents))


class _TranscriptBuilder:
    def __init__(self, limit: int, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._truncation = Truncation(limit)
        self._calls: dict[str, list[tuple[str, str]]] = {}
        self._call_numbers: dict[str, int] = {}
        self._short_ids: dict[str, str] = {}
        self._whole_ids: dict[str, str] = {}
        self._number = 0

    def build(self, documents: Sequence[Mapping[str, Any]]) -> Iterator[TranscriptMessage]:
        runs = {document["run_id"] for document in documents}
        self._short_ids = short_ids(map(self._name, _ids(documents)))
        self._whole_ids = {short: name for name, short in self._short_ids.items()}
        for document in documents:
            run = self._short(document["run_id"])
            previous = document["metadata"].get("continues_run_id")
            shown = self._run_messages(document, run)
            if previous is not None and previous not in runs and (first := next(shown, None)):
                notice = f"[… the run {self._short(previous)}, which {run} continues, is not shown …]"
                yield replace(first, notice=notice)
            yield from shown

    def _run_messages(self, document: Mapping[str, Any], run: str) -> Iterator[TranscriptMessage]:
        has_task = False
        for turn in document["turns"]:
            step = self._short(turn["step_id"])
            for message in turn["messages"]:
                is_task = not has_task and message.get("kind") == "user" and not message.get("is_deleted")
                has_task = has_task or is_task
                yield self._message(message, step, run, is_task=is_task)
            # Another run's step is shown with its own run, if that is shown at all.
            if turn.get("error") and not turn.get("step_run_id"):
                error = turn["error"]
                text = f"{error.get('type') or 'error'}: {error.get('message') or '-'}"
                yield self._error(f"!! step {step} failed:", text, step, step, run)
        if error := document["metadata"].get("error"):
            text = " ".join(filter(None, [error.get("type"), error.get("message"), error.get("detail")]))
            yield self._error(f"!! run {run} error:", text, run, "-", run)

    def _error(self, mark: str, text: str, cited_as: str, step: str, run: str) -> TranscriptMessage:
        text = " ".join(self._redact(text).split())
        passage = Passage("server_error", (_quotable(f"{mark} {text}"),))
        names = cited_as, self._whole(cited_as), ""
        message = TranscriptMessage(*names, (passage,), self._number, step, self._whole(step), run, "error")
        return replace(message, content_characters=len(text), shown_characters=len(text))

    def _message(self, message: Mapping[str, Any], step: str, run: str, *, is_task: bool) -> TranscriptMessage:
        self._number += 1
        name, role, kind = self._short(message["message_id"]), self._name(message["role"]), self._name(message["kind"])
        self._truncation.start_message(name)
        if message.get("is_deleted"):
            passages = self._left_out(message)
        else:
            passages = tuple(passage for passage in self._passages(message) if passage.lines)
        return TranscriptMessage(
            name,
            self._whole(name),
            f"[{name}] {role}" if kind == role else f"[{name}] {role} kind={kind}",
            passages,
            self._number,
            step,
            self._whole(step),
            run,
            str(message["role"]),
            is_task,
            content_characters=self._truncation.content_characters,
            shown_characters=self._truncation.shown_characters,
        )

    def _left_out(self, message: Mapping[str, Any]) -> tuple[Passage, ...]:
        """Return a note in place of a message that is marked deleted; its characters count as not shown."""
        shown, self._truncation = self._truncation, Truncation(0)  # later texts must not refer to what is not shown
        passages = list(self._passages(message))
        characters = self._truncation.content_characters
        self._truncation = shown
        shown.content_characters += characters
        note = _mark(f"[… {characters} characters left out: deleted at the source …]")
        sources = dict.fromkeys(passage.source for passage in passages)
        calls = [passage.call_text for passage in passages if passage.source in AGENT_SOURCES]
        return tuple(Passage(source, (note,) if n == 0 else (), "\n".join(calls)) for n, source in enumerate(sources))

    def _passages(self, message: Mapping[str, Any]) -> Iterator[Passage]:
        role = str(message["role"])
        own = _USER_KINDS.get(str(message["kind"]), "unknown") if role == "user" else _ROLES.get(role, "unknown")
        # A tool's row repeats its returns as text, and the returns say which call they answer.
        if not message.get("tool_returns"):
            yield from self._content(message["content"], own)
        for call in message.get("tool_calls", ()):
            yield self._call(call)
        for returned in message.get("tool_returns", ()):
            yield self._return(returned)
        for approval in message.get("approvals", ()):
            yield self._approval(approval)

    def _content(self, parts: Sequence[Mapping[str, Any]], own: PassageSource) -> Iterator[Passage]:
        after_reasoning = False
        for part in parts:
            kind = str(part.get("type"))
            if kind == "text":
                mark = [_mark("(text)")] if after_reasoning else []
                yield Passage(own, (*mark, *self._lines(_text_of(part.get("text")))))
            elif kind in ("reasoning", "summarized_reasoning"):
                thoughts = part.get("summary") if kind == "summarized_reasoning" else part.get("reasoning")
                thoughts = thoughts if isinstance(thoughts, list) else [thoughts]
                lines = [line for thought in thoughts for line in self._lines(_text_of(thought))]
                yield Passage("agent_thought", (_mark("(reasoning)"), *lines))
            elif kind == "image":
                yield Passage(own, (self._image(part),))
            elif kind in ("redacted_reasoning", "omitted_reasoning"):
                yield Passage("agent_thought", (_mark("(reasoning that the provider withheld)"),))
            else:
                yield Passage(own, tuple(self._lines(write_json(part))))
            after_reasoning = "reasoning" in kind

    def _image(self, part: Mapping[str, Any]) -> Line:
        media = object_or_empty(part.get("source")).get("media_type")
        return _mark(f"(an image, {self._name(media) if media else 'of unknown type'}: not shown)")

    def _call(self, call: Mapping[str, Any]) -> Passage:
        function = object_or_empty(call.get("function"))
        text = as_text(function.get("arguments"))
        name = self._name(function.get("name"))
        self._calls.setdefault(as_text(call.get("id")), []).append((name, text))
        lines = _framed(f"-> call {self._call_number(call.get('id'))} {name}(", self._lines(text), ")")
        return Passage("agent_speech" if _SPEAKING_TOOL.fullmatch(name) else "agent_call", lines, self._redact(text))

    def _return(self, returned: Mapping[str, Any]) -> Passage:
        status = "denied" if returned.get("denied") else self._name(returned.get("status"))
        response = returned.get("func_response")
        text = as_text(response) if returned["text"] is None else returned["text"]
        lines = [_quotable(f"<- return {self._call_number(returned.get('tool_call_id'))} status={status}")]
        lines += self._lines(text, whole=status == "error")
        if returned["text"] is not None and isinstance(response, list):
            parts = map(object_or_empty, response)
            lines += [self._image(part) for part in parts if part.get("type") == "image"]
        for name in ("stdout", "stderr"):
            outputs = returned.get(name) or []
            for output in outputs if isinstance(outputs, list) else [outputs]:
                lines += _framed(f"({name}) ", self._lines(as_text(output)), "")
        calls = self._calls.get(as_text(returned.get("tool_call_id")), [])
        source: PassageSource = "tool_return"
        if status in ("error", "denied"):
            source = "tool_error"
        elif any(_SPEAKING_TOOL.fullmatch(name) for name, _ in calls):
            source = "speech_return"
        return Passage(source, tuple(lines), call_text="\n".join(self._redact(text) for _, text in calls))

    def _approval(self, approval: Mapping[str, Any]) -> Passage:
        decision = approval.get("approve")
        approve = str(decision).lower() if isinstance(decision, bool) else "-"
        reason = self._lines(_text_of(approval.get("reason")) or "-")
        mark = f"?? approval {self._call_number(approval.get('tool_call_id'))} approve={approve} reason="
        return Passage("denial" if decision is False else "approval", _framed(mark, reason, ""))

    def _lines(self, text: str, *, whole: bool = False) -> list[Line]:
        lines = self._truncation.truncate(self._redact(text), whole=whole)
        # Text that begins like a mark of ours must not pass for one.
        return [
            _quotable(f" {line.text}") if line.verbatim and line.text.startswith(_MARKS) else line for line in lines
        ]

    def _call_number(self, call_id: Any) -> str:
        """Return a call's number, from 1 in the order of their first mention; ``-`` where it has no id."""
        if call_id is None or call_id == "":
            return "-"
        return str(self._call_numbers.setdefault(as_text(call_id), len(self._call_numbers) + 1))

    def _short(self, value: Any) -> str:
        """Return the short name of an id; ``-`` where there is none."""
        name = self._name(value)
        return self._short_ids.get(name, name)

    def _whole(self, short: str) -> str:
        return self._whole_ids.get(short, short)

    def _name(self, value: Any) -> str:
        """Return an id or a label as one printable word; ``-`` where there is none."""
        if value is None or value == "":
            return "-"
        name = as_text(value)
        if _SOURCE_ID.fullmatch(name):
            return name
        # A blank is the only white space that is printable.
        if not name.isprintable() or " " in name:
            name = "".join(c if c.isprintable() and not c.isspace() else f"\\u{{{ord(c):x}}}" for c in name)
        return self._redact(name)


def _ids(documents: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Give the id of each run, step and message that a transcript may name."""
    for document in documents:
        yield from (document["run_id"], document["metadata"].get("continues_run_id"))
        for turn in document["turns"]:
            yield turn["step_id"]
            yield from (message["message_id"] for message in turn["messages"])


def _mark(text: str) -> Line:
    """Return a line of ours that may not be quoted."""
    return Line(text, verbatim=False)


def _quotable(text: str) -> Line:
    """Return a line of text, or one of ours that states what happened: both may be quoted."""
    return Line(text, verbatim=True)


def _framed(before: str, lines: Sequence[Line], after: str) -> tuple[Line, ...]:
    """Return lines with text of ours before the first and after the last: on the same line where that is verbatim."""
    framed = list(lines) if lines and lines[0].verbatim else [_quotable(""), *lines]
    framed[0] = _quotable(before + framed[0].text)
    if framed[-1].verbatim:
        framed[-1] = _quotable(framed[-1].text + after)
    elif after:
        framed.append(_quotable(after))
    return tuple(framed)


def _text_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("text")
    if value is None:
        return ""
    return as_text(value)
