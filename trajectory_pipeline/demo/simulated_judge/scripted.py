"""The model ``scripted-judge``: gives the hand-written labels of the sample's runs as verdicts, with quotes from them.

It shows what verdicts look like where a judge is right. It knows only the labelled runs: of any other run it says that
no label is written for it.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_LABELS
from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, LABELS_FILE, label_records
from trajectory_pipeline.demo.simulated_judge.rules import (
    MAX_TAGS,
    Answer,
    findings,
    is_evidence,
    key_decisions,
    plain,
    quotes,
    spoken_lines,
    task_category,
)
from trajectory_pipeline.demo.simulated_judge.transcript import ShownMessage, Transcript

SCRIPT_MARK = "[scripted judge: a person's label]"
"""At the end of a summary: lists show its beginning, where the task and the reason stand."""
_REASONING = "scripted: a person's label says so"

_TERM = re.compile(r"\d[\d.,:]*\d|\w{3,}")

Label = Mapping[str, Any]
Quotes = list[tuple[ShownMessage, str]]


def scripted_answer(transcript: Transcript) -> Answer:
    """Return the label of the judged run as an answer: each statement with its status and quotes from its evidence."""
    run_id = _judged_run(transcript)
    label = _label_of(run_id, transcript) or _no_label(run_id)
    found = findings(transcript)
    shown = _Shown(transcript)
    statements = [requirement["statement"] for requirement in label["requirements"]]
    return {
        "requirements": [_requirement(requirement, shown) for requirement in label["requirements"]],
        "failure": _failure(label, shown),
        "learning": {"reasoning": _REASONING, **label["learning"]},
        "key_decisions": key_decisions(found),
        "summary": f"{label['task']}\n\n{label['rationale']} {SCRIPT_MARK}",
        "lesson": None if label["outcome"] == "success" else label["rationale"],
        "tags": _tags(label, found.calls),
        "task_category": task_category([label["task"], *statements]),
    }


def _judged_run(transcript: Transcript) -> str | None:
    """Return the run of the last thing that is shown: earlier runs of its chain come before it."""
    if transcript.messages:
        return transcript.messages[-1].run_id
    return next((error.run_id for error in transcript.errors if error.run_id), None)


def _label_of(run_id: str | None, transcript: Transcript) -> Label | None:
    """Return the label of a run, with ids as the transcript shows them; of several, the one whose evidence is shown."""
    if run_id is None:
        return None
    shown = {message.message_id for message in transcript.messages}
    size = len(run_id)
    found = [
        _shortened(label, size)
        for file in (LABELS_FILE, LETTA_CODE_LABELS)
        for name, label in label_records(FIRST_ANNOTATOR, file).items()
        if run_id in (name, _short(name, size))
    ]
    return max(found, key=lambda label: _evidence_shown(label, shown), default=None)


def _evidence_shown(label: Label, shown: AbstractSet[str]) -> int:
    return sum(not shown.isdisjoint(requirement["evidence"]) for requirement in label["requirements"])


def _shortened(label: Label, length: int) -> Label:
    requirements = [
        {**requirement, "evidence": [_short(name, length) for name in requirement["evidence"]]}
        for requirement in label["requirements"]
    ]
    step = label["first_wrong_step"]
    return {**label, "requirements": requirements, "first_wrong_step": step and _short(step, length)}


def _short(name: str, length: int) -> str:
    """Return an id as a transcript shows it: by so many hex digits, or whole."""
    return name if length >= len(name) else name.partition("-")[2].replace("-", "")[:length]


def _no_label(run_id: str | None) -> Label:
    return {
        "task": f"No label is written for {run_id or 'this run'}.",
        "outcome": "unknown",
        "requirements": [
            {"statement": "The run has a label", "status": "insufficient_evidence", "evidence": []},
        ],
        "failure_owner": "none",
        "failure_mode": "none",
        "first_wrong_step": None,
        "family": "no_label",
        "learning": dict.fromkeys(("interaction_depth", "task_complexity", "tool_use", "reference_value"), 1),
        "rationale": "The scripted judge knows only the labelled runs of the sample.",
    }


class _Shown:
    """What can be quoted of each message and error line, by the id that a citation names."""

    def __init__(self, transcript: Transcript) -> None:
        self.returns: dict[str, Quotes] = {}
        self.texts: dict[str, Quotes] = {}
        self.other: dict[str, Quotes] = {}
        self.returned_to: dict[str, Quotes] = {}
        """By the message with the call: what the tool returned to it."""
        callers = {call.call_id: message for message in transcript.messages for call in message.calls}
        written: list[str] = []
        for message in transcript.messages:
            earlier = plain("\n".join(written))
            for back in message.returns:
                caller = callers.get(back.call_id, message)
                lines = [quote for quote in quotes(back.lines) if is_evidence(quote, earlier)]
                if back.status not in ("error", "denied"):
                    self._add(self.returns, message, lines)
                    self._add(self.returned_to, message, lines, caller.message_id)
                self._add(self.other, message, quotes(back.lines))
            spoken = chain.from_iterable(spoken_lines(call) for call in message.calls)
            self._add(self.texts, message, quotes([*message.text, *spoken]))
            self._add(self.other, message, quotes([approval.reason for approval in message.approvals]))
            self._add(self.other, message, quotes(call.arguments for call in message.calls))
            written += [*message.text, *(call.arguments for call in message.calls)]
        for error in transcript.errors:
            line = ShownMessage(0, error.step_id or error.run_id or "", "", "", error.step_id, error.run_id)
            self._add(self.other, line, quotes([error.line]))

    def cite(self, ids: Iterable[str], statement: str, *kinds: Mapping[str, Quotes]) -> list[dict[str, str]]:
        """Cite, of each id, the line of the first of these kinds that shares most terms with the statement."""
        lines = (next((kind[name] for kind in kinds if kind.get(name)), []) for name in ids)
        return [_closest(statement, candidates) for candidates in lines if candidates]

    @staticmethod
    def _add(to: dict[str, Quotes], message: ShownMessage, lines: Iterable[str], key: str | None = None) -> None:
        to.setdefault(key or message.message_id, []).extend((message, line) for line in lines)


def _closest(statement: str, lines: Quotes) -> dict[str, str]:
    """Cite the line that shares most words and numbers with the statement; of these the longest."""
    terms = _terms(statement)
    message, quote = max(lines, key=lambda line: (len(terms & _terms(line[1])), len(line[1])))
    return {"message_id": message.message_id, "quote": quote}


def _terms(text: str) -> set[str]:
    return {term.lower().rstrip("s") for term in _TERM.findall(text)}


def _requirement(label: Label, shown: _Shown) -> Answer:
    statement, status, ids = label["statement"], label["status"], label["evidence"]
    # What was done is shown by tools, what was said by the agent's own text: an answer rests on one of them.
    evidence = shown.cite(ids, statement, shown.returns)
    if not evidence and not any(shown.texts.get(name) for name in ids):
        evidence = shown.cite(ids, statement, shown.returned_to)
    kind = "action" if evidence else "answer"
    if not evidence or status != "met":
        evidence = shown.cite(ids, statement, shown.texts, shown.returns, shown.other)
    if status == "not_applicable" and not evidence:
        first = next(iter(shown.texts), None)
        evidence = shown.cite([first] if first else [], statement, shown.texts)
    return {"statement": statement, "kind": kind, "evidence": evidence, "reasoning": _REASONING, "status": status}


def _failure(label: Label, shown: _Shown) -> Answer | None:
    if label["failure_owner"] == "none":
        return None
    unmet = [requirement for requirement in label["requirements"] if requirement["status"] == "unmet"]
    evidence = [
        citation
        for requirement in unmet
        for citation in shown.cite(
            requirement["evidence"], requirement["statement"], shown.other, shown.returns, shown.texts
        )
    ]
    return {
        "evidence": evidence[:3],
        "reasoning": label["rationale"],
        "owner": label["failure_owner"],
        "mode": label["failure_mode"],
        "other_mode": label.get("other_mode"),
        "first_wrong_step": label["first_wrong_step"],
    }


def _tags(label: Label, calls: Iterable[tuple[ShownMessage, Any]]) -> list[str]:
    tools = (call.name.lower() for _, call in calls)
    tags = list(dict.fromkeys([label["family"], *tools, "scripted", "agent-run", "trajectory"]))
    return tags[:MAX_TAGS]
