"""Parses the transcript that a prompt shows into messages and errors.

The layout is all that the simulated judge knows of the pipeline, as a real model would: the block is between the lines
``<<<TRANSCRIPT {marker}`` and ``TRANSCRIPT {marker}>>>``. Headers, ``!!`` lines (``!! step … failed: …``, ``!! run …
error: …``) and notes about omissions (``[… …]``) start in the first column. Every other line is indented by two spaces,
so text in a message cannot pass for a header. Ids are short; a header names step and run where they change. What is not
understood is text of its message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_OPENING = re.compile(r"^<<<TRANSCRIPT ([0-9A-Za-z_-]+)[ \t]*\r?$", re.MULTILINE)
_HEADER = re.compile(r"^\[(\S+)\] (\S+)((?: [a-z_]+=\S*)*)(?: .*)?$")
_CALL = re.compile(r"^-> call (\S+) ([^\s(]+)\((.*)$")
_RETURN = re.compile(r"^<- return (\S+)(?: status=(\S+))?.*$")
_APPROVAL = re.compile(r"^\?\? approval (\S+)(?: approve=(\S+))?(?: reason=(.*))?$")
_STEP_ERROR = re.compile(r"^!! step (\S+) failed: (?:([^:\s]+): )?(.*)$")
_RUN_ERROR = re.compile(r"^!! run (?:(\S+) )?error: ?(.*)$")
_NOT_SHOWN = "[… "
"""Begins a line at the margin that says what the transcript leaves out."""

_MARKS = ("(", "->", "<-", "??")
_REASONING_OPENS = "(reasoning)"
_REASONING_CLOSES = frozenset({"(text)", "(/reasoning)", "(end of reasoning)"})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that an agent made; ``arguments`` is JSON text as it stands in the transcript."""

    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ToolReturn:
    """What a tool gave back; ``status`` is success, error, denied, or ``-`` where none was recorded."""

    call_id: str
    status: str
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's answer to a request for approval; ``approve`` is None where the line does not say."""

    call_id: str
    approve: bool | None
    reason: str


@dataclass(slots=True)
class ShownMessage:
    """One message of the transcript, its body taken apart."""

    index: int
    message_id: str
    role: str
    kind: str
    step_id: str | None
    run_id: str | None
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    returns: list[ToolReturn] = field(default_factory=list)
    approvals: list[Approval] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ShownError:
    """A ``!!`` line: a step's error, or the run's where ``step_id`` is None; ``line`` is all of it."""

    step_id: str | None
    run_id: str | None
    error_type: str | None
    message: str
    line: str


@dataclass(slots=True)
class Transcript:
    """All that a prompt shows of one run and the earlier runs of its chain.

    What stands before the transcript as context is no part of it; ``raw`` has it too.
    """

    messages: list[ShownMessage] = field(default_factory=list)
    errors: list[ShownError] = field(default_factory=list)
    raw: str = ""


def find_transcript(prompt: str) -> str | None:
    """Return the text between the two marker lines, or None if the prompt shows no transcript."""
    opening = _OPENING.search(prompt)
    if opening is None:
        return None
    start = opening.end() + 1
    # The closing line must carry the opening's marker: text that a message brings along cannot know it.
    end = prompt.find(f"\nTRANSCRIPT {opening.group(1)}>>>", opening.end())
    return prompt[start : end + 1] if end >= 0 else prompt[start:]


def parse_transcript(block: str, prompt: str | None = None) -> Transcript:
    """Take the text between the marker lines apart; never raises. The prompt around it is kept as ``raw``."""
    transcript = Transcript(raw=prompt or block)
    message: ShownMessage | None = None
    body: list[str] = []
    for line in block.split("\n"):
        if line.startswith("  "):
            body.append(line[2:])
            continue
        if line.startswith(_NOT_SHOWN):
            continue
        if line.startswith("["):
            header = _HEADER.match(line.rstrip("\r"))
            if header is not None:
                _close(message, body)
                message, body = _message_of(header, transcript.messages), []
                transcript.messages.append(message)
                continue
        elif line.startswith("!!"):
            error = _error(line.rstrip("\r"))
            if error is not None:
                transcript.errors.append(error)
                continue
        body.append(line)
    _close(message, body)
    return transcript


def _message_of(header: re.Match[str], earlier: Sequence[ShownMessage]) -> ShownMessage:
    attributes = dict(pair.split("=", 1) for pair in header.group(3).split())
    step, run = (earlier[-1].step_id, earlier[-1].run_id) if earlier else (None, None)
    return ShownMessage(
        index=len(earlier) + 1,
        message_id=header.group(1),
        role=header.group(2),
        kind=attributes.get("kind") or header.group(2),
        step_id=_id_or_none(attributes["step"]) if "step" in attributes else step,
        run_id=_id_or_none(attributes["run"]) if "run" in attributes else run,
    )


def _id_or_none(value: str | None) -> str | None:
    return None if value in (None, "", "-", "null", "None", "none") else value


def _error(line: str) -> ShownError | None:
    if found := _STEP_ERROR.match(line):
        return ShownError(_id_or_none(found.group(1)), None, found.group(2), found.group(3), line)
    if found := _RUN_ERROR.match(line):
        return ShownError(None, _id_or_none(found.group(1)), None, found.group(2), line)
    return None


def _close(message: ShownMessage | None, body: list[str]) -> None:
    """Sort the body lines of a finished message into its parts."""
    while body and not body[-1].strip():
        body.pop()
    if message is None or not body:
        return
    # A call can only be made by an agent and a return only be given by a tool: what looks like one elsewhere is text.
    calls_allowed = message.role in ("assistant", "approval")
    returns_allowed = message.role in ("tool", "approval")
    target = message.text
    reasoning_parts: list[list[str]] = []
    reasoning_ended = False
    for line in body:
        # Nearly every line is plain text, and a prompt may hold many thousands: the cheapest question comes first.
        if not line.startswith(_MARKS):
            target.append(line)
        elif line == _REASONING_OPENS:
            target = []
            reasoning_parts.append(target)
        elif line in _REASONING_CLOSES:
            target, reasoning_ended = message.text, True
        elif calls_allowed and (call := _CALL.match(line)):
            message.calls.append(ToolCall(call.group(1), call.group(2), call.group(3).rstrip().removesuffix(")")))
            target = message.text
        elif returns_allowed and (back := _RETURN.match(line)):
            returned = ToolReturn(back.group(1), back.group(2) or "-")
            message.returns.append(returned)
            target = returned.lines
        elif message.role == "approval" and (answer := _APPROVAL.match(line)):
            message.approvals.append(_approval(answer))
            target = message.text
        else:
            target.append(line)
    if reasoning_parts and not reasoning_ended and not message.calls and not message.text:
        message.text = _split_off_text(reasoning_parts[-1])
    message.reasoning = [line for part in reasoning_parts for line in part]


def _approval(answer: re.Match[str]) -> Approval:
    approve = {"true": True, "false": False}.get((answer.group(2) or "").lower())
    return Approval(answer.group(1), approve, answer.group(3) or "")


def _split_off_text(reasoning: list[str]) -> list[str]:
    """Take the text that follows reasoning without a line to mark where: the last paragraph, else the last line.

    A message with neither call nor text besides its reasoning would be rare, one whose text follows it is the rule.
    """
    blanks = [at for at, line in enumerate(reasoning) if not line.strip()]
    cut = blanks[-1] + 1 if blanks else len(reasoning) - 1
    if cut <= 0:
        return []
    text = reasoning[cut:]
    del reasoning[cut:]
    return text
