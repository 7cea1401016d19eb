"""Which judge is called, how, for whose trajectories, and within which budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trajectory_pipeline.budget.caps import Budget, Cost
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.access_lists import UNRESTRICTED, JudgeAccessList
from trajectory_pipeline.judge.endpoint import JUDGE_ENDPOINT, Endpoint
from trajectory_pipeline.judge.policy import PROCESS_KEY, RefinementPolicy, VoterPolicy, VotingRule
from trajectory_pipeline.judge.prompt import JudgePrompt, built_in_prompt
from trajectory_pipeline.schema.enums import RedactionMode, ResponseFormatChoice

OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class JudgeConfig:
    """An endpoint that speaks the OpenAI chat API, the model to ask there, and the limits of asking.

    Attributes:
        temperature: not sent where the model rejects it.
        timeout_seconds: of one call.
        max_attempts: calls for one verdict, besides the repair turn and simpler request options.
        max_prompt_tokens: of one prompt, by estimate: it decides what is shortened.
        max_response_tokens: of one response: it bounds the price of a call.
        instructions_tokens: of what the agent was told, by estimate; ``earlier_turns_tokens`` of its earlier turns.
        response_format: ``auto`` begins with ``json_schema`` and takes the next simpler one when the server rejects it.
        requests_per_minute: of all workers together; None for no limit.
        tokens_per_minute: of all workers together, prompts and responses; None for no limit.
        breaker_after: consecutive failures of the provider after which no further call is made.
        first_pause_seconds: before the first retry, where the provider names no time; doubled with each failure.
        local_only: whether only a server on this machine may be called.
        concurrency: calls in flight at once.
        redaction_key: of placeholders; None for the one in the database.
        endpoint: how errors name it.
        statements_from: the text judge on whose requirements a decision endpoint decides; None for a text judge.
        voters: the judges that vote, where the policy has several votes; the other fields are then those of the first.
        rule: how their votes are combined.
        prompt: the texts that it is sent besides a trajectory, and the answer that it must give.
    """

    model: str
    base_url: str = field(repr=False)
    api_key: str = field(repr=False)
    temperature: float = 0.0
    timeout_seconds: float = 120.0
    max_attempts: int = 3
    max_prompt_tokens: int = 100_000
    max_response_tokens: int = 8000
    instructions_tokens: int = 6000
    earlier_turns_tokens: int = 2000
    response_format: ResponseFormatChoice = ResponseFormatChoice.AUTO
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    breaker_after: int = 8
    first_pause_seconds: float = 1.0
    local_only: bool = False
    concurrency: int = 16
    redaction: RedactionMode = RedactionMode.SECRETS
    redaction_key: bytes | None = field(default=None, repr=False)
    access: JudgeAccessList = UNRESTRICTED
    budget: Budget = field(default_factory=Budget)
    endpoint: Endpoint = JUDGE_ENDPOINT
    statements_from: "Voter | None" = None
    voters: tuple["Voter", ...] = ()
    rule: VotingRule = field(default_factory=VotingRule)
    prompt: JudgePrompt = field(default_factory=built_in_prompt, repr=False)

    @property
    def policy(self) -> RefinementPolicy:
        """The part that a verdict depends on."""
        return RefinementPolicy(
            " + ".join(voter.label for voter in self.voters) or self.model,
            self.temperature,
            self.max_prompt_tokens,
            self.max_response_tokens,
            self.redaction,
            self.redaction_key or PROCESS_KEY,
            None if self.statements_from is None else self.statements_from.judge.policy.policy_id,
            tuple(VoterPolicy(voter.judge.policy, voter.samples, voter.escalated) for voter in self.voters),
            self.rule,
            self.instructions_tokens,
            self.earlier_turns_tokens,
            self.prompt,
        )

    @property
    def asked(self) -> "Sequence[JudgeConfig]":
        """The judge of each vote that a verdict may take: this one alone where nobody votes."""
        return [voter.judge for voter in self.voters for _ in range(voter.samples)] or [self]

    def with_redaction_key(self, key: bytes) -> "JudgeConfig":
        """Return the same judge with a key of placeholders, its voters too."""
        voters = tuple(replace(voter, judge=voter.judge.with_redaction_key(key)) for voter in self.voters)
        stated = self.statements_from
        if stated is not None:
            stated = replace(stated, judge=stated.judge.with_redaction_key(key))
        return replace(self, redaction_key=key, voters=voters, statements_from=stated)

    @property
    def least_call_cost(self) -> Cost:
        """What a call costs at most whose transcript is empty: with less left of a budget, none is made."""
        return self.max_call_cost(self.prompt.overhead_tokens, self.max_response_tokens)

    def max_call_cost(self, prompt_tokens: int, answer_tokens: int) -> Cost:
        """Return what a call costs at most, or calls of so many tokens; see ``Budget.max_call_cost``."""
        return self.budget.max_call_cost(self.model, self.base_url, prompt_tokens, answer_tokens)

    def require_price(self) -> None:
        """Raise JudgeError where a model has no known price, and that is not allowed."""
        for judge in self.asked:
            judge.budget.require_price(judge.model, judge.base_url)

    def require_batch_price(self) -> None:
        """Raise JudgeError where the mode ``batch`` cannot be priced, or the policy cannot be asked in it."""
        if self.voters:
            raise JudgeError(
                "A policy with several votes cannot be judged in batches, because a vote may depend on the ones before:"
                " set TRAJECTORY_JUDGE_MODE=online."
            )
        self.budget.require_batch_price(self.model, self.base_url)


@dataclass(frozen=True)
class Voter:
    """A judge that votes, how often it does, and whether only after an escalation."""

    judge: JudgeConfig
    samples: int = 1
    escalated: bool = False

    @property
    def label(self) -> str:
        """The model, and how often it votes."""
        return self.judge.model if self.samples == 1 else f"{self.judge.model} ×{self.samples}"
