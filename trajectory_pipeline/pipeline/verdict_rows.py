"""The columns of a verdict that do not come from the judge's answer."""

from typing import Any

from trajectory_pipeline.budget.caps import BudgetExhausted
from trajectory_pipeline.judge.judge_trajectory import failed
from trajectory_pipeline.pipeline.documents import MissingDocumentError
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate

Row = dict[str, Any]


def identity(candidate: JudgingCandidate, policy_id: str) -> Row:
    """Return what a verdict is on, and under which policy."""
    return {
        "run_id": candidate.run_id,
        "verdict_key": candidate.verdict_key,
        "policy_id": policy_id,
        "partition_key": candidate.partition_key,
        "content_digest": candidate.content_digest,
        "simulated": False,
        "shown_run_ids": list(candidate.shown_run_ids),
        "shown_digests": [*candidate.earlier_digests, candidate.content_digest],
        "erased": False,
    }


def not_eligible(error_class: str, message: str) -> Row:
    """Return a verdict on a trajectory that the judge is not asked about."""
    return {"verdict_status": "not_eligible", "error_class": error_class, "error_message": message}


def deferred(exhausted: BudgetExhausted) -> Row:
    """Return a verdict that is deferred until a cap has headroom for it."""
    shortfall = exhausted.shortfall
    return {
        "verdict_status": "deferred_budget",
        "error_class": shortfall.cap.name,
        "error_message": str(exhausted),
        "deferred_usd": shortfall.headroom.usd,
        "deferred_tokens": shortfall.headroom.tokens,
    }


def document_missing(candidate: JudgingCandidate, missing: MissingDocumentError) -> Row:
    """Return a verdict on a trajectory that cannot be shown, because a document is in neither sink."""
    error_class = "document_missing" if missing.run_id == candidate.run_id else "earlier_run_missing"
    return failed(error_class, f"{missing}: materialize trajectories of {missing.partition_key}")
