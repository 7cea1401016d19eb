"""What can keep a trajectory from being judged: the closed list of error classes.

Belongs here: each class's name, what it means, and what follows from it, for the documentation and for those who tell
them apart. Does not belong here: telling them apart (``refinement``).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorClass:
    """One row of the list.

    Attributes:
        name: as it stands in ``error_class`` of verdicts and attempts.
        meaning: what happened.
        then: what is done about it within a materialisation.
        status: of a verdict that ends so.
    """

    name: str
    meaning: str
    then: str
    status: str = "failed"


_RETRIED = "called again, with a growing pause"
_REPAIRED = "one repair turn shows the judge its answer and what is wrong with it"
_OPENS = "nothing more is asked in this materialisation"

ERROR_CLASSES = (
    # ---- the call ----
    ErrorClass(
        "rate_limited", "Too many requests or tokens (HTTP 429).", "all calls pause as long as the provider asks; again"
    ),
    ErrorClass("quota_exceeded", "The account has no money left (HTTP 402, or 429 with that code).", _OPENS),
    ErrorClass("authentication", "The key is wrong (HTTP 401).", _OPENS),
    ErrorClass("permission", "The key may not do this (HTTP 403).", _OPENS),
    ErrorClass("model_not_found", "There is no such model or endpoint (HTTP 404).", _OPENS),
    ErrorClass("server_error", "A fault of the provider's server (HTTP 5xx, 408, 409).", _RETRIED),
    ErrorClass(
        "connection",
        "The provider could not be reached, or the connection was lost before the answer was whole.",
        _RETRIED,
    ),
    ErrorClass("timeout", "No whole answer within `TRAJECTORY_JUDGE_TIMEOUT`.", _RETRIED),
    ErrorClass(
        "unsupported",
        "The server refuses the answer's format or a parameter (HTTP 400, 404, 422).",
        "asked in the next simpler way, where `TRAJECTORY_JUDGE_FORMAT` is `auto` or a parameter is meant",
    ),
    ErrorClass(
        "context_too_long",
        "The prompt is longer than the model's context.",
        "asked in smaller prompts, where that shows less at once",
    ),
    ErrorClass("content_filter", "The provider's filter refused the prompt or withheld the answer.", "left so"),
    ErrorClass("bad_request", "The provider refuses the request for another reason (other HTTP 4xx).", "left so"),
    ErrorClass("not_a_completion", "Status 200, and what came is no chat completion (an HTML page).", _RETRIED),
    ErrorClass("no_answer", "A chat completion that says nothing.", _RETRIED),
    # ---- the answer ----
    ErrorClass("refused", "The model refuses to judge.", "left so"),
    ErrorClass("cut_off", "The answer was cut off (`finish_reason` is `length`).", _REPAIRED, "quarantined"),
    ErrorClass("invalid_json", "The answer is not one JSON value.", _REPAIRED, "quarantined"),
    ErrorClass("not_a_number", "NaN or Infinity stands where a number belongs.", _REPAIRED, "quarantined"),
    ErrorClass("out_of_range", "A number is beyond its bounds.", _REPAIRED, "quarantined"),
    ErrorClass("wrong_count", "A list has more or fewer items than asked for.", _REPAIRED, "quarantined"),
    ErrorClass(
        "schema_violation",
        "The answer is not as the schema asks in another way, or in several.",
        _REPAIRED,
        "quarantined",
    ),
    # ---- before any call, or after all of them ----
    ErrorClass("no_messages", "The run ended before anything was said.", "not asked about", "not_eligible"),
    ErrorClass(
        "denied",
        "Its agent or organisation may not be shown to a judge (`TRAJECTORY_JUDGE_ALLOW_…`, `…_DENY_…`).",
        "looked at again when the lists change",
        "not_eligible",
    ),
    ErrorClass("too_long", "The transcript does not fit into 32 prompts, however shortened.", "not asked about"),
    ErrorClass("earlier_run_missing", "The document of an earlier run of the chain is not here.", "not asked about"),
    ErrorClass("document_missing", "The document of the run itself is not here.", "not asked about"),
    *(
        ErrorClass(name, f"{what} leaves no room for a call.", "held back until there is room", "deferred_budget")
        for name, what in (
            ("materialization_budget", "`TRAJECTORY_MATERIALIZATION_BUDGET_USD`"),
            ("materialization_tokens", "`TRAJECTORY_MATERIALIZATION_BUDGET_TOKENS`"),
            ("organization_budget", "`TRAJECTORY_ORGANIZATION_DAILY_BUDGET_USD`"),
            ("daily_budget", "`TRAJECTORY_DAILY_BUDGET_USD`"),
            ("daily_tokens", "`TRAJECTORY_DAILY_BUDGET_TOKENS`"),
        )
    ),
    ErrorClass("internal_error", "A fault of trajectory-pipeline.", "please report it"),
)
"""Every class there is; one that is not listed is a defect."""
