"""What a run did with its tools: which it asked for, ran and was denied, and whether an error was recovered from."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from trajectory_pipeline.lossless_json import canonical_json

_NOT_OF_THE_TOOL = frozenset({"thinking", "inner_thoughts", "request_heartbeat"})
"""Arguments that Letta adds to every tool's."""
_FEWEST_WORDS = 4
_WORD = re.compile(r"\w+")


class ToolCall(NamedTuple):
    """A call in a message of the run, the ``position``-th of all; ``waits`` where it asks for an approval."""

    position: int
    id: str | None
    name: str | None
    arguments: str | None
    waits: bool
    denied: bool


class ToolReturn(NamedTuple):
    """A return in a message of the run; ``row_name`` is the tool that the message's row names for it."""

    position: int
    call_id: str | None
    status: str | None
    denied: bool
    row_name: str | None


class AskedCall(NamedTuple):
    """A call that another run made, in a step that this run's messages name: see ``schema.raw.ASKED_CALL``."""

    id: str | None
    name: str | None
    denied: bool


@dataclass(frozen=True)
class Denials:
    """What a person denied: calls by id, or, before Letta 0.14, all calls of a step; ``count`` counts calls."""

    call_ids: frozenset[str] = frozenset()
    step_ids: frozenset[str] = frozenset()
    count: int = 0

    @classmethod
    def made_in(cls, denying: Iterable[tuple[str | None, str | None]]) -> Self:
        """Return what denying decisions, each with its call and the step of its message, deny."""
        call_ids: set[str] = set()
        step_ids: set[str] = set()
        without_call = 0
        for call_id, step_id in denying:
            if call_id is not None:
                call_ids.add(call_id)
            else:
                # Before Letta 0.14 a decision names the request's message, and one step asks for one call.
                without_call += 1
                if step_id is not None:
                    step_ids.add(step_id)
        return cls(frozenset(call_ids), frozenset(step_ids), len(call_ids) + without_call)

    def cover(self, call_id: str | None, step_id: str | None) -> bool:
        """Return whether a call with this id, made or answered in this step, was denied."""
        return call_id in self.call_ids or step_id in self.step_ids

    def of(self, asked: Iterable[Mapping[str, Any]]) -> list[AskedCall]:
        """Return rows of ``asked_calls``, with whether each was denied."""
        return [AskedCall(call["id"], call["name"], self.cover(call["id"], call["step_id"])) for call in asked]


NO_DENIALS = Denials()


def row_names(name: str | None, role: str, denied: Sequence[bool]) -> list[str | None]:
    """Return for each return in a row the tool that the row names: that of the first one that was not denied."""
    names: list[str | None] = [None] * len(denied)
    if name is not None and role == "tool" and False in denied:
        names[denied.index(False)] = name
    return names


@dataclass(frozen=True)
class ToolUse:
    """Calls and returns in a run's messages, in order, and the calls of other runs that it answers."""

    calls: Sequence[ToolCall] = ()
    returns: Sequence[ToolReturn] = ()
    asked: Sequence[AskedCall] = ()

    def requested(self) -> list[str]:
        """Return the names of the tools that were called, in order of first use."""
        return _distinct([call.name for call in self.calls])

    def denied(self) -> list[str]:
        """Return the names of the tools of denied calls."""
        return _distinct(
            [*(call.name for call in self.asked if call.denied), *(call.name for call in self.calls if call.denied)]
        )

    def used(self) -> list[str]:
        """Return the names of the tools that ran, in order of first use.

        These are the tools of calls that waited for no approval, and of the returns; denied calls excepted.
        """
        answered = {item.call_id for item in self.returns if not item.denied}
        ran = [
            (call.position, call.name)
            for call in self.calls
            if not call.denied and (not call.waits or (call.id is not None and call.id in answered))
        ]
        own = {call.id for call in self.calls} - {None}
        foreign = [item for item in self.returns if not item.denied and item.call_id not in own]
        if foreign:
            ran += [(item.position, self._tool_of(item, None)) for item in foreign]
            ran.sort(key=lambda entry: entry[0])
        return _distinct([name for _, name in ran])

    def errors(self) -> list[bool | None]:
        """Return of each return that was not denied whether it is an error; None where that is not recorded."""
        return [None if item.status is None else item.status == "error" for item in self.returns if not item.denied]

    def error_recovered(self) -> bool | None:
        """Return whether after each error the same tool succeeded for the same purpose; see the data dictionary.

        None where there is no error, or where the run's rows do not show it.
        """
        if not any(item.status == "error" and not item.denied for item in self.returns):
            return None
        found = set(self._recoveries())
        return False if False in found else None if None in found else True

    def _tool_of(self, item: ToolReturn, call: ToolCall | None) -> str | None:
        """Return the tool of a return: of the call that it answers, else of its row; None where neither says it."""
        if call is not None:
            return call.name
        named = {asked.name for asked in self.asked if asked.id == item.call_id and item.call_id is not None}
        return named.pop() if len(named) == 1 else item.row_name

    def _recoveries(self) -> Iterator[bool | None]:
        """Yield for each error whether it was recovered from, the last one first."""
        calls: dict[str, list[ToolCall]] = {}
        for call in self.calls:
            if call.id is not None:
                calls.setdefault(call.id, []).append(call)
        answered = {item.call_id for item in self.returns}
        waiting = [call for call in self.calls if call.id is None or call.id not in answered]
        later: dict[str | None, _LaterCalls] = {}
        # What comes before the first error says nothing of any.
        first = next(at for at, item in enumerate(self.returns) if item.status == "error" and not item.denied)
        for item in reversed(self.returns[first:]):
            while waiting and waiting[-1].position >= item.position:
                call = waiting.pop()
                later.setdefault(call.name, _LaterCalls()).add_unknown()
            if item.denied:
                continue
            earlier = [call for call in calls.get(item.call_id or "", ()) if call.position < item.position]
            call_of_item = earlier[-1] if earlier else None
            name = self._tool_of(item, call_of_item)
            arguments = None if call_of_item is None else call_of_item.arguments
            if item.status == "error":
                # Where one of the two has no name, it is not known whether they are calls of one tool.
                unknown = None in later or (name is None and bool(later))
                recovered = later[name].recover(arguments) if name is not None and name in later else False
                yield recovered or (None if unknown else recovered)
            elif item.status == "success":
                later.setdefault(name, _LaterCalls()).add_success(arguments)
            else:
                later.setdefault(name, _LaterCalls()).add_unknown()


class _LaterCalls:
    """Calls of one tool after an error: those that succeeded, and whether there are some of which it is not known.

    Arguments are parsed when an error asks for them: most tools that succeed never fail.
    """

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._unparsed: list[str | None] = []
        self._values: set[tuple[str, str]] = set()
        self._next: Mapping[str, Any] = {}
        self._unknown = False

    def add_unknown(self) -> None:
        """Add a call of which the run does not show whether it succeeded, or for what."""
        self._unknown = True

    def add_success(self, text: str | None) -> None:
        """Add a success with these arguments, earlier than those added before."""
        self._unparsed.append(text)
        if text is not None:
            self._texts.add(text)

    def recover(self, text: str | None) -> bool | None:
        """Return whether one of the successes is for the purpose of a failed call with these arguments."""
        if text is not None and text in self._texts:
            return True
        self._parse_successes()
        values = _arguments(text)
        if values is None:
            return None
        if not values:
            return True if self._texts else None if self._unknown else False
        name, value = next(iter(values.items()))
        if (name, canonical_json(value)) in self._values or _share_words(value, self._next.get(name)):
            return True
        return None if self._unknown else False

    def _parse_successes(self) -> None:
        for text in self._unparsed:
            values = _arguments(text)
            self._unknown |= values is None
            self._next = values or {}
            self._values.update((name, canonical_json(value)) for name, value in self._next.items())
        self._unparsed.clear()


def _arguments(text: str | None) -> dict[str, Any] | None:
    """Return a call's arguments to its tool; None where they are not known, or no JSON object."""
    try:
        values = json.loads(text) if text else None
        canonical_json(values)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return {name: value for name, value in values.items() if name not in _NOT_OF_THE_TOOL}


def _share_words(one: Any, other: Any) -> bool:
    """Return whether two texts of several words, such as queries, share at least half of their words."""
    if not isinstance(one, str) or not isinstance(other, str) or len(one.split()) < _FEWEST_WORDS:
        return False
    words, others = (set(_WORD.findall(text.lower())) for text in (one, other))
    return len(words & others) * 2 >= len(words | others) > 0


def _distinct(names: Iterable[str | None]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name is not None]
