"""Files and batches as OpenAI serves them: JSONL in, JSONL out, at the batch rate, and faults of a whole batch.

A batch is worked on when it is asked for after its time. What becomes of the next batches is planned with
``POST /control/batches``: a list of objects with the fields of ``BatchPlan``, one for each batch.
"""

import math
import secrets
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trajectory_pipeline.demo.simulated_judge.protocol import ApiError, read_json

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
MAX_BYTES = 200 * 1024 * 1024
_WINDOW = 24 * 3600
_ENDED = ("completed", "failed", "expired", "cancelled")

Answer = tuple[int, dict[str, Any] | None]
CloseConnection = Callable[[Request], Awaitable[Response]]


@dataclass
class BatchPlan:
    """What becomes of one batch.

    Attributes:
        seconds: until it ends.
        end: ``completed``, ``expired``, ``failed`` (its file is refused) or ``queue_full`` (too many tokens enqueued).
        answered: share of its lines that are worked on before it ends.
        token_limit: that the error of ``queue_full`` names; 0 for none.
        lines: what happens to its files: ``missing`` (lines not worked on are in no file), ``lost`` (the last answer is
            in no file, and billed), ``duplicate``, ``foreign``, ``malformed``, ``shuffled``, ``no_output``.
        wire: ``upload_lost`` and ``create_lost`` (done, and the connection closes), ``create_refused``,
            ``no_metadata`` (the batch forgets it), ``content_lost`` and ``content_cut`` (the first download breaks off,
            before or within the file), ``content_short`` (it ends early, without an error; once),
            ``output_late`` (asked after its end, it names no file of answers yet; once).
    """

    seconds: float = 0.0
    end: str = "completed"
    answered: float = 1.0
    token_limit: int = 0
    lines: list[str] = field(default_factory=list)
    wire: list[str] = field(default_factory=list)


@dataclass
class _File:
    id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int = field(default_factory=lambda: int(time.time()))

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    input_file_id: str
    content: bytes
    metadata: dict[str, str] | None
    plan: BatchPlan
    id: str = field(default_factory=lambda: f"batch_{secrets.token_hex(12)}")
    created: float = field(default_factory=time.time)
    status: str = "validating"
    cancelling: bool = False
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    usage: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created),
            "expires_at": int(self.created) + _WINDOW,
            # A file that never comes is one of a batch that ended long ago.
            **({f"{self.status}_at": int(time.time())} if self.status in _ENDED and self.output_file_id else {}),
            "request_counts": self.counts,
            "metadata": self.metadata,
            "usage": {
                "input_tokens": self.usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": self.usage["cached_tokens"]},
                "output_tokens": self.usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.usage["prompt_tokens"] + self.usage["completion_tokens"],
            },
        }


class BatchServer:
    """The files and batches of a server; ``answer`` works on one request, and charges for it at the batch rate."""

    def __init__(self, answer: Callable[[bytes], Answer], close_connection: CloseConnection) -> None:
        self._answer = answer
        self._close = close_connection
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}
        self._plans: deque[BatchPlan] = deque()
        self._worked_on: Counter[str] = Counter()

    def routes(self, logged: Callable[[Callable[[Request], Any]], Callable[[Request], Any]]) -> list[Route]:
        """Return the routes; ``logged`` turns what they raise into responses."""
        table = (
            ("/v1/files", self._upload, "POST"),
            ("/v1/files", self._list_files, "GET"),
            ("/v1/files/{id}", self._file, "GET"),
            ("/v1/files/{id}", self._delete_file, "DELETE"),
            ("/v1/files/{id}/content", self._content, "GET"),
            ("/v1/batches", self._create, "POST"),
            ("/v1/batches", self._list_batches, "GET"),
            ("/v1/batches/{id}", self._retrieve, "GET"),
            ("/v1/batches/{id}/cancel", self._cancel, "POST"),
            ("/control/batches", self._control, "GET"),
            ("/control/batches", self._control, "POST"),
            ("/control/batches", self._control, "DELETE"),
        )
        return [Route(path, logged(handler), methods=[method]) for path, handler, method in table]

    # ---- files ----------------------------------------------------------------------------------------------------

    async def _upload(self, request: Request) -> Response:
        form = await request.form(max_part_size=MAX_BYTES)
        upload = form.get("file")
        if not isinstance(upload, UploadFile) or form.get("purpose") != "batch":
            raise ApiError(400, "A file with the purpose 'batch' is required.", param="file")
        content = await upload.read()
        if len(content) > MAX_BYTES:
            raise ApiError(413, f"The file is larger than {MAX_BYTES} bytes.")
        stored = self._store("batch", upload.filename or "upload.jsonl", content)
        if self._plans and "upload_lost" in self._plans[0].wire:
            self._plans[0].wire.remove("upload_lost")
            return await self._close(request)
        return _json(stored.as_json())

    def _store(self, purpose: str, filename: str, content: bytes) -> _File:
        stored = _File(f"file-{secrets.token_hex(12)}", filename, purpose, content)
        self._files[stored.id] = stored
        return stored

    async def _list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        found = [one for one in reversed(self._files.values()) if purpose in (None, one.purpose)]
        return _page(request, found)

    async def _file(self, request: Request) -> Response:
        return _json(self._find_file(request).as_json())

    async def _content(self, request: Request) -> Response:
        found = self._find_file(request)
        for batch in self._batches.values():
            if found.id not in (batch.output_file_id, batch.error_file_id):
                continue
            if "content_lost" in batch.plan.wire:
                batch.plan.wire.remove("content_lost")
                return await self._close(request)
            if "content_cut" in batch.plan.wire:
                batch.plan.wire.remove("content_cut")
                half = found.content[: len(found.content) // 2]
                return Response(half, headers={"content-length": str(len(found.content))})
            if "content_short" in batch.plan.wire:
                batch.plan.wire.remove("content_short")
                return Response(found.content[: len(found.content) // 2], headers={"x-simulated": "true"})
        return Response(found.content, headers={"x-simulated": "true"}, media_type="application/octet-stream")

    async def _delete_file(self, request: Request) -> Response:
        found = self._find_file(request)
        del self._files[found.id]
        return _json({"id": found.id, "object": "file", "deleted": True})

    def _find_file(self, request: Request) -> _File:
        file_id = request.path_params["id"]
        if file_id not in self._files:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return self._files[file_id]

    # ---- batches --------------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        asked = read_json(await request.body())
        stored = self._files.get(str(asked.get("input_file_id")))
        if stored is None:
            raise ApiError(400, f"No such File object: {asked.get('input_file_id')}", param="input_file_id")
        if asked.get("endpoint") != ENDPOINT or asked.get("completion_window") != "24h":
            raise ApiError(400, f"Only {ENDPOINT} within 24h is served here.", param="endpoint")
        plan = self._plans.popleft() if self._plans else BatchPlan()
        if "create_refused" in plan.wire:
            raise ApiError(429, "Rate limit reached for batch creation. Please try again later.", error_type="requests")
        metadata = None if "no_metadata" in plan.wire else asked.get("metadata")
        batch = _Batch(stored.id, stored.content, metadata, plan)
        self._batches[batch.id] = batch
        if "create_lost" in plan.wire:
            return await self._close(request)
        return _json(batch.as_json())

    async def _list_batches(self, request: Request) -> Response:
        return _page(request, list(reversed(self._batches.values())))

    async def _retrieve(self, request: Request) -> Response:
        batch = self._find_batch(request)
        self._advance(batch)
        described = batch.as_json()
        if batch.status in _ENDED and "output_late" in batch.plan.wire:
            batch.plan.wire.remove("output_late")
            described["output_file_id"] = None
        return _json(described)

    async def _cancel(self, request: Request) -> Response:
        batch = self._find_batch(request)
        self._advance(batch)
        if batch.status in _ENDED:
            raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.")
        batch.status, batch.cancelling = "cancelling", True
        return _json(batch.as_json())

    def _find_batch(self, request: Request) -> _Batch:
        batch_id = request.path_params["id"]
        if batch_id not in self._batches:
            raise ApiError(404, f"No batch found with id '{batch_id}'.", param="id")
        return self._batches[batch_id]

    def _advance(self, batch: _Batch) -> None:
        """Bring a batch to where it stands now."""
        if batch.status in _ENDED:
            return
        lines = [line for line in batch.content.split(b"\n") if line.strip()]
        batch.counts["total"] = len(lines)
        if batch.cancelling:
            self._work(batch, lines, "cancelled")
        elif time.time() < batch.created + batch.plan.seconds:
            batch.status = "in_progress"
        elif batch.plan.end == "queue_full":
            limit = f" Limit: {batch.plan.token_limit:,} enqueued tokens." if batch.plan.token_limit else ""
            message = f"Enqueued token limit reached for simulated-judge in organization simulated.{limit}"
            self._refuse(batch, [{"code": "token_limit_exceeded", "message": message, "line": None, "param": None}])
        elif batch.plan.end == "failed":
            message = "This line is not parseable as valid JSON (simulated)."
            self._refuse(batch, [{"code": "invalid_json_line", "message": message, "line": 1, "param": None}])
        elif errors := _wrong_lines(lines):
            self._refuse(batch, errors)
        else:
            self._work(batch, lines, batch.plan.end)

    def _refuse(self, batch: _Batch, errors: list[dict[str, Any]]) -> None:
        batch.status, batch.errors = "failed", errors

    def _work(self, batch: _Batch, lines: Sequence[bytes], end: str) -> None:
        share = batch.plan.answered if end != "cancelled" or batch.plan.answered < 1 else 0.0
        reached = math.ceil(len(lines) * share)
        answers: list[bytes] = []
        errors: list[bytes] = []
        for number, line in enumerate(lines):
            asked = orjson.loads(line)
            if number >= reached:
                if "missing" not in batch.plan.lines:
                    code = f"batch_{end}"
                    error = {"code": code, "message": f"This request could not be executed before the batch {end}."}
                    errors.append(_line(asked["custom_id"], None, error))
                continue
            status, body = self._answer(orjson.dumps(asked["body"]))
            self._worked_on[asked["custom_id"]] += 1
            batch.counts["completed" if status == 200 else "failed"] += 1
            if status == 200 and body is not None:
                usage = body.get("usage") or {}
                batch.usage["prompt_tokens"] += usage.get("prompt_tokens", 0)
                batch.usage["completion_tokens"] += usage.get("completion_tokens", 0)
                details = usage.get("prompt_tokens_details") or {}
                batch.usage["cached_tokens"] += details.get("cached_tokens", 0)
            response = {"status_code": status, "request_id": f"req_{secrets.token_hex(8)}", "body": body}
            (answers if status == 200 else errors).append(_line(asked["custom_id"], response, None))
        _spoil(answers, batch.plan.lines)
        if answers and "no_output" not in batch.plan.lines:
            content = b"\n".join(answers) + b"\n"
            batch.output_file_id = self._store("batch_output", f"{batch.id}_output.jsonl", content).id
        if errors:
            content = b"\n".join(errors) + b"\n"
            batch.error_file_id = self._store("batch_output", f"{batch.id}_error.jsonl", content).id
        batch.status = end

    # ---- control --------------------------------------------------------------------------------------------------

    async def _control(self, request: Request) -> Response:
        if request.method == "DELETE":
            for held in (self._files, self._batches, self._plans, self._worked_on):
                held.clear()
        elif request.method == "POST":
            for given in orjson.loads(await request.body()):
                unknown = given.keys() - {one.name for one in fields(BatchPlan)}
                if unknown:
                    raise ApiError(400, f"Unknown fields of a planned batch: {sorted(unknown)}")
                self._plans.append(BatchPlan(**given))
        return _json(
            {
                "planned": [asdict(plan) for plan in self._plans],
                "batches": [batch.as_json() for batch in self._batches.values()],
                "files": [one.as_json() for one in self._files.values()],
                "lines_worked_on": sum(self._worked_on.values()),
                "lines_worked_on_twice": sum(count > 1 for count in self._worked_on.values()),
                "simulated": True,
            }
        )


def _wrong_lines(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    def error(code: str, message: str, line: int | None) -> list[dict[str, Any]]:
        return [{"code": code, "message": message, "line": line, "param": None}]

    if not lines:
        return error("empty_file", "The input file is empty.", None)
    if len(lines) > MAX_LINES:
        return error("too_many_tasks", f"The file has more than {MAX_LINES} requests.", None)
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        try:
            asked = orjson.loads(line)
            custom_id, url, body = asked["custom_id"], asked["url"], asked["body"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return error("invalid_json_line", "This line is not parseable as valid JSON.", number)
        if custom_id in seen:
            return error("duplicate_custom_id", f"The custom_id '{custom_id}' occurs twice.", number)
        if url != ENDPOINT or not isinstance(body, dict):
            return error("mismatched_url", f"The URL of this line is not {ENDPOINT}.", number)
        seen.add(custom_id)
    return []


def _line(custom_id: str, response: object, error: object) -> bytes:
    name = f"batch_req_{secrets.token_hex(8)}"
    return orjson.dumps({"id": name, "custom_id": custom_id, "response": response, "error": error})


def _spoil(answers: list[bytes], faults: Sequence[str]) -> None:
    """Do to the lines of answers what a plan says."""
    if "lost" in faults and answers:
        answers.pop()
    if "duplicate" in faults and answers:
        answers.append(answers[0])
    if "foreign" in faults and answers:
        answers.insert(0, orjson.dumps({**orjson.loads(answers[0]), "custom_id": "somebody-else"}))
    if "malformed" in faults:
        answers.insert(len(answers) // 2, b'{"id": "batch_req_x", "custom_id": ')
    if "shuffled" in faults:
        answers.reverse()


def _page(request: Request, found: Sequence[_File | _Batch]) -> Response:
    limit = int(request.query_params.get("limit", "20"))
    after = request.query_params.get("after")
    start = next((number + 1 for number, one in enumerate(found) if one.id == after), 0)
    page = found[start : start + limit]
    return _json(
        {
            "object": "list",
            "data": [one.as_json() for one in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > start + limit,
        }
    )


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), headers={"x-simulated": "true"}, media_type="application/json")
