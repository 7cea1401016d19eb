"""The judge and the embedding model that the settings name, and what is redacted before either sees a text.

Each function imports what it needs: a process that loads definitions or prints a help text needs none of it.
"""

import os
from typing import TYPE_CHECKING

from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.schema.enums import Egress
from trajectory_pipeline.settings import BudgetSettings, EmbeddingSettings, JudgeSettings, PrivacySettings

if TYPE_CHECKING:
    from trajectory_pipeline.budget.caps import Budget
    from trajectory_pipeline.judge.access_lists import JudgeAccessList
    from trajectory_pipeline.judge.config import JudgeConfig
    from trajectory_pipeline.judge.redaction.redactor import Redactor
    from trajectory_pipeline.pipeline.embed import Embedder
    from trajectory_pipeline.storage.storage import Storage


def build_redactor(privacy: PrivacySettings, storage: "Storage") -> "Redactor":
    """Return what replaces secrets, as the judge's prompts have them.

    Raises:
        SinkError: the stored key cannot be read.
    """
    from trajectory_pipeline.judge.redaction.redactor import Redactor
    from trajectory_pipeline.storage.postgres.redaction_key import redaction_key

    key = redaction_key(storage.postgres, privacy.configured_redaction_key)
    return Redactor(privacy.redaction, key)


def build_embedder(
    embedding: EmbeddingSettings, judge: JudgeSettings, privacy: PrivacySettings, budget: BudgetSettings
) -> "tuple[Embedder | None, str]":
    """Return the embedding model that the settings name; or None, and why there is none.

    Raises:
        SettingsError: the price table cannot be read.
    """
    if reason := embedding.disabled_reason(judge):
        return None, reason
    if embedding.is_local:
        from trajectory_pipeline.pipeline.local_embedder import LocalEmbedder

        return LocalEmbedder(), ""
    from trajectory_pipeline.judge.config import OPENAI_URL, JudgeConfig
    from trajectory_pipeline.judge.endpoint import EMBEDDING_ENDPOINT
    from trajectory_pipeline.pipeline.remote_embedder import RemoteEmbedder

    # The judge's key goes to the judge's endpoint alone.
    key = embedding.api_key or (judge.api_key if embedding.base_url in (None, judge.base_url) else None)
    api = JudgeConfig(
        model=str(embedding.model),
        base_url=embedding.base_url or judge.base_url or OPENAI_URL,
        api_key=key.get_secret_value() if key else "not-needed",
        timeout_seconds=embedding.timeout_seconds,
        max_response_tokens=0,
        local_only=privacy.egress == Egress.OFF,
        requests_per_minute=embedding.requests_per_minute,
        tokens_per_minute=embedding.tokens_per_minute,
        concurrency=embedding.concurrency,
        access=_access_list(privacy),
        budget=_budget(budget),
        endpoint=EMBEDDING_ENDPOINT,
    )
    return RemoteEmbedder(api, embedding.dimensions, embedding.texts_per_call), ""


def judge_config(judge: JudgeSettings, privacy: PrivacySettings, budget: BudgetSettings) -> "JudgeConfig":
    """Return the judge that the settings name.

    Raises:
        JudgeError: no judge is configured; the text says what to set.
        SettingsError: the price table or the policy file cannot be read.
    """
    from trajectory_pipeline.judge.config import OPENAI_URL, JudgeConfig
    from trajectory_pipeline.judge.policy_file import load_policy_file, with_policy

    if judge.disabled_reason:
        raise JudgeError(judge.disabled_reason)
    base = JudgeConfig(
        model=judge.model or "",
        base_url=judge.base_url or OPENAI_URL,
        # The client insists on a key, which a server of one's own may not need.
        api_key=judge.api_key.get_secret_value() if judge.api_key else "not-needed",
        timeout_seconds=judge.timeout_seconds,
        max_attempts=judge.max_attempts,
        max_prompt_tokens=judge.max_prompt_tokens,
        max_response_tokens=judge.max_response_tokens,
        instructions_tokens=judge.instructions_tokens,
        earlier_turns_tokens=judge.earlier_turns_tokens,
        local_only=privacy.egress == Egress.OFF,
        response_format=judge.response_format,
        requests_per_minute=judge.requests_per_minute,
        tokens_per_minute=judge.tokens_per_minute,
        concurrency=judge.concurrency,
        redaction=privacy.redaction,
        redaction_key=privacy.configured_redaction_key,
        access=_access_list(privacy),
        budget=_budget(budget),
    )
    return base if judge.policy_file is None else with_policy(base, load_policy_file(judge.policy_file), os.environ)


def _access_list(privacy: PrivacySettings) -> "JudgeAccessList":
    from trajectory_pipeline.judge.access_lists import JudgeAccessList

    return JudgeAccessList(
        privacy.allow_agents, privacy.deny_agents, privacy.allow_organizations, privacy.deny_organizations
    )


def _budget(budget: BudgetSettings) -> "Budget":
    from trajectory_pipeline.budget.caps import Budget
    from trajectory_pipeline.budget.prices import load_prices

    return Budget(
        daily_usd=budget.daily_usd,
        organization_usd=budget.organization_daily_usd,
        materialization_usd=budget.materialization_usd,
        daily_tokens=budget.daily_tokens,
        materialization_tokens=budget.materialization_tokens,
        prices=load_prices(budget.prices_file),
        allow_unpriced=budget.allow_unpriced,
    )
