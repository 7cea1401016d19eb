"""The rules of the simulated judge: pure functions over a parsed transcript. The same transcript gets the same answer.

The rules do not judge quality. They let everything around a judge be shown and tested with answers that differ from run
to run for reasons that can be looked up here. Every text they write says "simulated".
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from trajectory_pipeline.demo.simulated_judge.transcript import (
    ShownMessage,
    ToolCall,
    ToolReturn,
    Transcript,
)

Answer = dict[str, object]
Status = Literal["met", "unmet", "insufficient_evidence"]

SUMMARY_MARK = "[simulated judge] "
REASONING_MARK = "simulated rule: "

MAX_REQUIREMENTS = 7
MAX_DECISIONS = 10
MAX_TAGS = 7
MIN_TAGS = 3
MAX_QUOTE = 200
"""Characters of a quote, about: it ends with a sentence."""
MAX_SENTENCE = 600
"""Characters of a sentence that is quoted whole; of more, or of data, whole words or values."""
# Beyond these a huge transcript would cost more to quote from than all the rest of an answer.
QUOTED_RETURNS = 20
QUOTED_LINES = 100

# Letta's older agents speak through this tool: its argument is what the person reads, its return proves nothing.
_LETTERS = re.compile(r"[^\W_]+")
_ESCAPED = re.compile(r"\\[nrt]")
_FEWEST_LETTERS, _FEWEST_DIGITS = 6, 3
_SPEAKING_TOOLS = frozenset({"send_message"})

_PERSON_KINDS = ("user", "agent", "system_alert", "heartbeat")

_GREETING = re.compile(
    r"^(hi|hello|hey|thanks|thank you|good (morning|day|afternoon|evening)|dear|ok|okay)\b(,? \w+){0,2}\W*$", re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_VALUE_END = re.compile(r"(?<=[,;}\])])(?=\s|$)|(?<=\S)(?=\s)")
_ELISION = re.compile(r"\[…|\[\.\.\.|…")

# Requests whose result is the answer's own text: only for these is an agent's text evidence.
_TEXT_IS_THE_DELIVERABLE = re.compile(
    r"\?\s*$|^\W*(?:please\s+|can you\s+|could you\s+)?(?:answer|explain|describe|write|draft|compose|summari[sz]e|"
    r"translate|list|name|tell|say|define|compare|suggest|give|introduce|reply|rewrite|greet|what|who|when|where|why|"
    r"how|which)\b",
    re.I,
)

# Reply in an error → whose failure it is, and how. The first row that fits decides; an owner of None means "whoever
# raised it": the tool for a tool's return, the LLM provider for a step.
FAILURE_TABLE: tuple[tuple[str | None, str, str], ...] = (
    (None, "rate_limit", r"rate.?limit|too many requests|\b429\b"),
    (
        "infrastructure",
        "context_overflow",
        r"context.{0,12}(window|length|limit)|maximum context|ContextWindowExceeded",
    ),
    (
        "infrastructure",
        "resource_exhausted",
        r"insufficient.{0,8}(credit|quota|fund)|billing|out of memory|no space left",
    ),
    (None, "authentication", r"authenticat|unauthori[sz]ed|api key|forbidden|permission|\b40[13]\b"),
    (None, "timeout", r"time[d]?.?out|deadline exceeded"),
    (
        "agent",
        "bad_tool_arguments",
        r"missing \d* ?(required )?(positional )?argument|unexpected keyword|invalid argument|validation error",
    ),
    ("agent", "wrong_tool", r"no such tool|unknown tool|tool not found"),
    (
        "agent",
        "malformed_output",
        r"invalid.llm.response|invalid response|no_tool_call|invalid_tool_call|empty.?response",
    ),
    (None, "service_error", r"unavailable|connection|bad gateway|\b50[0234]\b|overloaded|server.?error"),
)

CATEGORY_TABLE: tuple[tuple[str, str], ...] = (
    ("coding", r"\b(code|python|function|bug|script|program|test suite|refactor|compile|regex|sql|repository)\b"),
    ("data_analysis", r"\b(data|dataset|csv|chart|average|statistics?|trend|analy[sz]e|analysis|report|table)\b"),
    ("calculation", r"\b(calculate|compute|sum|how (much|many)|percent|total|convert|multiply)\b|\d\s*[-+*/×]\s*\d"),
    ("memory_management", r"\b(remember|memory|memori[sz]e|forget|recall|note down|my name is)\b"),
    ("communication", r"\b(email|e-mail|mail|message to|notify|invite|slack|call|text)\b"),
    ("planning", r"\b(plan|schedule|itinerary|book|calendar|organi[sz]e|agenda|trip|appointment)\b"),
    ("writing", r"\b(write|draft|compose|essay|poem|letter|translate|rewrite|summari[sz]e|story)\b"),
    (
        "information_retrieval",
        r"\b(find|search|look up|lookup|fetch|retrieve|latest|documents?|archive|order|status)\b",
    ),
    ("system_operation", r"\b(deploy|restart|install|server|configure|backup|delete the|disk|process)\b"),
    ("question_answering", r"\b(what|who|when|where|why|which|how)\b|\?"),
    ("conversation", r"\b(hello|hi|hey|how are you|chat|thanks)\b"),
)

_COMMON_WORDS_TEXT = (
    "the and for with that this from you your have has had are was were will would can could should please about into "
    "not but all any our out his her its their them they then than there here what which when where who whom why how "
    "let one two also just like some more most each every been being did does done get got may might must own same "
    "status success error message none null true false return call tool step run"
)
_COMMON_WORDS = frozenset(_COMMON_WORDS_TEXT.split())


@dataclass(frozen=True, slots=True)
class Trouble:
    """What went wrong at the end of a run: kind, text, and a quote from the message ``cited``."""

    kind: Literal["run_error", "step_error", "denied", "tool_error"]
    text: str
    cited: str | None
    quote: str | None
    step_id: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rules look at, read off the transcript once."""

    task: ShownMessage | None
    answer: ShownMessage | None
    answer_lines: list[str]
    returns: list[tuple[ShownMessage, ToolReturn]]
    quotable: list[tuple[ShownMessage, str]]
    calls: list[tuple[ShownMessage, ToolCall]]
    unanswered: list[ToolCall]
    recovered: int
    trouble: Trouble | None


def judge(transcript: Transcript) -> Answer:
    """Apply all rules: the fields of an answer by name, before they are fitted into the schema that was asked for."""
    found = findings(transcript)
    statements = requirements_of(found.task)
    requirements = [requirement(statement, found) for statement in statements]
    statuses = [str(r["status"]) for r in requirements]
    return {
        "requirements": requirements,
        "failure": failure(found, statuses),
        "learning": learning(transcript, found, statuses),
        "key_decisions": key_decisions(found),
        "summary": summary(found, statuses),
        "lesson": lesson(found, statuses),
        "tags": tags(found),
        "task_category": task_category(statements),
    }


# ---- what the rules look at ---------------------------------------------------------------------------------------


def findings(transcript: Transcript) -> Findings:
    """Extract task, final text, tool calls and trouble from the transcript."""
    task = task_message(transcript)
    after = [m for m in transcript.messages if task is None or m.index >= task.index]
    answer, lines = final_text(after)
    calls = [(m, c) for m in after for c in m.calls if c.name not in _SPEAKING_TOOLS]
    speaking = {c.call_id for m in after for c in m.calls if c.name in _SPEAKING_TOOLS}
    returns = [(m, r) for m in after for r in m.returns if r.call_id not in speaking]
    answered = {r.call_id for _, r in returns}
    failed = sum(1 for _, r in returns if r.status == "error")
    trouble = trouble_of(transcript, after, returns)
    return Findings(
        task=task,
        answer=answer,
        answer_lines=lines,
        returns=returns,
        quotable=_quotable(returns, calls),
        calls=calls,
        unanswered=[c for _, c in calls if c.call_id not in answered],
        recovered=failed if trouble is None else 0,
        trouble=trouble,
    )


def task_message(transcript: Transcript) -> ShownMessage | None:
    """Take the first person's message as the task; without one, the first of another agent, an alert, a heartbeat."""
    for kind in _PERSON_KINDS:
        for message in transcript.messages:
            if message.kind == kind and any(line.strip() for line in message.text):
                return message
    return None


def final_text(messages: Sequence[ShownMessage]) -> tuple[ShownMessage | None, list[str]]:
    """Take the last text that the agent addressed to the person, as plain text or through ``send_message``."""
    for message in reversed(messages):
        if message.role != "assistant":
            continue
        for call in reversed(message.calls):
            if call.name in _SPEAKING_TOOLS and (spoken := spoken_lines(call)):
                return message, spoken
        lines = [line for line in message.text if line.strip()]
        if lines:
            return message, lines
    return None, []


def trouble_of(
    transcript: Transcript, after: Sequence[ShownMessage], returns: Sequence[tuple[ShownMessage, ToolReturn]]
) -> Trouble | None:
    """Find what the run ended in: a run's error before a step's, before a person's no, before a tool's last error."""
    last = returns[-1] if returns else None
    failing = last if last is not None and last[1].status in ("error", "denied") else None
    for error in sorted(transcript.errors, key=lambda e: e.step_id is not None):
        text = f"{error.error_type}: {error.message}" if error.error_type else error.message
        kind: Literal["run_error", "step_error"] = "run_error" if error.step_id is None else "step_error"
        # The line itself is what shows the error; it is cited by the id in it.
        return Trouble(kind, text, error.step_id or error.run_id, first_line([error.line]), error.step_id)
    refusals = [(m, a) for m in after for a in m.approvals if a.approve is False]
    refused = {a.call_id for _, a in refusals}
    if last is not None and (last[1].status == "denied" or (failing and last[1].call_id in refused)):
        quote = first_line(last[1].lines)
        return Trouble("denied", "a person denied the call", last[0].message_id, quote, last[0].step_id)
    if refusals and (last is None or last[0].index < refusals[-1][0].index):
        message, approval = refusals[-1]
        quote = first_line([approval.reason])
        return Trouble("denied", "a person denied the call", message.message_id, quote, message.step_id)
    if failing is not None:
        text = first_line(failing[1].lines) or "the last tool return was an error"
        quote = first_line(failing[1].lines)
        return Trouble("tool_error", text, failing[0].message_id, quote, failing[0].step_id)
    return None


# ---- requirements -------------------------------------------------------------------------------------------------


def requirements_of(task: ShownMessage | None) -> list[str]:
    """Make one requirement of each sentence or question of the task, greetings left out, seven at most."""
    if task is None:
        return ["The run has a task that a person stated (simulated: none was found)."]
    sentences: list[str] = []
    for line in task.text:
        for piece in _SENTENCE_END.split(_BULLET.sub("", line).strip()):
            sentence = piece.strip()
            if _WORD.search(sentence) and not _GREETING.match(sentence):
                sentences.append(shortened(sentence, 300))
        if len(sentences) >= MAX_REQUIREMENTS:
            break
    if not sentences:
        sentences = [shortened(" ".join(" ".join(task.text).split()), 300)]
    return list(dict.fromkeys(sentences))[:MAX_REQUIREMENTS]


def requirement(statement: str, found: Findings) -> dict[str, object]:
    """Judge one requirement: its status, the rule that gave it, and a verbatim quote where there is one."""
    status, reason, evidence = status_of(statement, found)
    return {
        "statement": statement,
        "kind": "answer" if _TEXT_IS_THE_DELIVERABLE.search(statement) else "action",
        "evidence": evidence,
        "reasoning": REASONING_MARK + reason,
        "status": status,
    }


def status_of(statement: str, found: Findings) -> tuple[Status, str, list[dict[str, str]]]:
    """Decide: trouble at the end → unmet; a final text after tools that succeeded → met; else evidence is lacking."""
    if found.task is None:
        return "insufficient_evidence", "no message of a person states a task", []
    if found.trouble is not None:
        return "unmet", f"the run ended in trouble ({found.trouble.kind})", trouble_evidence(found.trouble)
    if found.answer is None:
        return "insufficient_evidence", "there is no text of the agent after the task, and no error", []
    if found.unanswered:
        return "insufficient_evidence", f"the call of {found.unanswered[-1].name} has no return", []
    if found.returns:
        evidence = closest(statement, found.quotable)
        if evidence:
            return "met", "the last tool return was no error and a final text follows", evidence
        return "insufficient_evidence", "the tools returned no text that could be cited", []
    if _TEXT_IS_THE_DELIVERABLE.search(statement):
        spoken = [(found.answer, quote) for quote in islice(quotes(found.answer_lines), QUOTED_LINES)]
        evidence = closest(statement, spoken)
        if evidence:
            return "met", "no tool was needed, and the agent's text is itself what was asked for", evidence
    return "insufficient_evidence", "an agent's own closing words prove nothing, and no tool was used", []


# ---- failure ------------------------------------------------------------------------------------------------------


def failure(found: Findings, statuses: Sequence[str]) -> dict[str, object] | None:
    """Attribute the failure by the text of the error; None if no requirement is unmet."""
    trouble = found.trouble
    if trouble is None or "unmet" not in statuses:
        return None
    owner, mode, other_mode = owner_and_mode(trouble)
    return {
        "evidence": trouble_evidence(trouble),
        "reasoning": f"{REASONING_MARK}the words of the {trouble.kind} decide: {shortened(trouble.text, 160)}",
        "owner": owner,
        "mode": mode,
        "other_mode": other_mode,
        "first_wrong_step": trouble.step_id,
    }


def owner_and_mode(trouble: Trouble) -> tuple[str, str, str | None]:
    """Look up the error's text in the failure table; a denial is the user's, anything else belongs to its source."""
    if trouble.kind == "denied":
        return "user", "other", "simulated rule: a person denied a tool call"
    raiser = {"tool_error": "tool", "step_error": "llm_provider", "run_error": "llm_provider"}[trouble.kind]
    for owner, mode, pattern in FAILURE_TABLE:
        if re.search(pattern, trouble.text, re.IGNORECASE):
            return owner or raiser, mode, None
    if trouble.kind == "tool_error":
        return "tool", "tool_error", None
    return "infrastructure", "other", f"simulated rule: unlisted {trouble.kind}"


# ---- ratings, labels, texts ---------------------------------------------------------------------------------------


def learning(transcript: Transcript, found: Findings, statuses: Sequence[str]) -> dict[str, object]:
    """Rate from counts alone: messages, requirements and tools, distinct tools, tool errors recovered from."""
    messages, calls, tools = len(transcript.messages), len(found.calls), len({c.name for _, c in found.calls})
    met = bool(statuses) and all(status == "met" for status in statuses)
    return {
        "reasoning": (
            f"{REASONING_MARK}counted {messages} messages, {calls} tool calls of {tools} tools, "
            f"{found.recovered} tool errors recovered from"
        ),
        "interaction_depth": _rank(messages, (3, 6, 11, 21)),
        "task_complexity": _rank(len(statuses) + 2 * tools, (3, 5, 8, 12)),
        "tool_use": min(5, _rank(calls, (1, 3, 6, 99)) + (tools > 1) + (found.recovered > 0)) if calls else 1,
        "reference_value": (3 if met else 1) + (calls > 0) + (found.recovered > 0 or (met and tools > 1)),
    }


def key_decisions(found: Findings) -> list[dict[str, str]]:
    """Take each tool call made within a step as a decision, with its first line of reasoning."""
    decisions: list[dict[str, str]] = []
    for message, call in found.calls:
        if message.step_id is None:
            continue
        decisions.append(
            {
                "step_id": message.step_id,
                "choice": f"Called {call.name}({shortened(call.arguments, 120)})",
                "reason_given": first_line(message.reasoning) or "simulated rule: no reasoning stands beside the call",
            }
        )
        if len(decisions) == MAX_DECISIONS:
            break
    return decisions


def summary(found: Findings, statuses: Sequence[str]) -> str:
    """Write two paragraphs: what was wanted and with which tools it was approached; what came of it."""
    wanted = first_line(found.task.text) if found.task else None
    tools = list(dict.fromkeys(c.name for _, c in found.calls))
    more = [f"and {len(tools) - 8} more"] if len(tools) > 8 else []
    approach = f"The agent called {', '.join([*tools[:8], *more])}." if tools else "The agent used no tool."
    counts = Counter(statuses)
    tally = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    trouble = found.trouble and shortened(found.trouble.text, 200)
    ending = f"It ended in trouble: {trouble}." if trouble else "No error stands at its end."
    closing = first_line(found.answer_lines)
    words = f' Its last words: "{closing}"' if closing else " It left no final text."
    return (
        f'{SUMMARY_MARK}What was wanted: "{wanted or "nothing that was found"}". {approach}\n\n'
        f"Of {len(statuses)} requirements: {tally}. {ending}{words}"
    )


def lesson(found: Findings, statuses: Sequence[str]) -> str | None:
    """Draw a lesson only where something failed."""
    if found.trouble is None or "unmet" not in statuses:
        return None
    _, mode, other = owner_and_mode(found.trouble)
    return f"{REASONING_MARK}expect {other or mode.replace('_', ' ')} here, and check for it before promising a result."


def tags(found: Findings) -> list[str]:
    """Tag with the tools' names, then the task's most frequent words, three at least and seven at most."""
    names = [c.name.lower() for _, c in found.calls]
    text = " ".join(found.task.text)[:20_000] if found.task else ""
    counted = Counter(w for w in (m.group().lower() for m in _WORD.finditer(text)) if w not in _COMMON_WORDS)
    frequent = [word for word, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    chosen = list(dict.fromkeys([*dict.fromkeys(names), *frequent]))[:5]
    return list(dict.fromkeys([*chosen, "simulated", "agent-run", "trajectory"]))[: max(MIN_TAGS, len(chosen))]


def task_category(statements: Sequence[str]) -> str:
    """Return the category with most matches in the task; the first one in a tie."""
    text = "\n".join(statements)
    best, most = "other", 0
    for category, pattern in CATEGORY_TABLE:
        hits = len(re.findall(pattern, text, re.IGNORECASE))
        # Questions and greetings come with tasks of every kind: they decide only where nothing else does.
        if category in ("question_answering", "conversation"):
            hits = min(hits, 1)
        if hits > most:
            best, most = category, hits
    return best


# ---- quoting ------------------------------------------------------------------------------------------------------


def _rank(count: int, steps: Iterable[int]) -> int:
    return 1 + sum(count >= step for step in steps)


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)} - _COMMON_WORDS


def trouble_evidence(trouble: Trouble) -> list[dict[str, str]]:
    """Cite what shows the trouble."""
    if trouble.cited is None or not trouble.quote:
        return []
    return [{"message_id": trouble.cited, "quote": trouble.quote}]


def first_line(lines: Iterable[str]) -> str | None:
    """Return the first line that can be cited."""
    return next(quotes(lines), None)


def quotes(lines: Iterable[str]) -> Iterator[str]:
    """Return of each line what can be cited: whole sentences; what a renderer left out is never part of a quote."""
    for line in lines:
        shown = _ELISION.split(line, maxsplit=1)[0] if "…" in line or "[..." in line else line
        quote = _whole_sentences(shown.strip())
        if any(c.isalnum() for c in quote):
            yield quote


def _whole_sentences(text: str) -> str:
    """Return a text, or its first sentences: no mark may stand in a quote, so that none may end within a sentence."""
    if len(text) <= MAX_QUOTE:
        return text
    ends = [found.start() for found in _SENTENCE_END.finditer(text[: MAX_SENTENCE + 1])]
    if len(text) <= MAX_SENTENCE:
        ends.append(len(text))
    long_enough = [end for end in ends if end >= MAX_QUOTE // 2]
    if long_enough:
        return text[: long_enough[0]].strip()
    values = [found.start() for found in _VALUE_END.finditer(text[: MAX_QUOTE + 1])]
    return text[: max(values, default=MAX_QUOTE)].strip()


def shortened(text: str, longest: int) -> str:
    """Return a text, or its beginning with a mark that it goes on."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()} …"


def _quotable(
    returns: Sequence[tuple[ShownMessage, ToolReturn]], calls: Sequence[tuple[ShownMessage, ToolCall]]
) -> list[tuple[ShownMessage, str]]:
    """Collect what could be cited: some lines of each of the latest returns that were no error, latest return first.

    A line that only repeats what was written in a call is no evidence and is left out.
    """
    written = plain("\n".join(call.arguments for _, call in calls))
    return [
        (message, quote)
        for message, back in reversed(returns[-QUOTED_RETURNS:])
        if back.status not in ("error", "denied")
        for quote in islice(quotes(back.lines), QUOTED_LINES)
        if is_evidence(quote, written)
    ]


def plain(text: str) -> str:
    """Return the letters and digits of a text, in lower case."""
    return "".join(_LETTERS.findall(_ESCAPED.sub(" ", text).lower()))


def is_evidence(quote: str, written: str) -> bool:
    """Whether a line of a return says something that was not written in a call, and more than a word such as "OK"."""
    said = plain(quote)
    return said not in written and len(said) >= (_FEWEST_DIGITS if any(c.isdigit() for c in said) else _FEWEST_LETTERS)


def closest(statement: str, quotable: Sequence[tuple[ShownMessage, str]]) -> list[dict[str, str]]:
    """Cite the line that shares most words with the requirement; the first one in a tie."""
    words = _words(statement)
    best, best_score = None, -1
    for message, quote in quotable:
        text = quote.lower()
        score = sum([word in text for word in words])
        if score > best_score:
            best, best_score = {"message_id": message.message_id, "quote": quote}, score
    return [best] if best is not None else []


def spoken_lines(call: ToolCall) -> list[str]:
    """Return the words spoken through ``send_message``, in pieces that stand verbatim in the call's JSON text."""
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        return []
    words = arguments.get("message") if isinstance(arguments, Mapping) else None
    if not isinstance(words, str):
        return []
    return [piece for piece in re.split(r'["\\\n\r\t]+', words) if piece.strip() and piece in call.arguments]
