"""Verdicts, the calls to the judge behind them, and the policies that they were reached under."""

from trajectory_pipeline.schema.types import (
    BOOL,
    FLOAT,
    INT,
    JSON,
    STRING,
    STRINGS,
    TIMESTAMP,
    Column,
    Table,
    dollars,
    nanoseconds,
    postgres_only,
    tokens,
)

_NOT_JUDGED = "not judged"
_TRANSCRIPT = "trajectories.turns, trajectories.error"
_NO_EVIDENCE = "not judged, or no valid evidence for it"
_NOT_SHOWN = "nothing was sent to the judge"
_NOT_REPORTED = "not reported"
_NO_PRICE = "no known price"
_NOT_DEFERRED = "not `deferred_budget`"
_NO_ERROR = "no error"
_ONE_JUDGE = "one judge, asked once"
_FOR_TEXTS = "a call for embeddings, of texts of several runs"

VERDICTS = Table(
    name="verdicts",
    description="Verdicts of judges on trajectories. A verdict is never overwritten by one under another policy.",
    row="one judging of a trajectory under a policy, with one content",
    columns=(
        Column("run_id", STRING, "The run.", source="trajectories.run_id", key=True),
        Column(
            "verdict_key",
            STRING,
            "SHA-256 (hex) of the digests of all that is shown, the policy, and a repetition above 0.",
            key=True,
        ),
        Column("policy_id", STRING, "The policy: see the table `policies`."),
        Column(
            "partition_key", STRING, "Dagster's partition key of the trajectory.", source="trajectories.partition_key"
        ),
        Column(
            "content_digest",
            STRING,
            "`content_digest` of the trajectory that was judged.",
            source="trajectories.content_digest",
        ),
        Column(
            "verdict_status",
            STRING,
            "`judged`, `insufficient_evidence`, `not_eligible`, `failed`, `quarantined`, `deferred_budget`, or"
            " `submitted`: its batch runs.",
        ),
        Column(
            "outcome",
            STRING,
            "`success`, `partial_success`, `failure` or `unknown`, computed from the requirements.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "outcome_confidence",
            FLOAT,
            "How much of the outcome rests on evidence: the mean share of valid citations over the applicable"
            " requirements (0 for an undecided one), times `coverage`.",
            unit="0–1",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "disagrees",
            BOOL,
            "Whether the outcome differs from the heuristic outcome.",
            null=_NOT_JUDGED,
            source="outcome, trajectories.heuristic_outcome",
        ),
        Column(
            "requirements",
            JSON,
            "What the task required: statement, kind, status, the judge's own status, reasoning, and each citation with"
            " its author and, if it is not valid, why.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "failure_owner",
            STRING,
            "`agent`, `tool`, `llm_provider`, `infrastructure`, `user` or `specification`; `none` if no requirement is"
            " unmet.",
            null=_NO_EVIDENCE,
            source=_TRANSCRIPT,
        ),
        Column(
            "failure_mode",
            STRING,
            "Label from the closed list of failure modes.",
            null=_NO_EVIDENCE,
            source=_TRANSCRIPT,
        ),
        Column(
            "failure_mode_description",
            STRING,
            "Description of the failure mode `other`.",
            null="not `other`",
            source=_TRANSCRIPT,
        ),
        Column("failed_step_id", STRING, "First step that went wrong.", null="none, or not judged", source=_TRANSCRIPT),
        Column(
            "learning_value",
            FLOAT,
            "0.35 interaction depth + 0.30 task complexity + 0.20 tool use + 0.15 reference value, each"
            " (rating − 1) / 4.",
            unit="0–1",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "interaction_depth",
            INT,
            "Rating of the interaction's depth.",
            unit="1–5",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "task_complexity", INT, "Rating of the task's complexity.", unit="1–5", null=_NOT_JUDGED, source=_TRANSCRIPT
        ),
        Column("tool_use", INT, "Rating of the use of tools.", unit="1–5", null=_NOT_JUDGED, source=_TRANSCRIPT),
        Column(
            "reference_value",
            INT,
            "Rating of the value as a reference.",
            unit="1–5",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column("tags", STRINGS, "Three to seven tags.", null=_NOT_JUDGED, source=_TRANSCRIPT),
        Column(
            "task_category",
            STRING,
            "Label from the closed list of task categories.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "complexity",
            STRING,
            "`task_complexity` in a word: `trivial`, `simple`, `moderate`, `complex` or `expert`.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column("summary", STRING, "Goal, approach and result.", null=_NOT_JUDGED, source=_TRANSCRIPT),
        Column(
            "lesson", STRING, "What another agent should do or avoid.", null="none, or not judged", source=_TRANSCRIPT
        ),
        Column(
            "decisions",
            JSON,
            "Key decisions: step, choice, stated reason, and what the tools returned in that step.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column(
            "coverage",
            FLOAT,
            "Share of the content's characters sent to the judge.",
            unit="0–1",
            null=_NOT_SHOWN,
            source=_TRANSCRIPT,
        ),
        Column("model", STRING, "Model as named in the response; `simulated-judge` is not one.", null="no response"),
        Column("simulated", BOOL, "Whether the verdict is from the simulated judge, with an invented price."),
        tokens("input_tokens", "Prompt tokens of all calls, including cached ones.", null=_NOT_REPORTED),
        tokens("cached_input_tokens", "Prompt tokens read from the provider's cache.", null=_NOT_REPORTED),
        tokens("output_tokens", "Completion tokens of all calls.", null=_NOT_REPORTED),
        dollars("cost_usd", "Cost of all calls; a lost call counts at its largest possible cost.", null=_NO_PRICE),
        Column("attempts", INT, "HTTP calls made.", unit="calls"),
        Column("error_class", STRING, "Why it was not judged: see [error classes](#error-classes).", null=_NO_ERROR),
        Column("error_message", STRING, "The error as a sentence.", null=_NO_ERROR),
        *postgres_only(Column("raw_response", STRING, "The unusable response.", null="none")),
        Column("judged_at", TIMESTAMP, "When the verdict was reached.", null=_NOT_JUDGED),
        *postgres_only(
            Column("created_at", TIMESTAMP, "When the row was first written."),
            Column("updated_at", TIMESTAMP, "When the row last changed."),
        ),
        Column(
            "shown_run_ids",
            STRINGS,
            "Runs sent to the judge: earlier ones of the conversation, those of the chain, then this one.",
            source="trajectories.run_id, trajectories.conversation_id, trajectories.continues_run_id",
        ),
        Column(
            "shown_digests",
            STRINGS,
            "`content_digest` of each of these runs at that time.",
            source="trajectories.content_digest",
        ),
        Column("erased", BOOL, "Whether its texts were erased because content behind them was deleted at the source."),
        Column(
            "response_format",
            STRING,
            "Format sent: `json_schema`, `tool_call`, `prompt`, or `decisions` for a decision endpoint.",
            null="no call was made",
        ),
        *postgres_only(
            Column("failures", INT, "Times it became `failed` or `quarantined`.", unit="times"),
            Column(
                "next_attempt_at",
                TIMESTAMP,
                "When the sensor may retry it; until then nothing retries a `quarantined` one.",
                null="neither `failed` nor `quarantined`, or a retry would not help",
            ),
            dollars("deferred_usd", "Largest possible cost of the deferred call.", null=_NOT_DEFERRED),
            tokens("deferred_tokens", "Largest possible token count of the deferred call.", null=_NOT_DEFERRED),
        ),
        Column(
            "failure",
            JSON,
            "The judge's account of the failure: reasoning, evidence with its check, and why it is not counted, if so.",
            null=_NOT_JUDGED,
            source=_TRANSCRIPT,
        ),
        Column("learning", JSON, "Reasoning behind the four ratings.", null=_NOT_JUDGED, source=_TRANSCRIPT),
        Column("windows", INT, "Prompts that the transcript was split into.", unit="prompts", null=_NOT_SHOWN),
        Column(
            "shown_sha256",
            STRING,
            "SHA-256 (hex) of what was sent, without random markers.",
            null=_NOT_SHOWN,
            source=_TRANSCRIPT,
        ),
        *postgres_only(
            Column(
                "repetition",
                INT,
                "Which judging of the same content under the same policy it is. Only 0 is *the* verdict; `judge-panel`"
                " makes others, to see how far a judge agrees with itself.",
                unit="times before",
            ),
        ),
        Column(
            "context_coverage",
            JSON,
            "What was shown beside the transcript: where instructions, memory and tools come from (`source`), and of"
            " each, and of the earlier turns of the conversation, how much there is and how much was shown.",
            null=_NOT_SHOWN,
            source="trajectories.context, trajectories.turns",
        ),
        Column(
            "votes",
            JSON,
            "Votes that it was combined of, in the order of the policy: policy, `verdict_key` (each vote is a verdict"
            " of its own), model, status, outcome, confidence, cost, and whether it counted.",
            null=_ONE_JUDGE,
        ),
        Column(
            "vote_agreement",
            FLOAT,
            "Share of the votes counted that are for the outcome.",
            unit="0–1",
            null=f"{_ONE_JUDGE}, or without all votes",
        ),
        Column(
            "escalation",
            STRING,
            "Why the escalated judges were asked: the first ones together abstained (`abstains`), contradicted the"
            " heuristic outcome (`contradicts`) or were unsure (`unsure`).",
            null=f"{_ONE_JUDGE}, or none",
        ),
        Column(
            "requirement_probabilities",
            JSON,
            "What a decision endpoint says of each requirement: statement, model, and the probability of each status;"
            " null where it refused the question. They are no part of any confidence.",
            null="no decision endpoint was asked",
            source=_TRANSCRIPT,
        ),
        Column(
            "extra_answers",
            JSON,
            "Answers to the fields that the policy's own answer schema adds, by field.",
            null="its schema adds none, or not judged",
            source=_TRANSCRIPT,
        ),
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
    description="HTTP calls to judges and embedding models: request, response, tokens and cost.",
    row="one HTTP call",
    columns=postgres_only(
        Column("attempt_id", STRING, "UUID, generated before the call.", key=True),
        Column("run_id", STRING, "The run.", null=_FOR_TEXTS),
        Column("verdict_key", STRING, "The verdict that it was made for.", null=_FOR_TEXTS),
        Column("policy_id", STRING, "The policy; of a call for embeddings, `model_id` of the embedding model."),
        Column("started_at", TIMESTAMP, "When it was sent."),
        nanoseconds("duration_ns", "Duration of the call.", null="its end was not recorded"),
        Column("model", STRING, "Model that was called."),
        Column("response_model", STRING, "Model that responded, as it says itself.", null="no response"),
        Column("base_url", STRING, "Endpoint that was called, without credentials."),
        Column("prompt_characters", INT, "Characters sent.", unit="characters"),
        Column("http_status", INT, "HTTP status of the response.", null="no response"),
        Column("request_id", STRING, "The provider's id of the call.", null=_NOT_REPORTED),
        Column("finish_reason", STRING, "Finish reason from the provider.", null=_NOT_REPORTED),
        Column("result", STRING, "`answered`, `refused`, `unusable`, `error`, or `lost` (no response arrived)."),
        Column("error_class", STRING, "See [error classes](#error-classes).", null=_NO_ERROR),
        Column("error_message", STRING, "The error as a sentence.", null=_NO_ERROR),
        tokens("input_tokens", "Prompt tokens.", null=_NOT_REPORTED),
        tokens("cached_input_tokens", "Prompt tokens read from the provider's cache.", null=_NOT_REPORTED),
        tokens("output_tokens", "Completion tokens.", null=_NOT_REPORTED),
        dollars("cost_usd", "Cost of the call; of a `lost` one, the reserved cost.", null=_NO_PRICE),
        Column(
            "purpose",
            STRING,
            "`first`; `retry` after a transient failure; `repair` of an unusable response; or `fallback` to a simpler"
            " format after the server rejected one.",
            null="written by a version that did not record it",
        ),
        Column(
            "response_format",
            STRING,
            "How the response schema was sent: `json_schema`, `tool_call`, `prompt`; or `decisions`, `embeddings`.",
        ),
        Column("temperature", FLOAT, "Temperature sent.", unit="0–2", null="not sent, because the model rejects it"),
        dollars("reserved_usd", "Largest possible cost.", null=_NO_PRICE),
        tokens("reserved_tokens", "Largest possible prompt and completion together."),
        Column("budget_day", STRING, "UTC day whose cap it counts against: `2026-11-23`."),
        Column("organization_id", STRING, "Organization whose cap it counts against.", null="none recorded"),
        Column("materialization_id", STRING, "The materialization: the Dagster run id where there is one."),
        Column("batch_id", STRING, "The batch that it was a line of: see `judge_batches`.", null="a call of its own"),
        Column("texts", INT, "Texts to be embedded.", unit="texts", null="a call to a judge"),
    ),
    indexes=(("run_id",), ("verdict_key",), ("started_at",), ("budget_day",), ("batch_id",)),
)

JUDGE_BATCHES = Table(
    name="judge_batches",
    description="Batches of calls at the judge's provider (`TRAJECTORY_JUDGE_MODE=batch`): each line is an attempt.",
    row="one batch",
    columns=postgres_only(
        Column("batch_id", STRING, "UUID, generated before anything is sent; in the batch's metadata there.", key=True),
        Column(
            "state",
            STRING,
            "`preparing`, `uploading`, `creating`, `submitted`, `collected`, or `abandoned`: it was never sent.",
        ),
        Column("policy_id", STRING, "The policy."),
        Column("model", STRING, "Model that is asked."),
        Column("base_url", STRING, "Endpoint, without credentials."),
        Column("options", JSON, "Response format, temperature and name of the answer's limit in each line."),
        Column("materialization_id", STRING, "The materialization that prepared it."),
        Column("sha256", STRING, "SHA-256 (hex) of the file of requests.", null="not written to its end"),
        Column("bytes", INT, "Size of that file.", unit="bytes", null="not written to its end"),
        Column("lines", INT, "Requests in it.", unit="requests"),
        tokens("prompt_tokens", "Estimated prompt tokens of all lines."),
        Column("input_file_id", STRING, "The provider's id of the file of requests.", null="not uploaded"),
        Column("provider_batch_id", STRING, "The provider's id of the batch.", null="not sent"),
        Column("provider_status", STRING, "Its status as the provider said last.", null="not sent"),
        Column("output_file_id", STRING, "The provider's id of the file of answers.", null="there is none yet"),
        Column("error_file_id", STRING, "The provider's id of the file of errors.", null="there is none yet"),
        Column("completed", INT, "Lines with an answer, as the provider counts.", unit="requests", null="not told"),
        Column("failed", INT, "Lines with an error, as the provider counts.", unit="requests", null="not told"),
        Column("counts", JSON, "Lines by what was found in the files.", null="not collected"),
        dollars("reserved_usd", "Largest possible cost of its lines.", null="no known price"),
        dollars("booked_usd", "Cost of its lines as booked.", null="not collected"),
        tokens("token_limit", "Most tokens in batches that the provider takes.", null="it did not say"),
        Column("note", STRING, "What went wrong, as a sentence.", null="nothing"),
        Column("created_at", TIMESTAMP, "When it was begun."),
        Column("submitted_at", TIMESTAMP, "When the provider had it.", null="not sent"),
        Column("polled_at", TIMESTAMP, "When the provider was last asked.", null="never"),
        Column("ended_at", TIMESTAMP, "When it was collected or abandoned.", null="it runs"),
        Column("files_deleted_at", TIMESTAMP, "When its files were deleted at the provider.", null="they are there"),
        Column("updated_at", TIMESTAMP, "When this row last changed."),
    ),
    indexes=(("state",),),
)

POLICIES = Table(
    name="policies",
    description="Refinement policies in use now or before.",
    row="one policy",
    columns=postgres_only(
        Column("policy_id", STRING, "First 16 hex digits of the SHA-256 of `definition`.", key=True),
        Column("definition", JSON, "Model, parameters and versions of prompt, rubric, response schema and renderer."),
        Column("model", STRING, "The judge's model."),
        Column("is_current", BOOL, "Whether it is the current one."),
        Column("first_used_at", TIMESTAMP, "When it was first used."),
    ),
)

REDACTION_KEYS = Table(
    name="redaction_keys",
    description="Key for the tags in redaction placeholders, where `TRAJECTORY_REDACTION_KEY` is not set.",
    row="the one key",
    columns=postgres_only(
        Column("name", STRING, "`tags`.", key=True),
        Column(
            "secret", STRING, "Random key, hex. Keep it secret: with it, guesses at redacted secrets can be tested."
        ),
        Column("created_at", TIMESTAMP, "When it was generated."),
    ),
)
