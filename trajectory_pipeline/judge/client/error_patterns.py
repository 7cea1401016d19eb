"""How providers word their errors, as patterns over lower-case text."""

import re


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


GENERATION = _any(
    r"json_validate_failed|tool_use_failed|output_parse_failed|failed to call a function",
    r"failed to (generate|validate) (valid )?(json|tool|output)|failed to parse (the )?(tool|output|generated|model)",
    r"(model|generated|llm)[^.;]{0,40}(invalid|malformed|not valid) (json|output|response|tool)",
)
"""The model's own answer is what the provider could not use: it was generated, and may be billed."""
USED_UP = _any(r"max(imum)? (completion )?tokens reached|token limit reached|before generating a valid")
CONTEXT = _any(
    r"context[_ ](length|window|size|limit)|contextwindow|maximum context",
    r"max(imum)?[_ ](prompt|model|input|sequence)[_ ]len|exceeds? the (available )?context",
    r"(prompt|input|request|sequence)( is|'s)? too (long|large) for|(prompt|input) is too (long|large)",
    r"(entity|payload|content) too large|too many (input |prompt )?tokens(?!,? (please wait|sent|processed|per ))",
    r"must have less than \d+ tokens",
    r"reduce the length of the (messages|input|prompt)|reduce your message size|output tokens must be reduced",
    r"(prompt|inputs?`?)[^.;]{0,40}tokens?[^.;]{0,80}(exceed|longer than|too large|must be|must have)",
    r"(prompt|input)[^.;]{0,60}(longer than|exceeds?) the (max|context|model)",
)
FILTER = _any(
    r"content[_ ]?filter|content[_ ]management[_ ]policy|responsible_?ai|moderation|flagged|content exists risk",
    r"(inappropriate|unsafe|sensitive|prohibited|harmful)[_ ]content|usage (policy|policies|guidelines)",
    r"data_inspection|safety (system|check|filter)|blocked (by|due to|for) [^.]{0,40}(safety|policy|filter)",
    r"guardrail|block_?reason",
)
NO_CREDIT = _any(
    r"insufficient[_ ](quota|credits?|balance|funds)|credit balance|payment[_ ]required|billing_not_active",
    r"(credits?|balance)[^.]{0,30}(exhausted|too low|depleted)|(requires|need) more credits",
    r"(api )?usage limits?\b|budget[^.;]{0,20}exceeded|exceeded ?(token|team|user|key)? ?budget|max budget"
    r"|out of call volume",
    r"arrearage|account is in good standing|free ?tier[^.;]{0,40}(exhausted|only)|欠费|余额不足",
    r"(spend(ing)?|credit|billing|key|hard) limit|used all (of )?(your |its )?available credits",
    r"account[^.]{0,40}(suspended|deactivated|in arrears|overdue)",
)
"""No waiting helps."""
QUOTA = _any(r"quota|billing|monthly|(per|/) ?month|daily (free )?allocation")
SHORT_LIMIT = _any(r"per[ _-]?(minute|min|second|sec)\b|perminute|persecond|\b[rt]p[ms]\b|/ ?min|rate ?quota")
DAILY_LIMIT = _any(r"per[ _-]?day|perday|daily|\b[rt]pd\b")
RATE = _any(r"rate[_ -]?limit|too many (concurrent )?requests|resource_exhausted|throttl")
KEY = _any(
    r"(invalid|incorrect|wrong|missing|malformed|expired|disabled|revoked|no|bad)[ _-](x-)?"
    r"(api[ _-]?key|auth[a-z]* (token|credentials?|header)|access token|bearer token|credentials)",
    r"api[_ -]?key[^.;]{0,40}(not valid|invalid|incorrect|expired|missing|not found|required|disabled|not provided)",
    r"(pass|provide|supply) (a|an|your) (valid )?api[_ -]?key|api_key_invalid|unauthenticated|unauthori[sz]ed",
    r"authentication[_ ](error|fail|required)|auth credentials|could not validate credentials",
    r"security token[^.;]{0,40}(invalid|expired)",
)
MODEL = _any(
    r"model[_ ]?not[_ ]?found|model_decommissioned|model_not_supported|not a chat model|model (name|id) is",
    r"model[^;]{0,120}?(not found|n[o']t exist|not exist|not (available|accessible|valid|a valid|loaded))",
    r"model[^;]{0,120}?(no longer available|has been (deprecated|retired|removed|shut ?down)|decommissioned)",
    r"model identifier is invalid|on-demand throughput",
    r"(no such|unknown|invalid|unrecognized|nonexistent|not a valid) ['\"]?model\b(?!.{0,3}param)",
    r"(requested|specified) model[^.;]{0,60}not supported|no models? (is |are )?(currently )?loaded",
    r"please load a model|deployment[^;]{0,60}not exist|deploymentnotfound|no endpoints found for",
    r"no (available )?(channel|provider|deployment)s?[^;]{0,30} model",
)
ENDPOINT = _any(
    r"unexpected endpoint|(unknown|invalid) (request )?url|page not found|endpoint not found|cannot post /",
    r"no route (for|matched)|not found for account",
)

LIMIT_NAME = _any(r"max_completion_tokens")
TEMPERATURE = _any(r"temperature")
SCHEMA = _any(
    r"response[_ ]?format|(json|response|output|invalid|your)[_ ]schema|json[_ ](object|mode)",
    r"schema[_ ](is |was )?(too|not|invalid|valid|contains)|structured[_ ]outputs?|structured_generation",
    r"guided|grammar|constrained|xgrammar|outlines|output_(config|format)|response[_ ]mime[_ ]type|text\.format",
    r"too many states|requested parameters|additionalproperties|anyof|\$ref|\$defs|uniqueitems",
    r"(min|max)(imum|length|items|properties)\b|exclusive(min|max)imum",
)
TOOLS = _any(r"\btools?\b|tool_choice|tool_calls?|\bfunctions?\b|function[_ ]call")
"""As the servers word it: OpenAI "Unsupported value: 'temperature' does not support 0 with this model", vLLM
"[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), …}]", Ollama "… does not support tools",
OpenRouter "No endpoints found that support tool use", LiteLLM "UnsupportedParamsError: … response_format"."""
