"""The judging policy: everything that a verdict depends on besides the trajectory."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trajectory_pipeline.judge.prompt import JudgePrompt, built_in_prompt
from trajectory_pipeline.judge.redaction.redactor import REDACTION_VERSION
from trajectory_pipeline.judge.transcript.messages import RENDERER_VERSION
from trajectory_pipeline.schema.enums import CombineBy, EscalateWhen, RedactionMode

PROCESS_KEY = secrets.token_bytes(32)
"""Key of placeholders where no other is given: they are the same within this process alone."""


DECISIONS_VERSION = "1"
"""Goes up with any change of the questions to a decision endpoint."""
VOTING_VERSION = "1"
"""Goes up with any change of how votes are combined."""


@dataclass(frozen=True)
class VotingRule:
    """How the votes of several judges become one verdict; see ``judge.votes``.

    Attributes:
        combine: what is decided by majority.
        escalate_when: the escalated judges are asked where one of these holds.
        unsure_below: the bound of ``unsure``.
    """

    combine: CombineBy = CombineBy.OUTCOME
    escalate_when: tuple[EscalateWhen, ...] = ()
    unsure_below: float | None = None


@dataclass(frozen=True)
class VoterPolicy:
    """The policy of one judge that votes, how often it does, and whether only after an escalation."""

    policy: "RefinementPolicy"
    samples: int
    escalated: bool


@dataclass(frozen=True)
class RefinementPolicy:
    """Judge model and parameters, and the versions of all that shapes its response.

    ``max_prompt_tokens``, an estimate, decides what is shortened, as ``instructions_tokens`` (of instructions, memory
    and tools) and ``earlier_turns_tokens`` do. ``redaction_key`` is not a part of the policy.
    ``statements_from`` is the policy whose requirements a decision endpoint decides on, where that is asked.
    Where several judges vote, ``voters`` has the policy of each, under which its votes are stored.
    """

    model: str
    temperature: float = 0.0
    max_prompt_tokens: int = 100_000
    max_response_tokens: int = 8000
    redact: RedactionMode = RedactionMode.SECRETS
    redaction_key: bytes = field(default=PROCESS_KEY, repr=False, compare=False)
    statements_from: str | None = None
    voters: tuple[VoterPolicy, ...] = ()
    rule: VotingRule = field(default_factory=VotingRule)
    instructions_tokens: int = 6000
    earlier_turns_tokens: int = 2000
    prompt: JudgePrompt = field(default_factory=built_in_prompt, repr=False)

    @property
    def definition(self) -> dict[str, Any]:
        """Every part, by name: the whole of what the policy's id is made of."""
        if self.voters:
            return {
                "judges": [
                    {"policy": voter.policy.definition, "samples": voter.samples, "escalated": voter.escalated}
                    for voter in self.voters
                ],
                "combine": self.rule.combine,
                "escalate_when": sorted(self.rule.escalate_when),
                "unsure_below": self.rule.unsure_below,
                "voting": VOTING_VERSION,
            }
        return {
            "model": self.model,
            "parameters": {
                "temperature": self.temperature,
                "max_prompt_tokens": self.max_prompt_tokens,
                # Not named as the field is: the key is hashed into the policy's id, and so into every verdict key.
                "max_answer_tokens": self.max_response_tokens,
                "instructions_tokens": self.instructions_tokens,
                "earlier_turns_tokens": self.earlier_turns_tokens,
            },
            "prompt": self.prompt.version,
            "rubric": self.prompt.rubric_version,
            "response_schema": self.prompt.answer_version,
            "renderer": RENDERER_VERSION,
            "redaction": {"version": REDACTION_VERSION, "mode": self.redact},
            **(
                {"decisions": DECISIONS_VERSION, "statements_from": self.statements_from}
                if self.statements_from
                else {}
            ),
        }

    @property
    def policy_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the definition."""
        return hashlib.sha256(json.dumps(self.definition, sort_keys=True).encode()).hexdigest()[:16]


def verdict_key(
    content_digests: Sequence[str],
    policy: RefinementPolicy,
    repetition: int = 0,
    *,
    conversation_digests: Sequence[str] = (),
    context_digest: str | None = None,
) -> str:
    """Return what "already paid for" means: a hash of the policy and of all that is shown.

    That is the runs of the task, the judged one last; as context, earlier runs of the conversation, and what the agent
    was told. A repetition judges the same content once more; 0 is the verdict itself, and leaves no trace in the key.
    """
    shown = [*content_digests, *(f"earlier {digest}" for digest in conversation_digests)]
    if context_digest is not None:
        shown.append(f"told {context_digest}")
    parts = [*shown, policy.policy_id, *([str(repetition)] if repetition else [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
