"""The answers of one batch, for the worker that stores their verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from trajectory_pipeline.judge.client.batch_lines import BatchReplies
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline.judge.client.http_call import HttpReply
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest
from trajectory_pipeline.pipeline.call_budget import priced
from trajectory_pipeline.schema.enums import AttemptPurpose
from trajectory_pipeline.storage.postgres.judge_batches import nanoseconds_between
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate

SUPERSEDED = "what the judge is shown, or the policy, changed while the batch ran: the answer is booked and not stored"
Row = dict[str, Any]


@dataclass
class BatchInbox:
    """The calls of a batch, by verdict, and the replies to them; ``worker`` collects it."""

    batch_id: str
    worker: str
    judge: JudgeConfig
    replies: BatchReplies
    attempts: Mapping[tuple[str, str], Row]
    _now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def sent(self, candidate: JudgingCandidate) -> CallRecord:
        """Return the call that was made for a verdict."""
        return self._sent(self.attempts[candidate.key])

    def reply(self, candidate: JudgingCandidate, request: JudgeRequest) -> HttpReply | None:
        """Return what came of it; None where the judge would be shown something else now."""
        attempt = self.attempts[candidate.key]
        return self._reply(attempt) if attempt["shown_sha256"] == request.shown_sha256 else None

    def settled(self, attempt: Mapping[str, Any]) -> Row:
        """Return the row of a call that is booked without a verdict; the provider's words are left out."""
        call = priced(self._reply(attempt).call, attempt["reserved_usd"], self.judge)
        row = {**attempt, **call.as_row(), "error_message": None}
        return {name: row[name] for name in attempt}

    def _reply(self, attempt: Mapping[str, Any]) -> HttpReply:
        reply = self.replies.reply(self._sent(attempt))
        took = nanoseconds_between(attempt["started_at"], self._now)
        return replace(reply, call=replace(reply.call, duration_ns=took))

    def _sent(self, attempt: Mapping[str, Any]) -> CallRecord:
        answer_tokens = min(self.judge.max_response_tokens, attempt["reserved_tokens"])
        return CallRecord(
            model=attempt["model"],
            base_url=attempt["base_url"],
            prompt_characters=attempt["prompt_characters"],
            estimated_prompt_tokens=attempt["reserved_tokens"] - answer_tokens,
            max_response_tokens=answer_tokens,
            purpose=AttemptPurpose(attempt["purpose"]),
            response_format=attempt["response_format"],
            temperature=attempt["temperature"],
            attempt_id=attempt["attempt_id"],
            started_at=attempt["started_at"],
            cost_usd=attempt["reserved_usd"],
            batch_id=self.batch_id,
        )
