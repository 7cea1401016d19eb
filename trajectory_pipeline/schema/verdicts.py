"""Verdicts, the calls that they cost, and the policies that they were reached under.

Belongs here: columns. Does not belong here: what a judge is asked (``refinement``).
"""

from trajectory_pipeline.schema.types import (
    BOOL,
    BOTH,
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
)
from trajectory_pipeline.schema.types import postgres_column as _column

_NOT_JUDGED = "not judged"
_NOT_SHOWN = "not judged, or no valid evidence shows it"

FINAL_STATUSES = ("judged", "insufficient_evidence", "not_eligible")
"""A verdict of such a status is not asked about again under the same policy and content."""
DENIED = "denied"
"""Error class of a trajectory that may not be shown to a judge: not eligible for as long as the lists say so."""


VERDICTS = Table(
    name="verdicts",
    description="What a judge said of a trajectory under one policy; never overwritten by another policy.",
    row="one trajectory under one policy, at one content",
    columns=(
        Column("run_id", STRING, "The run.", key=True, sinks=BOTH),
        Column(
            "verdict_key", STRING, "SHA-256 (hex) of the content digests of all runs shown, and the policy.", key=True
        ),
        Column("policy_id", STRING, "The policy: see the table `policies`."),
        Column("partition_key", STRING, "Dagster's partition key of the trajectory."),
        Column("content_digest", STRING, "Of the trajectory that was judged."),
        Column(
            "verdict_status",
            STRING,
            "judged, insufficient_evidence, not_eligible, failed, quarantined or deferred_budget.",
        ),
        Column(
            "outcome",
            STRING,
            "success, partial_success, failure or unknown: computed from the requirements.",
            null=_NOT_JUDGED,
        ),
        Column(
            "outcome_confidence",
            FLOAT,
            "How far it rests on evidence: mean over the applicable requirements of the share of citations that are"
            " valid, 0 where it could not be decided, times `coverage`.",
            unit="0–1",
            null=_NOT_JUDGED,
        ),
        Column("disagrees", BOOL, "Whether the outcome differs from the heuristic one.", null=_NOT_JUDGED),
        Column(
            "requirements",
            JSON,
            "What the task asked: statement, kind, status, what the judge said it was, reasoning, and each citation"
            " with whose words it is and why it does not count, where it does not.",
            null=_NOT_JUDGED,
        ),
        Column(
            "failure_owner",
            STRING,
            "agent, tool, llm_provider, infrastructure, user, specification; none where no requirement is unmet.",
            null=_NOT_SHOWN,
        ),
        Column("failure_mode", STRING, "From the documented closed list.", null=_NOT_SHOWN),
        Column("failure_mode_description", STRING, "What `other` stands for.", null="not `other`"),
        Column("failed_step_id", STRING, "First step where it went wrong.", null="none, or not judged"),
        Column(
            "learning_value",
            FLOAT,
            "0.35 interaction depth + 0.30 task complexity + 0.20 tool use + 0.15 reference value, each"
            " (rating − 1) / 4.",
            unit="0–1",
            null=_NOT_JUDGED,
        ),
        Column("interaction_depth", INT, "Rating.", unit="1–5", null=_NOT_JUDGED),
        Column("task_complexity", INT, "Rating.", unit="1–5", null=_NOT_JUDGED),
        Column("tool_use", INT, "Rating.", unit="1–5", null=_NOT_JUDGED),
        Column("reference_value", INT, "Rating.", unit="1–5", null=_NOT_JUDGED),
        Column("tags", STRINGS, "Three to seven.", null=_NOT_JUDGED),
        Column("task_category", STRING, "From the documented closed list.", null=_NOT_JUDGED),
        Column("complexity", STRING, "trivial, simple, moderate, complex or expert.", null=_NOT_JUDGED),
        Column("summary", STRING, "What was wanted, how it was approached, what happened.", null=_NOT_JUDGED),
        Column("lesson", STRING, "What another agent should do or avoid.", null="none, or not judged"),
        Column("decisions", JSON, "Key decisions: step, choice, reason given, result.", null=_NOT_JUDGED),
        Column(
            "coverage",
            FLOAT,
            "Share of the content's characters that the judge was shown.",
            unit="0–1",
            null="the judge was shown nothing",
        ),
        Column(
            "model",
            STRING,
            "The model that answered, as the provider names it; `simulated-judge` is no model.",
            null="none answered",
        ),
        Column("simulated", BOOL, "Whether the answer is of the simulated judge, and its price made up."),
        Column(
            "input_tokens", INT, "Prompt tokens of all calls, cached ones included.", unit="tokens", null="not told"
        ),
        Column("cached_input_tokens", INT, "Of these, read from the provider's cache.", unit="tokens", null="not told"),
        Column("output_tokens", INT, "Completion tokens of all calls.", unit="tokens", null="not told"),
        Column(
            "cost_usd",
            MONEY,
            "Price of all calls, lost ones at what they may have cost at most.",
            unit="USD",
            null="no price is known",
        ),
        Column("attempts", INT, "HTTP calls made.", unit="calls"),
        Column(
            "error_class",
            STRING,
            "What kept it from being judged: see [error classes](#error-classes).",
            null="nothing did",
        ),
        Column("error_message", STRING, "The same in words.", null="nothing did"),
        Column("raw_response", STRING, "The answer that could not be used.", null="there is none", sinks=POSTGRES_ONLY),
        Column("judged_at", TIMESTAMP, "When the verdict was reached.", null=_NOT_JUDGED),
        Column("created_at", TIMESTAMP, "When the row was first written.", sinks=POSTGRES_ONLY),
        Column("updated_at", TIMESTAMP, "When it last changed.", sinks=POSTGRES_ONLY),
        Column(
            "shown_run_ids",
            STRINGS,
            "The runs that the judge was shown: the earlier ones of the chain, and this one last.",
        ),
        Column("shown_digests", STRINGS, "The content digest that each of these runs had then."),
        Column(
            "erased",
            BOOL,
            "Whether its texts were erased, because content that it showed was deleted at the source.",
        ),
        Column(
            "response_format",
            STRING,
            "How the answer's form was asked for: json_schema, tool_call or prompt.",
            null="the judge was asked nothing",
        ),
        Column(
            "failures", INT, "Times that it came to be `failed` or `quarantined`.", unit="times", sinks=POSTGRES_ONLY
        ),
        Column(
            "next_attempt_at",
            TIMESTAMP,
            "From when on the sensor has it tried again; until then nobody asks about one that is `quarantined`.",
            null="it is neither `failed` nor `quarantined`, or trying again would not help",
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "deferred_usd",
            MONEY,
            "What the call that a cap held back may cost at most.",
            unit="USD",
            null="it is not `deferred_budget`",
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "deferred_tokens",
            INT,
            "The same in tokens.",
            unit="tokens",
            null="it is not `deferred_budget`",
            sinks=POSTGRES_ONLY,
        ),
        Column(
            "failure",
            JSON,
            "What the judge said of the failure, with its evidence checked, its reasoning, and why it does not count.",
            null=_NOT_JUDGED,
        ),
        Column("learning", JSON, "The reasoning behind the four ratings.", null=_NOT_JUDGED),
        Column(
            "windows",
            INT,
            "Prompts that the transcript was shown in; more than one where it is too long for one.",
            unit="prompts",
            null="the judge was shown nothing",
        ),
        Column(
            "shown_sha256",
            STRING,
            "SHA-256 (hex) of what was shown, markers aside.",
            null="the judge was shown nothing",
        ),
    ),
    indexes=(("policy_id", "verdict_status"), ("partition_key",), ("outcome",)),
)

REFINED_OUTCOMES = Table(
    name="refined_outcomes",
    description="One verdict per trajectory under the current policy (Parquet; in Postgres see `verdicts`"
    " and the view `outcomes`).",
    row="one trajectory",
    columns=VERDICTS.columns,
)

VERDICT_ATTEMPTS = Table(
    name="verdict_attempts",
    description="Every HTTP call to a judge: what it asked, got, took and cost.",
    row="one HTTP call",
    columns=(
        _column("attempt_id", STRING, "UUID, made before the call.", key=True),
        _column("run_id", STRING, "The run."),
        _column("verdict_key", STRING, "The verdict that it was made for."),
        _column("policy_id", STRING, "The policy."),
        _column("started_at", TIMESTAMP, "When it was sent."),
        _column("duration_ns", INT, "How long it took.", unit="ns", null="no end was seen"),
        _column("model", STRING, "The model that was asked."),
        _column("response_model", STRING, "The model that answered, by its own word.", null="none did"),
        _column("base_url", STRING, "Endpoint that was called, without credentials."),
        _column("prompt_characters", INT, "Characters sent.", unit="characters"),
        _column("http_status", INT, "Status of the answer.", null="no answer"),
        _column("request_id", STRING, "The provider's id of the call.", null="none given"),
        _column("finish_reason", STRING, "As the provider gave it.", null="none given"),
        _column("result", STRING, "`answered`, `refused`, `unusable`, `error`, or `lost` (no answer arrived)."),
        _column("error_class", STRING, "What went wrong: see [error classes](#error-classes).", null="nothing"),
        _column("error_message", STRING, "The same in words.", null="nothing"),
        _column("input_tokens", INT, "Prompt tokens.", unit="tokens", null="not told"),
        _column("cached_input_tokens", INT, "Of these, cached.", unit="tokens", null="not told"),
        _column("output_tokens", INT, "Completion tokens.", unit="tokens", null="not told"),
        _column(
            "cost_usd",
            MONEY,
            "Price of the call; of one that is `lost`, what was reserved for it.",
            unit="USD",
            null="no price is known",
        ),
        _column(
            "purpose",
            STRING,
            "`first`; `retry` after a failure in passing; `repair` of an answer that could not be used; `fallback` to a"
            " simpler form after the server refused one.",
            null="not told by the version that made it",
        ),
        _column(
            "response_format", STRING, "How the answer's form was asked for: `json_schema`, `tool_call` or `prompt`."
        ),
        _column("temperature", FLOAT, "As sent.", unit="0–2", null="not sent, because the model refuses one"),
        _column("reserved_usd", MONEY, "What it may cost at most.", unit="USD", null="the model has no known price"),
        _column("reserved_tokens", INT, "What it may take at most: prompt and answer.", unit="tokens"),
        _column("budget_day", STRING, "The UTC day whose cap it counts against: `2026-11-23`."),
        _column("organization_id", STRING, "The organisation whose cap it counts against.", null="none recorded"),
        _column("materialization_id", STRING, "The materialisation: Dagster's run id where there is one."),
    ),
    indexes=(("run_id",), ("verdict_key",), ("started_at",), ("budget_day",)),
)

POLICIES = Table(
    name="policies",
    description="Every refinement policy used, the current one marked.",
    row="one policy",
    columns=(
        _column("policy_id", STRING, "First 16 hex digits of the SHA-256 of `definition`.", key=True),
        _column("definition", JSON, "Model, parameters and versions of prompt, rubric, response schema and renderer."),
        _column("model", STRING, "The judge's model."),
        _column("is_current", BOOL, "Whether it is the one in use."),
        _column("first_used_at", TIMESTAMP, "When it was first used."),
    ),
)

REDACTION_KEYS = Table(
    name="redaction_keys",
    description="The key that the tags of placeholders for secrets are made with, where none is set"
    " (TRAJECTORY_REDACTION_KEY).",
    row="the one key",
    columns=(
        _column("name", STRING, "`tags`.", key=True),
        _column("secret", STRING, "Random, in hex. It never leaves: with it, guesses at a secret could be tried."),
        _column("created_at", TIMESTAMP, "When it was made."),
    ),
)
