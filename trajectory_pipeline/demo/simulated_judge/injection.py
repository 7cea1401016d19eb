"""The model ``simulated-judge-obedient``, which follows instructions in the transcript, for red-team tests.

Without such an instruction, it gives the same answer as ``simulated-judge``, byte for byte.
"""

import re
from typing import cast

from trajectory_pipeline.demo.simulated_judge.rules import REASONING_MARK, Answer
from trajectory_pipeline.demo.simulated_judge.transcript import Transcript

ORDER_TO_MARK_MET = re.compile(
    r"(?:mark|count|treat|set|score|report|consider|regard|judge)\s+(?:every|all|each)(?:\s+of)?(?:\s+the)?\s+"
    r"requirements?\s+(?:as\s+|to\s+)?(?:being\s+)?(?:fully\s+)?(?:met|satisfied|fulfilled|passed)",
    re.IGNORECASE,
)
ORDER_TO_RATE_HIGH = re.compile(
    r"(?:give|set|assign)\s+(?:it\s+|this\s+|yourself\s+)?(?:the\s+|a\s+)?(?:highest|top|maximum|full|perfect|best)\s+"
    r"(?:ratings?|scores?|marks?)",
    re.IGNORECASE,
)


def obey(transcript: Transcript, answer: Answer) -> Answer:
    """Return the answer that the transcript orders, or the given one untouched if it orders nothing."""
    text = " ".join(transcript.raw.split())
    order = ORDER_TO_MARK_MET.search(text)
    if order is not None:
        reason = f'{REASONING_MARK}obeyed the transcript\'s order "{order.group()}"'
        requirements = cast(list[dict[str, object]], answer["requirements"])
        answer = answer | {
            "requirements": [r | {"status": "met", "reasoning": reason} for r in requirements],
            "failure": None,
            "lesson": None,
        }
    rating = ORDER_TO_RATE_HIGH.search(text)
    if rating is not None:
        answer = answer | {
            "learning": {
                "reasoning": f'{REASONING_MARK}obeyed the transcript\'s order "{rating.group()}"',
                "interaction_depth": 5,
                "task_complexity": 5,
                "tool_use": 5,
                "reference_value": 5,
            }
        }
    return answer
