"""Writes calls into files and submits them as batches: stored and reserved first, so that nothing is sent twice.

Between any two steps the process may be killed. What is left then is told by the batch's state: ``keep_batches``
finds it again at the provider, or undoes it.
"""

import asyncio
import hashlib
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, Any
from uuid import uuid4

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.client.batch_api import (
    ENDPOINT,
    MAX_BYTES,
    MAX_LINES,
    BatchApi,
    BatchApiError,
    open_batch_api,
)
from trajectory_pipeline.judge.client.batch_lines import request_line
from trajectory_pipeline.judge.client.session import JudgeSession
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest, failed
from trajectory_pipeline.pipeline.call_budget import CLAIM_EXTRA_SECONDS, VerdictCalls
from trajectory_pipeline.schema.enums import UNSENT_STATES, BatchState, ErrorClass, VerdictStatus
from trajectory_pipeline.storage.postgres.judge_batches import BatchStore
from trajectory_pipeline.storage.postgres.verdict_status import JudgingCandidate
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import without_credentials

JudgeOnline = Callable[["deque[JudgingCandidate]", JudgeSession], Awaitable[list[JudgingCandidate]]]
Row = dict[str, Any]


@dataclass
class _Draft:
    batch_id: str
    file: IO[bytes]
    lines: int = 0
    bytes: int = 0
    prompt_tokens: int = 0
    reserved_usd: Decimal | None = Decimal(0)
    candidates: list[JudgingCandidate] = field(default_factory=list)
    is_begun: bool = False
    """Whether anything of it may be at the provider."""


class BatchOutbox:
    """The batches that one worker prepares and submits, over a connection of its own."""

    def __init__(
        self,
        store: BatchStore,
        judge: JudgeConfig,
        materialization_id: str,
        progress: Callable[[str], None],
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._store = store
        self._judge = judge
        self._materialization_id = materialization_id
        self._progress = progress
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._lock = asyncio.Lock()
        self._drafts: list[_Draft] = []
        self._session: JudgeSession | None = None
        self._worker = ""
        self._token_limit: int | None = None
        self._room: int | None = None

    async def open(
        self, session: JudgeSession, worker: str, waiting: "deque[JudgingCandidate]", judge_online: JudgeOnline
    ) -> "deque[JudgingCandidate]":
        """Learn which form of a request the server accepts; returns the candidates that are left.

        Where no batch with such options was answered before, the first candidates are judged online, one at a time,
        until one call is answered: a wrong form would cost all lines of a batch.
        """
        endpoint = without_credentials(self._judge.base_url)
        self._worker = worker
        self._token_limit, self._room = self._store.token_room(endpoint, self._judge.model) or (None, None)
        accepted = self._store.accepted_options(endpoint, self._judge.model)
        claimed: list[JudgingCandidate] = []
        if accepted is None or not session.use_accepted(accepted):
            while waiting and not session.is_answered:
                claimed += await judge_online(deque([waiting.popleft()]), session)
        self._session = session
        return deque([*claimed, *waiting])

    @property
    def _open_session(self) -> JudgeSession:
        if self._session is None:
            raise RuntimeError("the outbox is not open")
        return self._session

    @property
    def unsent(self) -> set[JudgingCandidate]:
        """Candidates whose batch was not submitted."""
        return {candidate for draft in self._drafts for candidate in draft.candidates}

    def takes(self, request: JudgeRequest) -> bool:
        """Whether a request goes into a batch.

        The windows of a long one are asked one after another, online; so is one that no batch could hold.
        """
        if self._session is None or request.calls != 1:
            return False
        if self._token_limit is None:
            return True
        call, _ = self._session.batch_line(request.chat, request.prompt.answer_type, "")
        return call.estimated_prompt_tokens <= self._token_limit

    async def add(self, calls: VerdictCalls, request: JudgeRequest) -> Row:
        """Claim the verdict, reserve its cost at the batch rate, and write the request; returns the verdict's columns.

        Raises what ``VerdictCalls.begin`` raises; then nothing is written.
        """
        call, body = self._open_session.batch_line(request.chat, request.prompt.answer_type, "")
        line = request_line(call, ENDPOINT, body)
        async with self._lock:
            if self._room is not None:
                if self._room < call.estimated_prompt_tokens:
                    return failed(ErrorClass.BATCH_QUEUE_FULL, "the batches that run hold all tokens that it takes")
                self._room -= call.estimated_prompt_tokens
            draft = await self._draft(len(line))
            draft.lines, draft.bytes = draft.lines + 1, draft.bytes + len(line)
        call = replace(call, batch_id=draft.batch_id)
        try:
            await calls.begin(call, request)
        except BaseException:
            draft.lines, draft.bytes = draft.lines - 1, draft.bytes - len(line)
            if self._room is not None:
                self._room += call.estimated_prompt_tokens
            raise
        with _writing():
            draft.file.write(line)
        draft.candidates.append(calls.candidate)
        draft.prompt_tokens += call.estimated_prompt_tokens
        usd = calls.by_id[call.attempt_id].cost_usd
        draft.reserved_usd = None if usd is None or draft.reserved_usd is None else draft.reserved_usd + usd
        shown = {"coverage": request.rendered.coverage, "windows": 1, "shown_sha256": request.shown_sha256}
        return {**shown, "verdict_status": VerdictStatus.SUBMITTED}

    async def send(self) -> None:
        """Submit every batch; what cannot be submitted is undone, and its verdicts are pending again.

        Raises:
            BatchApiError: the provider refuses, or could not be reached; then the rest is undone by ``close``.
        """
        async with open_batch_api(self._judge) as api:
            while self._drafts:
                await self._send(api, self._drafts[0])
                self._drafts.pop(0).file.close()

    def close(self) -> None:
        """Undo the batches of which nothing can be at the provider."""
        for draft in self._drafts:
            with suppress(OSError):  # what could not be written is written once more
                draft.file.close()
            if not draft.is_begun:
                self._undo(draft, ErrorClass.BATCH_ENDED, "it was not sent: something else failed before")

    async def _draft(self, size: int) -> _Draft:
        """Return the batch that has room for a line of this size."""
        last = self._drafts[-1] if self._drafts else None
        if last is None or last.lines + 1 > self._max_lines or last.bytes + size > self._max_bytes:
            # Unnamed: nothing of it stays on the disk, however this process ends.
            with _writing():
                last = _Draft(str(uuid4()), tempfile.TemporaryFile())  # noqa: SIM115 - closed when it is sent
            self._drafts.append(last)
            await asyncio.to_thread(
                self._store.insert,
                last.batch_id,
                self._worker,
                CLAIM_EXTRA_SECONDS,
                policy_id=self._judge.policy.policy_id,
                model=self._judge.model,
                base_url=without_credentials(self._judge.base_url),
                options=asdict(self._open_session.options),
                materialization_id=self._materialization_id,
            )
        return last

    async def _send(self, api: BatchApi, draft: _Draft) -> None:
        if draft.lines == 0:
            self._undo(draft, ErrorClass.BATCH_ENDED, "it has no line")
            return
        with _writing():
            draft.file.flush()
        draft.file.seek(0)
        sha256 = hashlib.file_digest(draft.file, "sha256").hexdigest()  # type: ignore[arg-type]  # a binary file
        draft.file.seek(0)
        draft.is_begun = True
        self._advance(
            draft,
            BatchState.PREPARING,
            state=BatchState.UPLOADING,
            sha256=sha256,
            bytes=draft.bytes,
            lines=draft.lines,
            prompt_tokens=draft.prompt_tokens,
            reserved_usd=draft.reserved_usd,
        )
        try:
            file_id = await api.upload(draft.batch_id, draft.file)
            try:
                self._advance(draft, BatchState.UPLOADING, state=BatchState.CREATING, input_file_id=file_id)
            except PipelineError:
                await api.delete(file_id)
                raise
            try:
                batch = await api.create(draft.batch_id, file_id, sha256)
            except BatchApiError as error:
                if error.is_refusal:
                    await api.delete(file_id)
                raise
        except BatchApiError as error:
            if error.is_refusal:
                full = error.error_class is ErrorClass.RATE_LIMITED
                self._undo(draft, ErrorClass.BATCH_QUEUE_FULL if full else ErrorClass.BATCH_ENDED, str(error))
            raise
        self._advance(
            draft,
            BatchState.CREATING,
            state=BatchState.SUBMITTED,
            provider_batch_id=batch.id,
            provider_status=batch.status,
            submitted_at=datetime.now(UTC),
        )
        self._store.unclaim(draft.batch_id, self._worker)
        submitted = pluralize(draft.lines, "trajectory", "trajectories")
        size = f"{draft.bytes} bytes, at most {draft.reserved_usd} USD"
        self._progress(f"{submitted} submitted as batch {batch.id} ({size})")

    def _advance(self, draft: _Draft, expected: BatchState, **values: Any) -> None:
        if self._store.change(draft.batch_id, [expected], **values):
            return
        batch = self._store.find(draft.batch_id)
        if batch is None or batch.provider_batch_id is None:
            self._undo(draft, ErrorClass.BATCH_ENDED, "it was undone while it was prepared")
            raise PipelineError(
                f"Batch {draft.batch_id} was taken for one of a killed worker and undone: this worker was out of touch"
                " for minutes. Its verdicts are pending again."
            )

    def _undo(self, draft: _Draft, error_class: ErrorClass, note: str) -> None:
        batch = self._store.find(draft.batch_id)
        if batch is not None and batch.state in (*UNSENT_STATES, BatchState.ABANDONED):
            self._store.abandon(batch, error_class, note)


@contextmanager
def _writing() -> Iterator[None]:
    """Raise what keeps a batch's file from being written as an error that ends the run: no other line would fit."""
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"A batch's file cannot be written to the folder for temporary files ({error.strerror or error}): make room"
            " there, or name another folder in TMPDIR. Nothing of it was sent."
        ) from None
