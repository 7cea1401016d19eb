"""From rows to what is served: nested, heuristic and judged values apart, every text redacted."""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import orjson
from starlette.responses import Response

from trajectory_pipeline.lossless_json import exact_numbers, write_json
from trajectory_pipeline.serve.models import Judged, RunSummary
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.redacted import redacted
from trajectory_pipeline.serve.service import DATA_NOTICE, Service
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_reads import Position

Row = Mapping[str, Any]
_PLAIN = tuple(name for name in RunSummary.model_fields if name not in ("heuristic", "judged"))
_VERDICT = tuple(name for name in Judged.model_fields if name not in ("status", "confidence"))
LINKS = ("continues_run_id", "task_family", "similar_runs")
"""Of ``read_run``: the runs that a run belongs with."""
_TEXTS = ("agent_name", "tools_used", "models")
_LESSON_TEXTS = ("agent_name", "failure_mode", "task_category", "summary", "lesson")
_JUDGED_TEXTS = ("failure_mode", "task_category", "tags", "summary", "lesson", "requirements", "failure", "decisions")


def run_summary(row: Row, service: Service) -> dict[str, Any]:
    """Return a row of ``list_runs`` as ``RunSummary``, or of ``read_run`` with reasoning and evidence."""
    judged = None
    if row["verdict_status"] is not None:
        judged = {"status": row["verdict_status"], "confidence": row["outcome_confidence"]}
        judged |= {name: row[name] for name in _VERDICT if name in row}
        judged = with_redacted(judged, _JUDGED_TEXTS, service)
    heuristic = {"outcome": row["heuristic_outcome"], "confidence": row["heuristic_confidence"]}
    if "heuristic_reasoning" in row:
        heuristic["reasoning"] = row["heuristic_reasoning"]
    plain = with_redacted({name: row[name] for name in _PLAIN}, _TEXTS, service)
    return {**plain, "heuristic": heuristic, "judged": judged}


def with_redacted(values: dict[str, Any], names: Iterable[str], service: Service) -> dict[str, Any]:
    """Redact the values of these names: the others are ids, numbers and words of closed lists."""
    return values | {name: redacted(values[name], service.redact) for name in names if values.get(name)}


def lesson_of(row: Row, service: Service) -> dict[str, Any]:
    """Return a row of ``list_lessons`` as ``Lesson``."""
    told = (
        "run_id",
        "source",
        "agent_id",
        "agent_name",
        "end_time",
        "failure_mode",
        "task_category",
        "summary",
        "lesson",
    )
    found = {name: row[name] for name in told}
    found |= {"judged_outcome": row["outcome"], "confidence": row["outcome_confidence"]}
    return with_redacted(found, _LESSON_TEXTS, service)


def trajectory_json(row: Row, document: bytes, service: Service) -> bytes:
    """Return a row of ``read_run`` with its document from ``document_json`` as JSON text of ``Trajectory``."""
    whole = {
        "notice": DATA_NOTICE,
        **run_summary(row, service),
        **{name: row[name] for name in LINKS},
        **{name: row[name] for name in ("partition_key", "content_digest")},
        "document_omitted_reason": row["data_omitted_reason"],
    }
    return orjson.dumps(whole, option=orjson.OPT_UTC_Z)[:-1] + b',"document":' + document + b"}"


def document_json(document: str | None, service: Service) -> bytes:
    """Return a document's JSON text, redacted; ``null`` where there is none."""
    if document is None:
        return b"null"
    return write_json(redacted(exact_numbers(document), service.redact)).encode()


def json_response(value: Any) -> Response:
    """Return a response whose shape the description has: what comes of the database is not checked against it again."""
    return Response(orjson.dumps(value, option=orjson.OPT_UTC_Z), media_type="application/json")


def list_name(kind: str, filters: SearchFilters, statuses: Iterable[str] = ()) -> str:
    """Return a short name of a list: of its kind, and of the filters that made it, in whatever order they came."""
    given = {
        name: sorted(value) if isinstance(value, tuple) else str(value)
        for name, value in vars(filters).items()
        if value and name != "tenants"
    }
    told = json.dumps([kind, given, sorted(statuses)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def encode_cursor(row: Row, of_list: str) -> str:
    """Return where a page of a list ended, as clients send it back."""
    end = row["end_time"]
    text = f"{of_list} {'' if end is None else end.isoformat()} {row['run_id']}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_cursor(cursor: str | None, of_list: str) -> Position | None:
    """Return the position of a cursor of this list; None without one.

    Raises:
        ProblemError: 422, it is none of ours, or of another list.
    """
    if cursor is None:
        return None
    refused = ProblemError(422, "query.cursor: send the cursor of the page before (`next_cursor`), unchanged.")
    try:
        found, _, position = base64.b64decode(cursor, b"-_", validate=True).decode().partition(" ")
        end, _, run_id = position.partition(" ")
        moment = datetime.fromisoformat(end) if end else None
    except (binascii.Error, ValueError):
        raise refused from None
    if not run_id or "\0" in run_id or (moment is not None and moment.tzinfo is None):
        raise refused
    if found != of_list:
        raise ProblemError(
            422,
            "query.cursor: it is of another list, or of other filters: send it with the filters of the page before"
            " (`next_cursor`), or leave it out to begin anew.",
        )
    return Position(moment, run_id)
