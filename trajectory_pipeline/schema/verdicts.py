"""Verdicts, the calls to the judge behind them, and the policies that they were reached under."""

from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    JSON,
    MONEY,
    POSTGRES_ONLY,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    Table,
    postgres_column,
)

_NOT_JUDGED = "not judged"
_NO_EVIDENCE = "not judged, or no valid evidence for it"
_NOT_SHOWN = "nothing was sent to the judge"
_NOT_REPORTED = "not reported"
_NO_PRICE = "no known price"
_NOT_DEFERRED = "not `deferred_budget`"
_NO_ERROR = "no error"


VERDICTS = Table(
    name="verdicts",
    description="Verdicts of judges on trajectories. A verdict is never overwritten by one under another policy.",
    row="one trajectory under one policy, with one content",
    columns=(
        Column("run_id", STRING, "The run.", key=True),
        Column(
            "verdict_key",
            STRING,
            "SHA-256 (hex) of the content digests of all runs sent to the judge, and the policy.",
            key=True,
        ),
        Column("policy_id", STRING, "The policy: see the table `policies`."),
        Column("partition_key", STRING, "Dagster's partition key of the trajectory."),
        Column("content_digest", STRING, "`content_digest` of the trajectory that was judged."),
        Column(
            "verdict_status",
            STRING,
            "`judged`, `insufficient_evidence`, `not_eligible`, `failed`, `quarantined` or `deferred_budget`.",
        ),
        Column(
            "outcome",
            STRING,
            "`success`, `partial_success`, `failure` or `unknown`, computed from the requirements.",
            null=_NOT_JUDGED,
        ),
        Column(
            "outcome_confidence",
            FLOAT,
            "How much of the outcome rests on evidence: the mean share of valid citations over the applicable"
            " requirements (0 for an undecided one), times `coverage`.",
            unit="0–1",
            null=_NOT_JUDGED,
        ),
        Column("disagrees", BOOL, "Whether the outcome differs from the heuristic outcome.", null=_NOT_JUDGED),
        Column(
            "requirements",
            JSON,
            "What the task required: statement, kind, status, the judge's own status, reasoning, and each citation with"
            " its author and, if it is not valid, why.",
            null=_NOT_JUDGED,
        ),
        Column(
            "failure_owner",
            STRING,
            "`agent`, `tool`, `llm_provider`, `infrastructure`, `user` or `specification`; `none` if no requirement is"
            " unmet.",
            null=_NO_EVIDENCE,
        ),
        Column("failure_mode", STRING, "Label from the closed list of failure modes.", null=_NO_EVIDENCE),
        Column("failure_mode_description", STRING, "Description of the failure mode `other`.", null="not `other`"),
        Column("failed_step_id", STRING, "First step that went wrong.", null="none, or not judged"),
        Column(
            "learning_value",
            FLOAT,
            "0.35 interaction depth + 0.30 task complexity + 0.20 tool use + 0.15 reference value, each"
            " (rating − 1) / 4.",
            unit="0–1",
            null=_NOT_JUDGED,
        ),
        *(
            Column(name, INT, f"Rating of the {words}.", unit="1–5", null=_NOT_JUDGED)
            for name, words in (
                ("interaction_depth", "interaction's depth"),
                ("task_complexity", "task's complexity"),
                ("tool_use", "use of tools"),
                ("reference_value", "value as a reference"),
            )
        ),
        Column("tags", STRINGS, "Three to seven tags.", null=_NOT_JUDGED),
        Column("task_category", STRING, "Label from the closed list of task categories.", null=_NOT_JUDGED),
        Column("complexity", STRING, "`trivial`, `simple`, `moderate`, `complex` or `expert`.", null=_NOT_JUDGED),
        Column("summary", STRING, "Goal, approach and result.", null=_NOT_JUDGED),
        Column("lesson", STRING, "What another agent should do or avoid.", null="none, or not judged"),
        Column("decisions", JSON, "Key decisions: step, choice, stated reason, result.", null=_NOT_JUDGED),
        Column(
            "coverage",
            FLOAT,
            "Share of the content's characters that was sent to the judge.",
            unit="0–1",
            null=_NOT_SHOWN,
        ),
        Column(
            "model",
            STRING,
            "Model that responded, as the provider names it; `simulated-judge` is not a model.",
            null="no response",
        ),
        Column("simulated", BOOL, "Whether the verdict is from the simulated judge, with an invented price."),
        Column(
            "input_tokens",
            INT,
            "Prompt tokens of all calls, including cached ones.",
            unit="tokens",
            null=_NOT_REPORTED,
        ),
        Column(
            "cached_input_tokens",
            INT,
            "Prompt tokens read from the provider's cache.",
            unit="tokens",
            null=_NOT_REPORTED,
        ),
        Column("output_tokens", INT, "Completion tokens of all calls.", unit="tokens", null=_NOT_REPORTED),
        Column(
            "cost_usd",
            MONEY,
            "Cost of all calls; a lost call counts at its largest possible cost.",
            unit="USD",
            null=_NO_PRICE,
        ),
        Column("attempts", INT, "HTTP calls made.", unit="calls"),
        Column("error_class", STRING, "Why it was not judged: see [error classes](#error-classes).", null=_NO_ERROR),
        Column("error_message", STRING, "The error as a sentence.", null=_NO_ERROR),
        Column("raw_response", STRING, "The unusable response.", null="none", sinks=POSTGRES_ONLY),
        Column("judged_at", TIMESTAMP, "When the verdict was reached.", null=_NOT_JUDGED),
        Column("created_at", TIMESTAMP, "When the row was first written.", sinks=POSTGRES_ONLY),
        Column("updated_at", TIMESTAMP, "When the row last changed.", sinks=POSTGRES_ONLY),
        Column(
            "shown_run_ids",
            STRINGS,
            "Runs that were sent to the judge: the earlier ones of the chain, then this one.",
        ),
        Column("shown_digests", STRINGS, "`content_digest` of each of these runs at that time."),
        Column(
            "erased",
            BOOL,
            "Whether its texts were erased because content behind them was deleted at the source.",
        ),
        Column(
            "response_format",
            STRING,
            "How the response schema was sent: `json_schema`, `tool_call` or `prompt`.",
            null="no call was made",
        ),
        Column("failures", INT, "Times it became `failed` or `quarantined`.", unit="times", sinks=POSTGRES_ONLY),
        Column(
            "next_attempt_at",
            TIMESTAMP,
            "When the sensor may retry it; until then nothing retries a `quarantined` one.",
            null="neither `failed` nor `quarantined`, or a retry would not help",
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "deferred_usd",
            MONEY,
            "Largest possible cost of the deferred call.",
            unit="USD",
            null=_NOT_DEFERRED,
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "deferred_tokens",
            INT,
            "Largest possible token count of the deferred call.",
            unit="tokens",
            null=_NOT_DEFERRED,
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "failure",
            JSON,
            "The judge's account of the failure: reasoning, evidence with its check, and why it is not counted, if so.",
            null=_NOT_JUDGED,
        ),
        Column("learning", JSON, "Reasoning behind the four ratings.", null=_NOT_JUDGED),
        Column(
            "windows",
            INT,
            "Prompts that the transcript was split into; more than one if it is too long for one.",
            unit="prompts",
            null=_NOT_SHOWN,
        ),
        Column("shown_sha256", STRING, "SHA-256 (hex) of what was sent, without random markers.", null=_NOT_SHOWN),
    ),
    indexes=(("policy_id", "verdict_status"), ("partition_key",), ("outcome",)),
)

REFINED_OUTCOMES = Table(
    name="refined_outcomes",
    description="The verdict of each trajectory under the current policy. In Postgres, see `verdicts` and the view"
    " `outcomes`.",
    row="one trajectory",
    columns=VERDICTS.columns,
)

VERDICT_ATTEMPTS = Table(
    name="verdict_attempts",
    description="HTTP calls to judges: request, response, tokens and cost.",
    row="one HTTP call",
    columns=(
        postgres_column("attempt_id", STRING, "UUID, generated before the call.", key=True),
        postgres_column("run_id", STRING, "The run."),
        postgres_column("verdict_key", STRING, "The verdict that it was made for."),
        postgres_column("policy_id", STRING, "The policy."),
        postgres_column("started_at", TIMESTAMP, "When it was sent."),
        postgres_column("duration_ns", INT, "Duration of the call.", unit="ns", null="its end was not recorded"),
        postgres_column("model", STRING, "Model that was called."),
        postgres_column("response_model", STRING, "Model that responded, as it says itself.", null="no response"),
        postgres_column("base_url", STRING, "Endpoint that was called, without credentials."),
        postgres_column("prompt_characters", INT, "Characters sent.", unit="characters"),
        postgres_column("http_status", INT, "HTTP status of the response.", null="no response"),
        postgres_column("request_id", STRING, "The provider's id of the call.", null=_NOT_REPORTED),
        postgres_column("finish_reason", STRING, "Finish reason from the provider.", null=_NOT_REPORTED),
        postgres_column(
            "result", STRING, "`answered`, `refused`, `unusable`, `error`, or `lost` (no response arrived)."
        ),
        postgres_column("error_class", STRING, "See [error classes](#error-classes).", null=_NO_ERROR),
        postgres_column("error_message", STRING, "The error as a sentence.", null=_NO_ERROR),
        postgres_column("input_tokens", INT, "Prompt tokens.", unit="tokens", null=_NOT_REPORTED),
        postgres_column(
            "cached_input_tokens",
            INT,
            "Prompt tokens read from the provider's cache.",
            unit="tokens",
            null=_NOT_REPORTED,
        ),
        postgres_column("output_tokens", INT, "Completion tokens.", unit="tokens", null=_NOT_REPORTED),
        postgres_column(
            "cost_usd", MONEY, "Cost of the call; of a `lost` one, the reserved cost.", unit="USD", null=_NO_PRICE
        ),
        postgres_column(
            "purpose",
            STRING,
            "`first`; `retry` after a transient failure; `repair` of an unusable response; or `fallback` to a simpler"
            " format after the server rejected one.",
            null="written by a version that did not record it",
        ),
        postgres_column(
            "response_format", STRING, "How the response schema was sent: `json_schema`, `tool_call` or `prompt`."
        ),
        postgres_column(
            "temperature", FLOAT, "Temperature sent.", unit="0–2", null="not sent, because the model rejects it"
        ),
        postgres_column("reserved_usd", MONEY, "Largest possible cost.", unit="USD", null=_NO_PRICE),
        postgres_column("reserved_tokens", INT, "Largest possible prompt and completion together.", unit="tokens"),
        postgres_column("budget_day", STRING, "UTC day whose cap it counts against: `2026-11-23`."),
        postgres_column("organization_id", STRING, "Organization whose cap it counts against.", null="none recorded"),
        postgres_column("materialization_id", STRING, "The materialization: the Dagster run id where there is one."),
    ),
    indexes=(("run_id",), ("verdict_key",), ("started_at",), ("budget_day",)),
)

POLICIES = Table(
    name="policies",
    description="Refinement policies in use now or before.",
    row="one policy",
    columns=(
        postgres_column("policy_id", STRING, "First 16 hex digits of the SHA-256 of `definition`.", key=True),
        postgres_column(
            "definition", JSON, "Model, parameters and versions of prompt, rubric, response schema and renderer."
        ),
        postgres_column("model", STRING, "The judge's model."),
        postgres_column("is_current", BOOL, "Whether it is the current one."),
        postgres_column("first_used_at", TIMESTAMP, "When it was first used."),
    ),
)

REDACTION_KEYS = Table(
    name="redaction_keys",
    description="Key for the tags in redaction placeholders, where `TRAJECTORY_REDACTION_KEY` is not set.",
    row="the one key",
    columns=(
        postgres_column("name", STRING, "`tags`.", key=True),
        postgres_column(
            "secret", STRING, "Random key, hex. Keep it secret: it would allow testing guesses at redacted secrets."
        ),
        postgres_column("created_at", TIMESTAMP, "When it was generated."),
    ),
)
