"""Token counts of a call, from whatever usage object a provider sends: never fewer than it may bill.

Providers count differently: reasoning inside the completion or beside it, cached tokens inside the prompt or beside it.
``total_tokens`` decides where it adds up. Where it does not, the reading with the most tokens counts.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from trajectory_pipeline.budget.prices import MAX_COST, CallUsage
from trajectory_pipeline.judge.client.json_leaves import leaves

_MAX_TOKENS = 2**53
"""No call has as many: a larger number is no token count."""
_PROMPT = (
    "prompt_tokens",
    "input_tokens",
    "prompt_token_count",
    "prompt_eval_count",
    "input_token_count",
    "request_tokens",
)
_OUTPUT = (
    *("completion_tokens", "output_tokens", "candidates_token_count", "eval_count", "output_token_count"),
    *("generated_token_count", "generated_tokens", "response_tokens"),
)
_TOTAL = ("total_tokens", "total_token_count")
_REASONING = re.compile(r"^(reasoning|thought|thinking)s?_token(s|_count)$")
_CACHED = re.compile(r"cached_(content_)?token(s|_count)$|cache_hit_tokens$")
_CACHED_APART = re.compile(r"^cache_(read|creation|write)(_input)?_token(s|_count)$|^tool_use_prompt_token(s|_count)$")
"""As Anthropic counts: not a part of its ``input_tokens``; nor are Gemini's results of tools of its prompt."""
_CACHE_WRITTEN = re.compile(r"^cache_(creation|write)(_input)?_token(s|_count)$")
_CACHE_CREATION = re.compile(r"^ephemeral_\w{1,8}_input_tokens$")
"""The parts of what Anthropic writes into its cache, which some gateways send without the sum."""
_DOLLARS = ("cost", "total_cost", "estimated_cost", "cost_usd", "upstream_inference_cost")
_TICKS_PER_DOLLAR = 10**10


def read_usage(usage: Any, reserved_prompt: int, reserved_output: int, *, has_text: bool) -> CallUsage | None:
    """Return the tokens of a call, the most that its provider may mean; None where they are not told.

    A call without usage counts what was reserved for it, so a part of the counts is used only where it is above that.
    No prompt has 0 tokens, and no text has: such a count is not told either.
    """
    if not isinstance(usage, dict):
        return None
    exact, counts = _counts(usage, _exact), _counts(usage, _at_least)
    known = _read(exact, counts, has_text=has_text)
    if known is not None:
        return known
    prompt = _largest(counts, _PROMPT) + _apart(counts)
    output = max(_largest(counts, _OUTPUT) + _sum(counts, _REASONING), _largest(counts, _TOTAL))
    if prompt <= reserved_prompt and output <= reserved_output:
        return None
    prompt = max(prompt, reserved_prompt)
    return CallUsage(prompt, None, max(output, reserved_output), min(_written(counts), prompt))


def read_billed_usd(usage: Any) -> Decimal | None:
    """Return what the provider says that a call cost, in dollars; None where it does not say it, or says 0."""
    if not isinstance(usage, dict):
        return None
    found = [(name, _dollars(value)) for name, value in leaves(usage)]
    told = [dollars for name, dollars in found if name in _DOLLARS]
    told += [dollars / _TICKS_PER_DOLLAR for name, dollars in found if name == "cost_in_usd_ticks"]
    if usage.get("is_byok") is True:
        # The fee of the router, and beside it what the user's own account at the provider is billed.
        told.append(sum(told, Decimal(0)))
    most = max(told, default=Decimal(0))
    return most if 0 < most < MAX_COST else None


def _read(exact: Mapping[str, int], counts: Mapping[str, int], *, has_text: bool) -> CallUsage | None:
    total, reasoning = _largest(counts, _TOTAL), _sum(counts, _REASONING)
    apart, cached = _apart(counts), _sum(counts, _CACHED)
    prompt, output = _largest(exact, _PROMPT), _largest(exact, _OUTPUT)
    if not prompt and not counts.keys() & set(_PROMPT):
        prompt = max(total - output, 0)
    if not output and not counts.keys() & set(_OUTPUT):
        output = max(total - prompt, 0)
    malformed = (counts.keys() - exact.keys()) & {*_PROMPT, *_OUTPUT}
    if not prompt or malformed or not (output or exact.keys() & set(_OUTPUT)):
        return None
    adds_up = total == prompt + output
    billed_output = max(output, total - prompt, 0 if adds_up and reasoning <= output else output + reasoning)
    billed_prompt = max(prompt, 0 if adds_up and apart <= prompt else prompt + apart)
    if cached > prompt:
        billed_prompt = max(billed_prompt, prompt + cached)
    if has_text and not billed_output:
        return None
    # Counts that contradict each other give no discount.
    is_discounted = billed_prompt == prompt and any(_CACHED.search(name) for name in counts)
    written = min(_written(counts), billed_prompt - (cached if is_discounted else 0))
    return CallUsage(billed_prompt, cached if is_discounted else None, billed_output, written)


def _counts(usage: dict[str, Any], read: Callable[[str | int | float], int | None]) -> dict[str, int]:
    """Return the counts of a usage object by name, in one style; the largest where a name stands several times."""
    found: dict[str, int] = {}
    for name, value in leaves(usage):
        name, count = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower(), read(value)
        if count is not None:
            found[name] = max(count, found.get(name, 0))
    return found


def _largest(counts: Mapping[str, int], names: Iterable[str]) -> int:
    return max((counts[name] for name in names if name in counts), default=0)


def _sum(counts: Mapping[str, int], pattern: re.Pattern[str]) -> int:
    return sum(count for name, count in counts.items() if pattern.search(name))


def _apart(counts: Mapping[str, int]) -> int:
    return _sum(counts, _CACHED_APART) + _parts_written(counts)


def _written(counts: Mapping[str, int]) -> int:
    return _sum(counts, _CACHE_WRITTEN) + _parts_written(counts)


def _parts_written(counts: Mapping[str, int]) -> int:
    return 0 if counts.get("cache_creation_input_tokens") else _sum(counts, _CACHE_CREATION)


def _exact(value: str | float) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _MAX_TOKENS else None


def _at_least(value: str | float) -> int | None:
    """Return a count that is written as a text or a fraction, rounded up."""
    try:
        number = float(value)
    except ValueError:
        return None
    return math.ceil(number) if math.isfinite(number) and 0 <= number < _MAX_TOKENS else None


def _dollars(value: str | float) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return Decimal(0)
    return number if number.is_finite() and number >= 0 else Decimal(0)
