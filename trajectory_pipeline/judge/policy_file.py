"""Reads a policy file: which judges vote, how often, when a second step is asked, and how votes are combined."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.judge.config import JudgeConfig, Voter
from trajectory_pipeline.judge.policy import VotingRule
from trajectory_pipeline.judge.prompt_files import load_prompt
from trajectory_pipeline.schema.enums import CombineBy, EscalateWhen, JudgeKind
from trajectory_pipeline.urls import check_endpoint_url

_SETTING = "TRAJECTORY_JUDGE_POLICY"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JudgeEntry(_Strict):
    """One judge that votes.

    Attributes:
        base_url: of its provider; None for that of the settings.
        api_key_env: the environment variable with its key; None for that of the settings.
        kind: a text judge, or a decision endpoint that decides on the requirements of the first text judge.
        samples: votes that it gives.
        escalated: whether it is asked only where the first step says so.
        prompt: the folder of its own texts and answer schema, from the folder of the policy file on.
    """

    model: str = Field(min_length=1)
    base_url: Annotated[str, AfterValidator(check_endpoint_url)] | None = None
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False)
    max_prompt_tokens: int | None = Field(default=None, ge=8000)
    max_response_tokens: int | None = Field(default=None, ge=500)
    kind: JudgeKind = JudgeKind.TEXT
    samples: int = Field(default=1, ge=1, le=25)
    escalated: bool = False
    prompt: Path | None = None


class PolicyFile(_Strict):
    """What the file holds. See docs/judges.md for an example.

    Attributes:
        combine: what is decided by majority: outcomes, or requirements.
        escalate_when: the escalated judges are asked where one of these holds for the first step.
        unsure_below: what counts as ``unsure``: a confidence or an agreement below it.
    """

    judges: list[JudgeEntry] = Field(min_length=1, max_length=9)
    combine: CombineBy = CombineBy.OUTCOME
    escalate_when: list[EscalateWhen] = Field(default_factory=list)
    unsure_below: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        escalated = [judge.escalated for judge in self.judges]
        if all(escalated):
            raise ValueError("every judge is escalated: at least one must be asked first")
        decisions = [judge for judge in self.judges if judge.kind == JudgeKind.DECISIONS]
        if decisions and (self.judges[0].kind != JudgeKind.TEXT or self.judges[0].escalated):
            raise ValueError("a judge of kind 'decisions' needs a text judge before it, which states the requirements")
        if any(judge.escalated or judge.samples > 1 for judge in decisions):
            raise ValueError("a judge of kind 'decisions' votes once, in the first step")
        if any(escalated) != bool(self.escalate_when):
            raise ValueError(
                "judges with escalated = true and the list escalate_when belong together: give both, or neither"
            )
        if any(judge.prompt is not None for judge in decisions):
            raise ValueError("a judge of kind 'decisions' has no prompt: its questions are the requirements")
        if (self.unsure_below is not None) != (EscalateWhen.UNSURE in self.escalate_when):
            raise ValueError("unsure_below belongs to 'unsure' in escalate_when: give both, or neither")
        return self


def load_policy_file(path: Path) -> PolicyFile:
    """Read a policy file, JSON or TOML by its name.

    Raises:
        SettingsError: it cannot be read, or is wrong; the text says where.
    """
    readers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise SettingsError(f"The policy file {path} ({_SETTING}) must be a .json or a .toml file.")
    try:
        file = PolicyFile.model_validate(read(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"The policy file {path} ({_SETTING}) cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the whole'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise SettingsError(f"The policy file {path} ({_SETTING}) is wrong at {problems}.") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"The policy file {path} ({_SETTING}) cannot be read: {error}.") from None
    judges = [
        judge if judge.prompt is None else judge.model_copy(update={"prompt": path.parent / judge.prompt})
        for judge in file.judges
    ]
    return file.model_copy(update={"judges": judges})


def with_policy(base: JudgeConfig, file: PolicyFile, environment: Mapping[str, str]) -> JudgeConfig:
    """Return the judge that a policy file describes; what it does not say is as in ``base``.

    A single judge with a single vote has the same policy as one that the settings name. The key of the settings goes to
    the endpoint of the settings alone.

    Raises:
        SettingsError: a key is missing, a judge is named twice, or a prompt cannot be used.
    """
    voters: tuple[Voter, ...] = ()
    for entry in file.judges:
        judge = _judge(base, entry, environment)
        if entry.kind == JudgeKind.DECISIONS:
            judge = replace(judge, statements_from=voters[0])
        voters += (Voter(judge, entry.samples, entry.escalated),)
    policies = [voter.judge.policy for voter in voters]
    twice = next((policy for policy in policies if policies.count(policy) > 1), None)
    if twice is not None:
        raise SettingsError(
            f"The policy file ({_SETTING}) names {twice.model} twice with the same parameters: give it `samples`"
            " instead."
        )
    first = next(voter for voter in voters if not voter.escalated)
    if len(voters) == 1 and first.samples == 1:
        return first.judge
    return replace(
        first.judge,
        voters=voters,
        rule=VotingRule(file.combine, tuple(file.escalate_when), file.unsure_below),
    )


def _judge(base: JudgeConfig, entry: JudgeEntry, environment: Mapping[str, str]) -> JudgeConfig:
    key = base.api_key if entry.base_url is None else "not-needed"
    if entry.api_key_env is not None:
        key = environment.get(entry.api_key_env, "").strip()
        if not key:
            raise SettingsError(
                f"The policy file ({_SETTING}) takes the key of {entry.model} from the environment variable"
                f" {entry.api_key_env}, which is not set."
            )
    judge = replace(
        base,
        model=entry.model,
        base_url=entry.base_url or base.base_url,
        api_key=key,
        temperature=entry.temperature,
        max_prompt_tokens=entry.max_prompt_tokens or base.max_prompt_tokens,
        max_response_tokens=entry.max_response_tokens or base.max_response_tokens,
        prompt=base.prompt if entry.prompt is None else load_prompt(entry.prompt),
    )
    tokens = judge.prompt.overhead_tokens
    if entry.prompt is not None and 2 * tokens > judge.max_prompt_tokens:
        raise SettingsError(
            f"The prompt of {entry.model} ({entry.prompt}) takes {tokens} tokens without a transcript, by estimate:"
            f" more than half of the {judge.max_prompt_tokens} that a prompt may have. Shorten it, or raise"
            " max_prompt_tokens."
        )
    return judge
