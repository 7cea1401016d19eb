"""The provider's files and batches, through the client library's own calls; an error says whether a retry may help."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final, TypeVar

import httpx2
import openai
from openai import AsyncOpenAI
from openai.types import Batch, BatchError, BatchRequestCounts

from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.client.bounded_http import BoundedHttpClient
from trajectory_pipeline.judge.client.error_text import read_error
from trajectory_pipeline.judge.client.errors import PROVIDER_DOWN, classify_error
from trajectory_pipeline.judge.client.session import open_client
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.schema.enums import ErrorClass
from trajectory_pipeline.urls import without_credentials

ENDPOINT: Final = "/v1/chat/completions"
MAX_LINES = 50_000
"""Of one file, at OpenAI."""
MAX_BYTES = 100 * 1024 * 1024
"""Of one file: half of what OpenAI takes, because the client library holds it in memory."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
"""A batch with such a status changes no more."""
_ENDS = ("completed_at", "expired_at", "cancelled_at")
_LAST_MOMENT = 10**11
_FILES_MAY_LAG_SECONDS = 3600.0
_METADATA_KEY = "trajectory_batch"
_MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Of a description of batches or files, of which a page has a thousand."""
_TIMEOUT_SECONDS = 60.0
_TRANSFER_SECONDS = 600.0
_OLDEST_SEARCHED = 1000
"""Batches and files that are searched, the newest first, for one of ours."""

_T = TypeVar("_T")


class BatchApiError(JudgeError):
    """The provider did not do what it was asked to; ``is_refusal`` where it said so, so that nothing was done."""

    def __init__(self, message: str, error_class: ErrorClass, *, is_refusal: bool) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.is_refusal = is_refusal


@dataclass(frozen=True)
class BatchApi:
    """The files and batches of one account. Methods raise ``BatchApiError``."""

    client: AsyncOpenAI
    base_url: str

    async def upload(self, batch_id: str, content: IO[bytes]) -> str:
        """Upload a file of requests under a name that ``find`` and ``delete_inputs`` know; returns its id."""
        created = self.client.files.create(
            file=(file_name(batch_id), content), purpose="batch", timeout=_TRANSFER_SECONDS
        )
        return str((await self._done(created, "Uploading a file of requests", _identified)).id)

    async def create(self, batch_id: str, input_file_id: str, sha256: str) -> Batch:
        """Begin a batch."""
        metadata = {_METADATA_KEY: batch_id, "sha256": sha256}
        created = self.client.batches.create(
            completion_window="24h", endpoint=ENDPOINT, input_file_id=input_file_id, metadata=metadata
        )
        return await self._done(created, "Creating a batch", _batch)

    async def retrieve(self, provider_batch_id: str) -> Batch:
        """Return a batch as it stands now."""
        return await self._done(self.client.batches.retrieve(provider_batch_id), "Asking for a batch", _batch)

    async def cancel(self, provider_batch_id: str) -> Batch:
        """Cancel a batch; what is answered by then stays, and is billed."""
        return await self._done(self.client.batches.cancel(provider_batch_id), "Cancelling a batch", _batch)

    async def find(self, batch_id: str, input_file_id: str | None) -> Batch | None:
        """Return the batch with our id in its metadata, or made of our file; None where the provider has none."""
        files = {*await self._inputs(batch_id), *([input_file_id] if input_file_id else [])}

        async def search() -> Batch | None:
            number = 0
            async for batch in self.client.batches.list(limit=100):
                # Those of others are listed too, with whatever is in them.
                metadata: Any = getattr(batch, "metadata", None)
                ours = isinstance(metadata, dict) and metadata.get(_METADATA_KEY) == batch_id
                if ours or getattr(batch, "input_file_id", None) in files:
                    return _batch(batch)
                if (number := number + 1) >= _OLDEST_SEARCHED:
                    break
            return None

        return await self._done(search(), "Looking for a batch")

    async def delete_inputs(self, batch_id: str, input_file_id: str | None) -> None:
        """Delete every file of requests that was uploaded for a batch."""
        for file_id in {*await self._inputs(batch_id), *([input_file_id] if input_file_id else [])}:
            await self.delete(file_id)

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is not there is deleted already."""
        try:
            await self._done(self.client.files.delete(file_id), "Deleting a file")
        except BatchApiError as error:
            if error.error_class is not ErrorClass.MODEL_NOT_FOUND:
                raise

    async def download(self, file_id: str, target: IO[bytes]) -> Mapping[str, str] | None:
        """Write a file's content to another, piece by piece; returns the headers, None where it is there no more."""

        async def copy() -> Mapping[str, str]:
            target.seek(0)
            target.truncate()
            streaming = self.client.files.with_streaming_response.content(file_id, timeout=_TRANSFER_SECONDS)
            async with streaming as response:
                async for piece in response.iter_bytes():
                    target.write(piece)
                return response.headers

        try:
            return await self._done(copy(), "Downloading a file of answers")
        except BatchApiError as error:
            if error.error_class is not ErrorClass.MODEL_NOT_FOUND:
                raise
            return None

    async def _inputs(self, batch_id: str) -> list[str]:
        async def search() -> list[str]:
            found: list[str] = []
            number = 0
            async for one in self.client.files.list(purpose="batch", limit=1000):
                found += [one.id] if one.filename == file_name(batch_id) else []
                if (number := number + 1) >= _OLDEST_SEARCHED:
                    break
            return found

        return await self._done(search(), "Looking for a file")

    async def _done(self, call: Awaitable[_T], doing: str, check: Callable[[_T], _T] = lambda found: found) -> _T:
        where = f"{doing} at {without_credentials(self.base_url)}"
        try:
            return check(await call)
        except openai.APIStatusError as error:
            words = read_error(error.response.content if error.response.is_closed else b"").words
            error_class = classify_error(error.status_code, words)
            if error.status_code == 404:
                error_class = ErrorClass.MODEL_NOT_FOUND
            refused = error_class not in PROVIDER_DOWN
            message = f"{where} failed: HTTP {error.status_code}: {words or 'without a word'}."
            raise BatchApiError(message, error_class, is_refusal=refused) from None
        except openai.APIError as error:
            cause = error.__cause__ or error
            message = f"{where} failed: {cause or type(cause).__name__}."
            raise BatchApiError(message, ErrorClass.CONNECTION, is_refusal=False) from None
        except (AttributeError, TypeError) as error:
            # The client library checks nothing of what it reads: a page of a gateway, an object of another shape.
            message = f"{where} failed: what came is no answer of a batch API ({error})."
            raise BatchApiError(message, ErrorClass.NOT_A_COMPLETION, is_refusal=False) from None
        except (TimeoutError, OSError, ValueError, httpx2.HTTPError, httpx2.StreamError) as error:
            # The last two while a file is downloaded: the client library translates only what comes before its body.
            raise BatchApiError(f"{where} failed: {error}.", ErrorClass.CONNECTION, is_refusal=False) from None


def _identified(found: _T) -> _T:
    if not isinstance(getattr(found, "id", None), str):
        raise TypeError(f"it has no id: {str(found)[:200]!r}")
    return found


def _batch(batch: Batch) -> Batch:
    """Return a description of a batch of which what is used has the right type; what it may lack is left out."""
    _identified(batch)
    if not isinstance(batch.status, str):
        raise TypeError("it has no status")
    # Whatever the types of the client library say, nothing of it is checked.
    described: dict[str, Any] = dict(batch)
    counts = described["request_counts"]
    counted = counts is None or (
        isinstance(counts, BatchRequestCounts)
        and all(isinstance(number, int) for number in (counts.completed, counts.failed, counts.total))
    )
    files = {name: described[name] for name in ("output_file_id", "error_file_id")}
    return batch.model_copy(
        update={
            "status": batch.status.lower(),
            **{name: file_id if isinstance(file_id, str) else None for name, file_id in files.items()},
            "request_counts": counts if counted else None,
            "created_at": _moment(described["created_at"]) or int(time.time()),
            **{name: _moment(described.get(name)) for name in _ENDS},
        }
    )


def _moment(value: Any) -> int | None:
    """Return a time since 1970 in seconds; None for what is none."""
    return value if isinstance(value, int) and 0 < value < _LAST_MOMENT else None


def awaits_answers(batch: Batch) -> bool:
    """Whether a batch ended lately and counts answers, but names no file of them: a provider may do that a bit later.

    Taken as they stand, all these answers would count as lost, and be asked and paid for again.
    """
    answered = batch.request_counts.completed if batch.request_counts else 0
    ended = max((getattr(batch, name) or 0 for name in _ENDS), default=0)
    late = time.time() - ended < _FILES_MAY_LAG_SECONDS
    return batch.status in ENDED and answered > 0 and not batch.output_file_id and late


def file_name(batch_id: str) -> str:
    """Return the name under which a batch's requests are uploaded."""
    return f"trajectory-{batch_id}.jsonl"


def batch_errors(batch: Batch) -> str:
    """Return what the provider says is wrong with a batch; empty where it says nothing."""
    errors: Any = getattr(batch.errors, "data", None)
    return "; ".join(
        f"{f'line {one.line}: ' if one.line else ''}{one.message or one.code}{f' ({one.code})' if one.code else ''}"
        if isinstance(one, BatchError)
        else str(one)
        for one in (errors if isinstance(errors, list) else [])[:5]
    )


def enqueued_limit(text: str) -> int | None:
    """Return the most enqueued tokens that an error names; None where it names none."""
    named = re.search(r"limit:?\s*([0-9][0-9,._]*)", text, re.IGNORECASE)
    return int(re.sub(r"\D", "", named[1])) if named else None


@asynccontextmanager
async def open_batch_api(config: JudgeConfig) -> AsyncIterator[BatchApi]:
    """Open a client for files and batches, under the same rules of egress as calls.

    Raises:
        JudgeError: only a server on this machine may be called, and this one is not on it.
    """
    http_client = partial(BoundedHttpClient, _MAX_RESPONSE_BYTES)
    async with open_client(config, http_client, timeout=_TIMEOUT_SECONDS) as client:
        yield BatchApi(client, config.base_url)
