"""The findings of the simulated judge for one part of a transcript that is too long for one prompt."""

from itertools import islice

from trajectory_pipeline.demo.simulated_judge.rules import (
    REASONING_MARK,
    SUMMARY_MARK,
    Answer,
    findings,
    first_line,
    trouble_evidence,
)
from trajectory_pipeline.demo.simulated_judge.transcript import Transcript

MAX_FINDINGS = 12


def findings_in_window(transcript: Transcript) -> Answer:
    """Cite how the part ends, what its latest tools returned, and the agent's last text."""
    found = findings(transcript)
    cited: list[tuple[str, dict[str, str]]] = []
    if found.trouble is not None:
        cited += [(f"it ends in trouble ({found.trouble.kind})", one) for one in trouble_evidence(found.trouble)]
    latest: dict[str, str] = {}
    for message, quote in found.quotable:
        latest.setdefault(message.message_id, quote)
    cited += [
        ("a tool returned this", {"message_id": name, "quote": quote})
        for name, quote in islice(latest.items(), MAX_FINDINGS - 2)
    ]
    if found.answer is not None and (words := first_line(found.answer_lines)):
        cited.append(("the agent said this last", {"message_id": found.answer.message_id, "quote": words}))
    return {
        "findings": [{"evidence": [one], "finding": REASONING_MARK + words} for words, one in cited[:MAX_FINDINGS]],
        "account": f"{SUMMARY_MARK}{len(found.calls)} tool calls and {len(found.returns)} returns stand in this part.",
    }
