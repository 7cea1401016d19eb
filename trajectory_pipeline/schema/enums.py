"""Closed sets of words: values of columns and settings."""

from enum import StrEnum


class DeletedContent(StrEnum):
    """What happens to content that is deleted at the source (``TRAJECTORY_DELETED_CONTENT``)."""

    KEEP = "keep"
    ERASE = "erase"


class JudgeOrder(StrEnum):
    """Which trajectories are judged first (``TRAJECTORY_JUDGE_ORDER``)."""

    NEWEST = "newest"
    SIGNALS = "signals"


class JudgeMode(StrEnum):
    """How the judge is asked (``TRAJECTORY_JUDGE_MODE``)."""

    ONLINE = "online"
    BATCH = "batch"


class JudgeKind(StrEnum):
    """How a judge of a policy file is asked."""

    TEXT = "text"
    DECISIONS = "decisions"


class ResponseFormat(StrEnum):
    """How the response schema is sent to the judge."""

    JSON_SCHEMA = "json_schema"
    TOOL_CALL = "tool_call"
    PROMPT = "prompt"


class ResponseFormatChoice(StrEnum):
    """``TRAJECTORY_JUDGE_FORMAT``: a ``ResponseFormat``, or the first of them that the server accepts."""

    AUTO = "auto"
    JSON_SCHEMA = "json_schema"
    TOOL_CALL = "tool_call"
    PROMPT = "prompt"


class FileAccess(StrEnum):
    """Who may read the Parquet files in a local folder (``TRAJECTORY_FILE_ACCESS``)."""

    PRIVATE = "private"
    GROUP = "group"
    ALL = "all"


class Egress(StrEnum):
    """Whether a judge on another machine may be called (``TRAJECTORY_LLM_EGRESS``)."""

    ON = "on"
    OFF = "off"


class RedactionMode(StrEnum):
    """What is replaced by placeholders before anything is sent to the judge (``TRAJECTORY_REDACT``)."""

    SECRETS = "secrets"
    PERSONAL = "personal"
    OFF = "off"


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
    """What a run achieved, by heuristic or by a judge."""

    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial_success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class TokenScope(StrEnum):
    """What a token of the service allows."""

    READ = "read"
    JUDGE = "judge"
    ERASE = "erase"


class PartitionResult(StrEnum):
    """Result of a partition in the ledger."""

    COMPLETE = "complete"
    QUARANTINED = "quarantined"
    PRUNED = "pruned"


class VerdictStatus(StrEnum):
    """Where a verdict stands."""

    JUDGED = "judged"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"
    NOT_ELIGIBLE = "not_eligible"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    DEFERRED_BUDGET = "deferred_budget"
    SUBMITTED = "submitted"


FINAL_STATUSES = (VerdictStatus.JUDGED, VerdictStatus.INSUFFICIENT_EVIDENCE, VerdictStatus.NOT_ELIGIBLE)
"""A verdict with such a status is not requested again for the same policy and content."""


class RequirementStatus(StrEnum):
    """Whether a requirement of the task was met."""

    MET = "met"
    UNMET = "unmet"
    NOT_APPLICABLE = "not_applicable"
    INSUFFICIENT_EVIDENCE = "insufficient_evidence"


class FailureOwner(StrEnum):
    """What caused a failure."""

    AGENT = "agent"
    TOOL = "tool"
    LLM_PROVIDER = "llm_provider"
    INFRASTRUCTURE = "infrastructure"
    USER = "user"
    SPECIFICATION = "specification"
    NONE = "none"


class Criterion(StrEnum):
    """What a label is about. A label can also be about a criterion of a team's own, by any other name."""

    OUTCOME = "outcome"
    REQUIREMENT = "requirement"
    FAILURE_OWNER = "failure_owner"
    FAILURE_MODE = "failure_mode"
    FIRST_WRONG_STEP = "first_wrong_step"
    INTERACTION_DEPTH = "interaction_depth"
    TASK_COMPLEXITY = "task_complexity"
    TOOL_USE = "tool_use"
    REFERENCE_VALUE = "reference_value"
    STEP_FEEDBACK = "step_feedback"


class StepFeedback(StrEnum):
    """What a user of Letta said of a step."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


class LabelSource(StrEnum):
    """Where a label comes from."""

    TERMINAL = "terminal"
    CSV = "csv"
    SCOUT = "scout"
    LABEL_STUDIO = "label_studio"
    DEMONSTRATION = "demonstration"
    LETTA_FEEDBACK = "letta_feedback"


class LabelSplit(StrEnum):
    """What a label is used for: a map is learnt on one split and measured on the other."""

    CALIBRATION = "calibration"
    TEST = "test"


class SamplingDesign(StrEnum):
    """How runs to label are drawn."""

    CENSUS = "census"
    RANDOM = "random"
    DISAGREEMENT = "disagreement"
    SIGNAL = "signal"
    UNCERTAINTY = "uncertainty"


class CombineBy(StrEnum):
    """What the votes of several judges decide by majority."""

    OUTCOME = "outcome"
    REQUIREMENTS = "requirements"


class EscalateWhen(StrEnum):
    """Why the escalated judges of a policy are asked."""

    ABSTAINS = "abstains"
    CONTRADICTS = "contradicts"
    UNSURE = "unsure"


class BatchState(StrEnum):
    """Where a batch of calls stands here; the provider has words of its own (``provider_status``)."""

    PREPARING = "preparing"
    UPLOADING = "uploading"
    CREATING = "creating"
    SUBMITTED = "submitted"
    COLLECTED = "collected"
    ABANDONED = "abandoned"


UNSENT_STATES = (BatchState.PREPARING, BatchState.UPLOADING, BatchState.CREATING)
"""A batch with such a state belongs to the worker that prepares it, or is left by a killed one."""


class AttemptResult(StrEnum):
    """Result of one HTTP call to a judge."""

    ANSWERED = "answered"
    REFUSED = "refused"
    UNUSABLE = "unusable"
    ERROR = "error"
    LOST = "lost"


class AttemptPurpose(StrEnum):
    """Why one HTTP call to a judge was made."""

    FIRST = "first"
    RETRY = "retry"
    REPAIR = "repair"
    FALLBACK = "fallback"


_RETRIED = "retried with backoff"
_REPAIRED = ("sent back to the judge once for repair, with what is wrong", VerdictStatus.QUARANTINED)
_DEFERRED = ("deferred", VerdictStatus.DEFERRED_BUDGET)
_CIRCUIT_OPENS = "no further calls in this materialization"


def _no_headroom(setting: str) -> str:
    return f"`{setting}` has no headroom for a call."


class ErrorClass(StrEnum):
    """Why a call failed or a trajectory was not judged.

    Attributes:
        meaning: what happened, in one sentence.
        handling: what follows within the materialization.
        verdict_status: of a verdict that ends with it.
    """

    meaning: str
    handling: str
    verdict_status: VerdictStatus

    def __new__(
        cls, value: str, meaning: str, handling: str, verdict_status: VerdictStatus = VerdictStatus.FAILED
    ) -> "ErrorClass":
        """Make a member of its value and its documentation."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning, member.handling, member.verdict_status = meaning, handling, verdict_status
        return member

    # The call.
    RATE_LIMITED = (
        "rate_limited",
        "Too many requests or tokens (HTTP 429), or a quota that the provider says to wait for.",
        "all calls pause for as long as the provider asks, then retry",
    )
    QUOTA_EXCEEDED = (
        "quota_exceeded",
        "The account has no credit left (HTTP 402, or another status in words).",
        _CIRCUIT_OPENS,
    )
    AUTHENTICATION = "authentication", "The API key is wrong (HTTP 401, or 400 in words).", _CIRCUIT_OPENS
    PERMISSION = "permission", "The API key lacks permission (HTTP 403).", _CIRCUIT_OPENS
    MODEL_NOT_FOUND = (
        "model_not_found",
        "The model or endpoint does not exist (HTTP 404, 405, 410, a redirect, or 400 in words).",
        _CIRCUIT_OPENS,
    )
    SERVER_ERROR = "server_error", "The provider's server or a gateway failed (HTTP 5xx, 408, 409, 424, 499).", _RETRIED
    CONNECTION = (
        "connection",
        "The provider could not be reached, or the connection was lost before the response was complete.",
        _RETRIED,
    )
    TIMEOUT = "timeout", "No complete response within `TRAJECTORY_JUDGE_TIMEOUT`.", _RETRIED
    UNSUPPORTED = (
        "unsupported",
        "The server rejects the response format or a parameter (HTTP 400, 404, 415, 422, 500, 501).",
        "sent in the next simpler format (where `TRAJECTORY_JUDGE_FORMAT` is `auto`) or without the parameter",
    )
    CONTEXT_TOO_LONG = (
        "context_too_long",
        "The prompt is longer than the model's context window.",
        "sent in smaller windows, where that shortens the prompt",
    )
    CONTENT_FILTER = "content_filter", "The provider's filter rejected the prompt or withheld the response.", "none"
    BAD_REQUEST = "bad_request", "The provider rejects the request for another reason (other HTTP 4xx).", "none"
    NOT_A_COMPLETION = (
        "not_a_completion",
        "Status 200, but the body is not a chat completion (such as HTML), or is too large for one.",
        _RETRIED,
    )
    NO_ANSWER = "no_answer", "A chat completion without content.", _RETRIED
    # The response.
    REFUSED = "refused", "The model refuses to judge.", "none"
    CUT_OFF = "cut_off", "The response was cut off (`finish_reason` is `length`).", *_REPAIRED
    INVALID_JSON = "invalid_json", "The response is not one JSON value.", *_REPAIRED
    NOT_A_NUMBER = "not_a_number", "NaN or Infinity in place of a number.", *_REPAIRED
    OUT_OF_RANGE = "out_of_range", "A number is out of range.", *_REPAIRED
    WRONG_COUNT = "wrong_count", "A list has too many or too few items.", *_REPAIRED
    SCHEMA_VIOLATION = "schema_violation", "The response violates the schema in another way, or several.", *_REPAIRED
    # Without a call, or after all of them.
    NO_MESSAGES = "no_messages", "The run ended without a message.", "not sent", VerdictStatus.NOT_ELIGIBLE
    DENIED = (
        "denied",
        "Its agent or organization may not be sent to a judge (`TRAJECTORY_JUDGE_ALLOW_…`, `…_DENY_…`).",
        "checked again when the lists change",
        VerdictStatus.NOT_ELIGIBLE,
    )
    TOO_LONG = "too_long", "The transcript does not fit into 32 windows, even when truncated.", "not sent"
    RENDERING_TIMEOUT = (
        "rendering_timeout",
        "Rendering and redacting the transcript took longer than 60 seconds.",
        "not sent; other trajectories are judged meanwhile",
    )
    EARLIER_RUN_MISSING = "earlier_run_missing", "The document of an earlier run of the chain is missing.", "not sent"
    DOCUMENT_MISSING = "document_missing", "The document of the run itself is missing.", "not sent"
    MATERIALIZATION_BUDGET = "materialization_budget", _no_headroom("TRAJECTORY_MATERIALIZATION_BUDGET_USD"), *_DEFERRED
    MATERIALIZATION_TOKENS = (
        "materialization_tokens",
        _no_headroom("TRAJECTORY_MATERIALIZATION_BUDGET_TOKENS"),
        *_DEFERRED,
    )
    ORGANIZATION_BUDGET = "organization_budget", _no_headroom("TRAJECTORY_ORGANIZATION_DAILY_BUDGET_USD"), *_DEFERRED
    DAILY_BUDGET = "daily_budget", _no_headroom("TRAJECTORY_DAILY_BUDGET_USD"), *_DEFERRED
    DAILY_TOKENS = "daily_tokens", _no_headroom("TRAJECTORY_DAILY_BUDGET_TOKENS"), *_DEFERRED
    BATCH_ENDED = (
        "batch_ended",
        "Its batch was never sent, or ended (expired, cancelled or failed) without an answer to it.",
        "pending again at once",
    )
    BATCH_QUEUE_FULL = (
        "batch_queue_full",
        "The provider takes no more tokens in batches for now.",
        "pending again after 15 minutes, in a smaller batch",
    )
    SUPERSEDED = (
        "superseded",
        "The trajectory or the policy changed while its batch ran: the answer is booked, and not stored.",
        "judged under its new verdict key",
    )
    INTERNAL_ERROR = "internal_error", "A defect of trajectory-pipeline.", "please report it"


class CalibrationTarget(StrEnum):
    """What a calibrated probability is of."""

    CORRECT = "correct"
    SUCCESS = "success"


class CalibrationMethod(StrEnum):
    """How a calibration map was learnt."""

    LOGISTIC = "logistic"
    ISOTONIC = "isotonic"


class Gate(StrEnum):
    """What of a policy's verdicts is compared with a bar."""

    AGREEMENT = "agreement"
    ABSTENTION = "abstention"
    VERIFIED_QUOTES = "verified_quotes"
    SELF_AGREEMENT = "self_agreement"


class GateResult(StrEnum):
    """Whether a bar was reached, by the interval of what was measured."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_ENOUGH = "not_enough"
    NOT_MEASURED = "not_measured"


class FailureModeKind(StrEnum):
    """Where a failure mode is from: the judge's closed list, or groups of similar texts."""

    LISTED = "listed"
    LESSON = "lesson"
    TOOL_ERROR = "tool_error"
