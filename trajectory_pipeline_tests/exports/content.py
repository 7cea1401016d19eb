"""What a run holds, as facts to compare with what a form gives back; made from its row alone, by no writer's code."""

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.exports.source import ExportRun, FieldRedactor
from trajectory_pipeline.schema.arrow import rows_of
from trajectory_pipeline_tests.conversion.raw_runs import HOUR, Raw, batch_of

Fact = tuple[str, ...]
IMAGE: dict[str, Any] = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
}
IMAGE_BYTES = base64.b64decode("iVBORw0KGgo=")


def export_runs(raws: Iterable[Raw], **options: Any) -> list[ExportRun]:
    """Return runs as an export is given them, with reasoning and images unless options say otherwise."""
    allowed = {"with_reasoning": True, "with_images": True, **options}
    rows = rows_of(convert_batch(batch_of(*raws), HOUR).trajectories, FieldRedactor(lambda text: text))
    return [ExportRun(row, **allowed) for row in rows]


def said(run: ExportRun, image_mark: str | None = None, *, as_heard: bool = False) -> list[Fact]:
    """Return what was said and called, in order; texts of one message are one, with a mark for each image in it.

    ``as_heard``: heartbeats and summaries are said by the user, as the model heard them.
    """
    return [fact for message in _messages(run) for fact in _said(message, image_mark, as_heard)]


def returned(run: ExportRun) -> list[Fact]:
    """Return the texts of tools' returns, each with its call's id, sorted."""
    return sorted(
        ("returned", one["tool_call_id"] or "", one["text"] or "")
        for message in _messages(run)
        for one in message["tool_returns"] or ()
    )


def _messages(run: ExportRun) -> Iterator[Any]:
    for turn in run.trajectory["turns"]:
        yield from (message for message in turn["messages"] if not message["is_deleted"])


def _said(message: Any, image_mark: str | None, as_heard: bool) -> Iterator[Fact]:
    shown = [part for part in message["content"] if part["type"] == "text" or (part["type"] == "image" and image_mark)]
    texts = [(part["text"] or "") if part["type"] == "text" else str(image_mark) for part in shown]
    reasoning = "\n".join(part["reasoning"] for part in message["content"] if part["reasoning"])
    calls = message["tool_calls"]
    if message["role"] == "assistant" or calls:
        if reasoning:
            yield ("reasoned", reasoning)
        yield ("agent", "\n".join(texts))
        yield from (called(call["name"], call["arguments"]) for call in calls)
    elif message["role"] in ("user", "system", "summary"):
        person = message["role"] == "user" and message["kind"] not in ("heartbeat", "system_alert", "login")
        if as_heard:
            person = message["role"] != "system"
        yield ("user" if person else "system", "\n".join(texts))


def called(name: str | None, arguments: str | None) -> Fact:
    """Return a call: its arguments as one value where they are a JSON object that says the same as its text."""
    return ("called", name or "unknown", as_value(arguments or ""))


def as_value(text: str) -> str:
    """Return JSON text of an object in one spelling; other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else text
