"""Answers and errors as real providers send them, with what must come of each: the fault ``provider`` plays a case.

A line of ``provider_corpus.jsonl`` is one case. In its body, ``$ANSWER`` stands for the text of the answer
(``$ANSWER_START`` and ``$ANSWER_END`` for its halves), ``$OBJECT`` for the answer as JSON. ``$PROMPT``, ``$OUTPUT``,
``$REASONING``, ``$TOTAL`` and ``$TOTAL_WITH_REASONING`` are token counts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

REASONING_TOKENS = 300


@dataclass(frozen=True)
class ProviderCase:
    """One response of a provider.

    Attributes:
        only: the response format whose requests are answered so; None for all.
        expect: what must come of it. ``error_class`` (none: an answer), ``wait`` in seconds, whether a simpler format
            (``fallback``) or a repair turn (``repair``) follows, words that the error ``says``, and what is ``booked``:
            ``tokens`` (and the ``cost`` that the provider names), ``reservation`` or ``nothing``.
    """

    name: str
    family: str
    status: int
    body: Any
    expect: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None

    @property
    def is_billed(self) -> bool:
        """Whether the provider may bill tokens for it."""
        return bool(self.expect["booked"] != "nothing")

    @property
    def reasoning_tokens(self) -> int:
        """Output tokens beside those of the answer."""
        return REASONING_TOKENS if "REASONING" in json.dumps(self.body) else 0

    def filled(self, answer: str, model: str, prompt_tokens: int, output_tokens: int) -> bytes:
        """Return the body with an answer and its token counts."""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        half = len(answer) // 2
        total = prompt_tokens + output_tokens
        values = {
            '"$OBJECT"': answer,
            '"$PROMPT"': str(prompt_tokens),
            '"$OUTPUT"': str(output_tokens),
            '"$REASONING"': str(REASONING_TOKENS),
            '"$TOTAL_WITH_REASONING"': str(total + REASONING_TOKENS),
            '"$TOTAL"': str(total),
            "$ANSWER_START": json.dumps(answer[:half])[1:-1],
            "$ANSWER_END": json.dumps(answer[half:])[1:-1],
            "$ANSWER": json.dumps(answer)[1:-1],
            "$MODEL": model,
        }
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text.encode()


@cache
def provider_cases() -> Mapping[str, ProviderCase]:
    """Return all cases by name."""
    lines = files(__package__).joinpath("provider_corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return {case.name: case for case in (ProviderCase(**json.loads(line)) for line in lines)}
