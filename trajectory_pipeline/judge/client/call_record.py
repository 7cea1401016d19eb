"""Records of an HTTP call to a judge, and of all calls for one question."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from trajectory_pipeline.budget.prices import CallUsage
from trajectory_pipeline.judge.transcript.truncate import cut
from trajectory_pipeline.schema.enums import AttemptPurpose, AttemptResult, ErrorClass

UNUSABLE_RESPONSES = frozenset(
    {
        ErrorClass.CUT_OFF,
        ErrorClass.INVALID_JSON,
        ErrorClass.NOT_A_NUMBER,
        ErrorClass.OUT_OF_RANGE,
        ErrorClass.WRONG_COUNT,
        ErrorClass.SCHEMA_VIOLATION,
    }
)
"""Error classes of a response that arrived and is unusable."""

_MAX_MESSAGE_CHARACTERS = 2000

JudgeReply = TypeVar("JudgeReply", bound=BaseModel)


@dataclass(frozen=True)
class CallRecord:
    """One HTTP call; see ``schema.verdicts.VERDICT_ATTEMPTS``. Until an end is seen it is ``lost``.

    ``result`` is ``error`` where the provider refused it or was never reached. ``estimated_prompt_tokens`` and
    ``max_response_tokens`` are its most tokens, by a conservative estimate: they are reserved for it. ``billed_usd`` is
    what the provider says that it cost, and ``share_read`` the share of the prompt that it can have read at most. With
    a ``batch_id`` it is a line of a batch, with ``texts`` a call for embeddings of so many.
    """

    model: str
    base_url: str
    prompt_characters: int
    estimated_prompt_tokens: int = 0
    max_response_tokens: int = 0
    purpose: AttemptPurpose = AttemptPurpose.FIRST
    response_format: str = "json_schema"
    temperature: float | None = None
    attempt_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_ns: int | None = None
    response_model: str | None = None
    http_status: int | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    result: AttemptResult = AttemptResult.LOST
    error_class: ErrorClass | None = None
    error_message: str | None = None
    usage: CallUsage | None = None
    billed_usd: Decimal | None = None
    cost_usd: Decimal | None = None
    simulated: bool = False
    share_read: float = 1.0
    batch_id: str | None = None
    texts: int | None = None

    def as_row(self) -> dict[str, Any]:
        """Return the columns of the table."""
        # ``dataclasses.asdict`` would copy each value, which takes longer than reading the response.
        row = {name: getattr(self, name) for name in _FIELDS}
        usage = row.pop("usage")
        return row if usage is None else {**row, **{name: getattr(usage, name) for name in _COUNTS}}

    def failed(self, result: AttemptResult, error_class: ErrorClass, message: str) -> "CallRecord":
        """Return the call as failed; a very long message is shortened, and says so."""
        line = cut(" ".join(message.split()), _MAX_MESSAGE_CHARACTERS)
        return replace(self, result=result, error_class=error_class, error_message=line)


_FIELDS = tuple(one.name for one in fields(CallRecord) if one.name not in ("simulated", "billed_usd", "share_read"))
_COUNTS = ("input_tokens", "cached_input_tokens", "output_tokens")
"""Of a usage; the rest of it only decides the price."""


@dataclass(frozen=True)
class AskResult(Generic[JudgeReply]):
    """Result of asking one question: every HTTP call, in order, and a valid answer or the last unusable text."""

    calls: tuple[CallRecord, ...]
    answer: JudgeReply | None
    raw_response: str | None

    @property
    def unusable(self) -> bool:
        """Whether even the repaired response was unusable: asking again would not help."""
        return self.answer is None and self.calls[-1].error_class in UNUSABLE_RESPONSES


RecordCall = Callable[[CallRecord], Awaitable[None]]
