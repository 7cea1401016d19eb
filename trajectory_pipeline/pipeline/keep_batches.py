"""Follows the batches at the provider to their end: finds lost ones, polls, cancels, and collects the answers."""

import asyncio
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from openai.types import Batch

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.client.batch_api import (
    ENDED,
    BatchApi,
    BatchApiError,
    awaits_answers,
    batch_errors,
    enqueued_limit,
    open_batch_api,
)
from trajectory_pipeline.judge.client.batch_lines import BatchReplies
from trajectory_pipeline.judge.client.errors import classify_error
from trajectory_pipeline.judge.client.http_call import SIMULATED_HEADER
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.pipeline.batch_inbox import SUPERSEDED, BatchInbox
from trajectory_pipeline.pipeline.judge_candidates import judge_candidates, run_to_end
from trajectory_pipeline.pipeline.judging_stats import JudgingStats
from trajectory_pipeline.schema.enums import BatchState, ErrorClass, JudgeOrder, VerdictStatus
from trajectory_pipeline.storage.postgres.judge_batches import BatchStore, JudgeBatch, open_batches
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key
from trajectory_pipeline.storage.postgres.verdict_locks import new_worker
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import VerdictStore, open_verdicts
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.urls import without_credentials

RECOVER_AFTER = timedelta(minutes=2)
"""Age of the last step of a batch whose worker is gone, before it is looked for: a provider's list may lag."""
_WORK_SECONDS = 900.0
"""A claim on a batch while its files are downloaded; from then on the worker renews it."""
_PAUSES_BEFORE_SHORT_FILES_AGAIN = (0.5, 2.0)
"""Seconds: files with fewer answers than the provider counts may have been cut off on their way, without an error."""
_QUEUE_FULL = ("token_limit_exceeded", "enqueued token")


@dataclass(frozen=True)
class PolledBatch:
    """What was seen of a batch: a sentence, and the partitions that its verdicts are in where it can be collected."""

    batch: JudgeBatch
    seen: str
    is_ended: bool = False
    partition_keys: tuple[str, ...] = ()


def poll_batches(
    storage: Storage, judge: JudgeConfig, is_partition: Callable[[str], bool] = lambda _: True
) -> list[PolledBatch]:
    """Ask the provider for every batch that runs, and finish what a killed worker left.

    A batch that a killed worker prepared is found again at the provider by its id in the metadata or by its file, or is
    undone. One that was sent content which has been erased since is cancelled, and its file deleted. One that ended is
    collected here where no run can do it: none of its verdicts is in a partition, or all were pruned.

    Raises:
        SinkError: the trajectory database cannot be reached.
    """
    with open_batches(storage.postgres) as store:
        batches = store.unfinished()
        polled = run_to_end(_poll_all(store, judge, batches)) if batches else []
        return [
            one
            if any(map(is_partition, one.partition_keys)) or not one.is_ended
            else _collected(one, storage, judge, store)
            for one in polled
        ]


def _collected(one: PolledBatch, storage: Storage, judge: JudgeConfig, store: BatchStore) -> PolledBatch:
    """Collect a batch that no run would collect; returns what came of it."""
    keys, seen = list(one.partition_keys), [one.seen]
    try:
        judge = judge.with_redaction_key(redaction_key(storage.postgres, judge.redaction_key))
        with open_verdicts(storage.postgres) as verdicts:
            collector = _Collector(storage, judge, store, verdicts, str(uuid4()), seen.append)
            collector.collect(one.batch, keys, {key: JudgingStats() for key in keys})
    except PipelineError as error:
        seen.append(str(error))
    return replace(one, seen="; ".join(seen), is_ended=False, partition_keys=())


def cancel_batch(storage: Storage, judge: JudgeConfig, batch_id: str) -> str:
    """Cancel a batch at the provider, by our id or the provider's; returns what follows, as a sentence.

    Raises:
        PipelineError: there is no such batch, or it does not run, or the provider refuses.
    """
    with open_batches(storage.postgres) as store:
        batch = _require(store, batch_id)

        async def work() -> str:
            async with open_batch_api(judge) as api:
                if batch.state != BatchState.SUBMITTED or batch.provider_batch_id is None:
                    raise PipelineError(f"Batch {batch.batch_id} does not run: it is {batch.state}.")
                seen = await api.cancel(batch.provider_batch_id)
                store.change(batch.batch_id, [BatchState.SUBMITTED], provider_status=seen.status)
                return f"Batch {batch.batch_id} is {seen.status}. What was answered by then is collected and booked."

        _require_endpoint(batch, judge)
        return run_to_end(work())


def forget_batch(storage: Storage, judge: JudgeConfig, batch_id: str) -> str:
    """Book every line of a batch as lost, at what it may have cost, and make its verdicts pending again.

    For a batch that the provider does not know any more. Nothing is asked of the provider.

    Raises:
        PipelineError: there is no such batch, or it is collected or abandoned, or another process works on it.
    """
    with open_batches(storage.postgres) as store:
        batch, worker = _require(store, batch_id), new_worker()
        if batch.state in (BatchState.COLLECTED, BatchState.ABANDONED):
            raise PipelineError(f"Batch {batch.batch_id} is {batch.state}: there is nothing to forget.")
        if not store.claim(batch.batch_id, worker, _WORK_SECONDS, store.expired_holder(batch.batch_id)):
            # Who prepares it would send it all the same.
            raise PipelineError(
                f"Batch {batch.batch_id} is being prepared or collected by another process: try again when that has"
                " ended."
            )
        try:
            _book_rest(store, batch, judge, BatchReplies("forgotten"), worker)
            note = "forgotten by command: its lines are booked as lost"
            store.release(batch.batch_id, ErrorClass.BATCH_ENDED, note)
            now = datetime.now(UTC)
            store.change(
                batch.batch_id,
                list(BatchState),
                state=BatchState.COLLECTED,
                booked_usd=store.booked(batch.batch_id),
                note=note,
                ended_at=now,
                files_deleted_at=now,
            )
        finally:
            store.unclaim(batch.batch_id, worker)
        return f"Batch {batch.batch_id} is forgotten: its lines are booked as lost, its verdicts are pending again."


def collect_batches(
    storage: Storage,
    judge: JudgeConfig,
    partition_keys: Collection[str],
    *,
    verdicts: VerdictStore,
    materialization_id: str,
    progress: Callable[[str], None],
    stats: Mapping[str, JudgingStats],
) -> list[PipelineError]:
    """Collect the batches that ended and have verdicts in any of these partitions; returns what failed.

    A batch is collected as a whole: verdicts in other partitions are stored too. Each is booked once, however often
    this is repeated after a kill.
    """
    failures: list[PipelineError] = []
    with open_batches(storage.postgres) as store:
        for batch in store.unfinished():
            keys = store.partition_keys(batch.batch_id)
            if batch.state != BatchState.SUBMITTED or not set(keys) & set(partition_keys):
                continue
            collector = _Collector(storage, judge, store, verdicts, materialization_id, progress)
            try:
                _require_endpoint(batch, judge)
                collector.collect(batch, keys, {key: stats.get(key, JudgingStats()) for key in keys})
            except PipelineError as error:
                failures.append(error)
    return failures


# ---- polling ------------------------------------------------------------------------------------------------------


async def _poll_all(store: BatchStore, judge: JudgeConfig, batches: list[JudgeBatch]) -> list[PolledBatch]:
    worker = new_worker()
    polled: list[PolledBatch] = []
    async with open_batch_api(judge) as api:
        for batch in batches:
            name = batch.provider_batch_id or batch.batch_id
            try:
                _require_endpoint(batch, judge)
                seen, is_ended = await _poll(api, store, batch, worker)
            except PipelineError as error:
                seen, is_ended = str(error).rstrip("."), False
                if isinstance(error, BatchApiError) and error.error_class is ErrorClass.MODEL_NOT_FOUND:
                    seen += f". If it is gone for good: `trajectory-pipeline batches --forget {batch.batch_id}`"
            keys = tuple(store.partition_keys(batch.batch_id)) if is_ended else ()
            polled.append(PolledBatch(batch, f"{name}: {seen}", is_ended, keys))
    return polled


async def _poll(api: BatchApi, store: BatchStore, batch: JudgeBatch, worker: str) -> tuple[str, bool]:
    if batch.is_unsent:
        return await _recover(api, store, batch, worker)
    if batch.state == BatchState.COLLECTED:
        await _delete_files(api, store, batch)
        return "collected; its files are deleted", False
    seen = await api.retrieve(batch.provider_batch_id or "")
    store.change(batch.batch_id, [BatchState.SUBMITTED], **_seen(seen))
    if awaits_answers(seen):
        return _state_of(seen), False
    if seen.status in ENDED:
        return f"{_state_of(seen)}, to be collected", True
    if seen.status != "cancelling" and store.showed_erased_content(batch.batch_id):
        seen = await api.cancel(seen.id)
        await api.delete_inputs(batch.batch_id, batch.input_file_id)
        return f"{seen.status}, because content in it has been erased", False
    return _state_of(seen), False


async def _recover(api: BatchApi, store: BatchStore, batch: JudgeBatch, worker: str) -> tuple[str, bool]:
    """Find what a killed worker began at the provider, or undo it."""
    if store.now() - batch.updated_at < RECOVER_AFTER:
        return f"{batch.state}", False
    if not store.claim(batch.batch_id, worker, _WORK_SECONDS, store.expired_holder(batch.batch_id)):
        return f"{batch.state} by a worker", False
    try:
        if batch.state != BatchState.PREPARING:
            found = await api.find(batch.batch_id, batch.input_file_id)
            if found is None:
                # Whoever may still be about to create it is refused from now on.
                await api.delete_inputs(batch.batch_id, batch.input_file_id)
                found = await api.find(batch.batch_id, batch.input_file_id)
            if found is not None:
                store.change(
                    batch.batch_id,
                    [BatchState.UPLOADING, BatchState.CREATING],
                    state=BatchState.SUBMITTED,
                    provider_batch_id=found.id,
                    input_file_id=found.input_file_id,
                    submitted_at=datetime.fromtimestamp(found.created_at, UTC),
                    note="its worker was killed; found again at the provider",
                    **_seen(found),
                )
                return f"found again at the provider as {found.id}: {_state_of(found)}", found.status in ENDED
        store.abandon(batch, ErrorClass.BATCH_ENDED, "its worker was killed before it was sent")
        return "undone: its worker was killed before it was sent", False
    finally:
        store.unclaim(batch.batch_id, worker)


async def _delete_files(api: BatchApi, store: BatchStore, batch: JudgeBatch) -> None:
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id:
            await api.delete(file_id)
    await api.delete_inputs(batch.batch_id, batch.input_file_id)
    store.change(batch.batch_id, [BatchState.COLLECTED], files_deleted_at=datetime.now(UTC))


def _seen(batch: Batch) -> dict[str, Any]:
    counts = batch.request_counts
    return {
        "provider_status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "completed": counts.completed if counts else None,
        "failed": counts.failed if counts else None,
        "polled_at": datetime.now(UTC),
    }


def _state_of(batch: Batch) -> str:
    counts = batch.request_counts
    done = f" ({counts.completed} of {counts.total} answered, {counts.failed} failed)" if counts else ""
    return f"{batch.status}{done}{', without a file of answers so far' if awaits_answers(batch) else ''}"


def _require(store: BatchStore, batch_id: str) -> JudgeBatch:
    batch = store.find(batch_id)
    if batch is None:
        raise PipelineError(f"There is no batch {batch_id}: `trajectory-pipeline batches` lists them.")
    return batch


def _require_endpoint(batch: JudgeBatch, judge: JudgeConfig) -> None:
    endpoint = without_credentials(judge.base_url)
    if batch.base_url != endpoint:
        raise PipelineError(
            f"Batch {batch.batch_id} runs at {without_credentials(batch.base_url)}, and OPENAI_BASE_URL is"
            f" {endpoint}: set it back until the batch is collected, or give it up with `trajectory-pipeline batches"
            " --forget`."
        )


# ---- collecting ---------------------------------------------------------------------------------------------------


@dataclass
class _Collector:
    storage: Storage
    judge: JudgeConfig
    store: BatchStore
    verdicts: VerdictStore
    materialization_id: str
    progress: Callable[[str], None]

    def collect(self, batch: JudgeBatch, keys: list[str], stats: Mapping[str, JudgingStats]) -> None:
        """Store the verdicts of a batch that ended, and book its lines; nothing where it runs or another collects."""
        worker, store = new_worker(), self.store
        if not store.claim(batch.batch_id, worker, _WORK_SECONDS, store.expired_holder(batch.batch_id)):
            self.progress(f"batch {batch.provider_batch_id} is being collected by another worker")
            return
        try:
            with ExitStack() as files:
                ended = run_to_end(self._download(batch, files))
                if ended is not None:
                    self._store_verdicts(batch, ended, keys, stats, worker)
        finally:
            with suppress(PipelineError):
                store.unclaim(batch.batch_id, worker)

    async def _download(self, batch: JudgeBatch, files: ExitStack) -> "_Ended | None":
        attempts = self.store.attempts(batch.batch_id)
        async with open_batch_api(self.judge) as api:
            seen = await api.retrieve(batch.provider_batch_id or "")
            self.store.change(batch.batch_id, [BatchState.SUBMITTED], **_seen(seen))
            if seen.status not in ENDED or awaits_answers(seen):
                self.progress(f"batch {seen.id} is {_state_of(seen)}")
                return None
            ours = frozenset(row["attempt_id"] for row in attempts)
            completed = seen.request_counts.completed if seen.request_counts else None
            for pause in (*_PAUSES_BEFORE_SHORT_FILES_AGAIN, None):
                replies = await self._replies(api, seen, ours, files)
                has_all = completed is None or completed <= replies.worked_on
                if has_all or pause is None:
                    break
                await asyncio.sleep(pause)
        begun = seen.status != "failed" or bool(completed)
        replies.all_accounted = not begun or (completed is not None and has_all)
        return _Ended(replies, attempts)

    async def _replies(self, api: BatchApi, seen: Batch, ours: frozenset[str], files: ExitStack) -> BatchReplies:
        """Download the files of a batch."""
        errors = batch_errors(seen)
        replies = BatchReplies(
            seen.status, errors, _class_of(errors), max_response_tokens=self.judge.max_response_tokens
        )
        for file_id in (seen.output_file_id, seen.error_file_id):
            if file_id:
                # Unnamed: nothing of it stays on the disk, however this process ends.
                target = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by the stack
                if (headers := await api.download(file_id, target)) is not None:
                    replies.simulated |= SIMULATED_HEADER in headers
                    replies.index(target, ours)
        return replies

    def _store_verdicts(
        self,
        batch: JudgeBatch,
        ended: "_Ended",
        keys: list[str],
        stats: Mapping[str, JudgingStats],
        worker: str,
    ) -> None:
        replies, store = ended.replies, self.store
        attempts = {(row["run_id"], row["verdict_key"]): row for row in ended.attempts}
        inbox = BatchInbox(batch.batch_id, worker, self.judge, replies, attempts)
        policy_id = self.judge.policy.policy_id
        if batch.policy_id == policy_id:
            found = judging_candidates(self.verdicts.connection, policy_id, keys, JudgeOrder.NEWEST)
            waiting = [
                one
                for one in found
                if one.status == VerdictStatus.SUBMITTED and one.key in attempts and attempts[one.key]["waits"]
            ]
            _, error = judge_candidates(
                waiting,
                self.storage,
                self.judge,
                verdicts=self.verdicts,
                materialization_id=self.materialization_id,
                progress=self.progress,
                stats=stats,
                inbox=inbox,
            )
            if error is not None:
                raise (
                    error
                    if isinstance(error, PipelineError)
                    else PipelineError(f"Collecting {batch.batch_id}: {error}")
                )
        _book_rest(store, batch, self.judge, replies, worker)
        store.release(batch.batch_id, ErrorClass.SUPERSEDED, SUPERSEDED)
        is_full = replies.error_class is ErrorClass.BATCH_QUEUE_FULL
        store.change(
            batch.batch_id,
            [BatchState.SUBMITTED],
            state=BatchState.COLLECTED,
            counts=dict(+replies.counts),
            booked_usd=store.booked(batch.batch_id),
            # Without a number: half of it, but never less than one prompt may have, which could not be sent at all.
            token_limit=enqueued_limit(replies.errors) or max(batch.prompt_tokens // 2, self.judge.max_prompt_tokens)
            if is_full
            else None,
            note=replies.errors or None,
            ended_at=datetime.now(UTC),
        )
        summary = ", ".join(f"{number} {name}" for name, number in sorted((+replies.counts).items())) or "no line"
        self.progress(f"batch {batch.provider_batch_id} is collected ({replies.status}): {summary}")
        collected = store.find(batch.batch_id)

        async def delete_files() -> None:
            async with open_batch_api(self.judge) as api:
                if collected is not None:
                    await _delete_files(api, store, collected)

        with suppress(PipelineError):  # the next poll deletes them
            run_to_end(delete_files())


@dataclass(frozen=True)
class _Ended:
    replies: BatchReplies
    attempts: list[dict[str, Any]]


def _book_rest(store: BatchStore, batch: JudgeBatch, judge: JudgeConfig, replies: BatchReplies, worker: str) -> None:
    """Book the lines that no verdict was stored for."""
    rows = [row for row in store.attempts(batch.batch_id) if row["duration_ns"] is None]
    inbox = BatchInbox(batch.batch_id, worker, judge, replies, {})
    joined = ("waits", "shown_sha256")
    store.settle([inbox.settled({name: row[name] for name in row if name not in joined}) for row in rows])


def _class_of(errors: str) -> ErrorClass:
    """Return the class of lines that were not worked on, by what the provider says of the whole batch."""
    text = errors.lower()
    if any(word in text for word in _QUEUE_FULL):
        return ErrorClass.BATCH_QUEUE_FULL
    return classify_error(400, errors) if errors else ErrorClass.BATCH_ENDED
