"""The closed sets of words that say how a run ended and what it achieved."""

from enum import StrEnum


class ExecutionStatus(StrEnum):
    """How a run ended: facts from the source."""

    COMPLETED = "completed"
    TRUNCATED = "truncated"
    AWAITING_APPROVAL = "awaiting_approval"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class ExecutionCause(StrEnum):
    """Why a run was cancelled, was truncated or failed."""

    USER = "user"
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 - no password
    CONTEXT_LIMIT = "context_limit"
    BILLING = "billing"
    AGENT = "agent"
    LLM_PROVIDER = "llm_provider"
    REQUEST = "request"
    SERVER = "server"
    UNRECORDED = "unrecorded"


class Outcome(StrEnum):
    """What a run achieved."""

    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial_success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
