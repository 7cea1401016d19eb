"""trajectory-v1, the record format of Letta's package ``agent-trajectory`` (0.4): a list of records a run.

Source: that package's declared types and its validator. A record is what was said, thought, called or returned; calls
made at once are records one after the other, as its own normalizers make them.
"""

from collections.abc import Iterator

from trajectory_pipeline.exports.source import (
    AUTOMATIC,
    SPOKEN,
    ExportRun,
    JsonObject,
    NoPlace,
    Row,
    count_images,
    has_only_text,
    json_bytes,
    parse_arguments,
    text_of,
)

_IMAGE = "[image]"
"""What that package writes in the place of an image."""


NO_QUESTION = NoPlace("no message of a person")
NO_ANSWER = NoPlace("the agent said nothing")
NO_TIME = NoPlace("no time is known")


def trajectory_v1_records(run: ExportRun) -> list[JsonObject] | NoPlace:
    """Return a run as records, the first of which says where it is from; or why the run has no place in the form.

    The form demands a message of a person, one of the agent, and times.
    """
    models = run.trajectory["models"] or []
    meta: JsonObject = {"role": "meta", "source": run.source}
    if len(models) == 1:
        meta["model"] = models[0]
    records = [meta, *_Records(run).of_run()]
    roles = {record["role"] for record in records}
    if "user" not in roles:
        return NO_QUESTION
    if "assistant" not in roles:
        return NO_ANSWER
    return records if all("timestamp" in record for record in records[1:]) else NO_TIME


class _Records:
    """Records of one run, with the ids that its calls have in them."""

    def __init__(self, run: ExportRun) -> None:
        self._run = run
        self._taken: set[str] = set()
        self._calls: dict[str, list[str]] = {}
        self._answered: set[str] = set()

    def of_run(self) -> Iterator[JsonObject]:
        time = _time(self._run.trajectory["start_time"])
        if self._run.system_prompt is not None:
            yield _text_record("system", self._run.system_prompt, time)
        for turn, messages in self._run.turns():
            for message in messages:
                known = _time(message["timestamp"]) or _time(turn["timestamp"])
                if known is None:
                    self._run.losses["messages without a time, which have the one before"] += 1
                time = known or time
                yield from self._of_message(message, time)

    def _of_message(self, message: Row, time: str | None) -> Iterator[JsonObject]:
        calls = message["tool_calls"] or []
        if message["role"] == "assistant" or calls:
            reasoning = self._run.reasoning_of(message)
            if reasoning is not None:
                yield from self._spoken("reasoning", reasoning, time)
            yield from self._spoken("assistant", text_of(message, self._run.losses, _IMAGE), time, counted=not calls)
            for call in calls:
                yield {"role": "assistant", "content": None, "tool_calls": [self._call(call)], **_stamp(time)}
        elif message["role"] in SPOKEN:
            person = message["role"] == "user" and message["kind"] not in AUTOMATIC
            yield from self._spoken("user" if person else "system", text_of(message, self._run.losses, _IMAGE), time)
        elif has_only_text(message):
            self._run.losses[f"texts of role {message['role']}"] += 1
        self._run.losses["decisions on approvals"] += sum(
            one["approve"] is not None for one in message["approvals"] or ()
        )
        for one in message["tool_returns"] or ():
            call_ids = self._calls.get(one["tool_call_id"] or "")
            if call_ids is None:
                self._run.losses["tool returns without their call"] += 1
                continue
            # Where several calls have one id, a return answers the first that has none.
            answered = next((each for each in call_ids if each not in self._answered), call_ids[-1])
            self._answered.add(answered)
            record: JsonObject = {"role": "tool", "tool_call_id": answered, "content": self._returned(one)}
            if one["status"] in ("success", "error"):
                record["ok"] = one["status"] == "success"
            yield {**record, **_stamp(time)}

    def _returned(self, one: Row) -> str:
        marks = [_IMAGE] * count_images(one, self._run.losses)
        return "\n".join([*([one["text"]] if one["text"] else []), *marks])

    def _spoken(self, role: str, text: str, time: str | None, *, counted: bool = True) -> Iterator[JsonObject]:
        if text.strip():
            yield _text_record(role, text, time)
        elif counted:
            self._run.losses["empty messages"] += 1

    def _call(self, call: Row) -> JsonObject:
        given = call["id"] or "call"
        call_id, number = given, 1
        while call_id in self._taken:
            number += 1
            call_id = f"{given}__{number}"
        self._taken.add(call_id)
        if call["id"]:
            self._calls.setdefault(call["id"], []).append(call_id)
        arguments = parse_arguments(call["arguments"])
        text = arguments.text
        if arguments.value is None:
            self._run.losses["arguments that are no JSON object"] += 1
            text = json_bytes({"arguments_text": arguments.text}).decode()
        return {"id": call_id, "name": call["name"] or "unknown_tool", "args": text}


def _text_record(role: str, text: str, time: str | None) -> JsonObject:
    return {"role": role, "content": text, **_stamp(time)}


def _stamp(time: str | None) -> JsonObject:
    return {} if time is None else {"timestamp": time}


def _time(moment: object) -> str | None:
    return moment.isoformat() if hasattr(moment, "isoformat") else None
