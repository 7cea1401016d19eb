"""Whether a source shows masked texts in place of those that were captured: what to follow only if a person says so.

A masking view or a column policy puts null, an empty text, a constant, stars or a first letter where a text was. Taken
for an edit, it would overwrite what was captured. Edits of people concern some messages, and say something.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.lossless_json import ConversionError, parse_json

RUNS_COMPARED = 500
"""Runs of a partition, at least, whose texts are compared if there are so many. Ids are random, and so are they."""
FEW_MASKED = 5
LARGEST_MASKED_SHARE = 0.1
"""So many runs, or that share of those compared, may lose their texts at once without a question."""

_JSON_COLUMNS = ("content", "tool_calls", "tool_returns", "approvals")
_TEXT_COLUMNS = ("text", "denial_reason")
_COLUMNS = (*_TEXT_COLUMNS, *_JSON_COLUMNS)
FORMER_TEXTS = ("run_id", "deleted_at", "erased", "messages.id", *(f"messages.{name}" for name in _COLUMNS))
"""What ``ObservedTexts`` needs of a former file."""
_NO_TEXT = frozenset({"id", "name", "role", "signature", "status", "tool_call_id", "type"})
"""Keys of JSON whose values are no texts: a mask leaves them, or the rows could not be read."""

Texts = frozenset[str]


@dataclass
class _ColumnChanges:
    """What became of one column's texts.

    Attributes:
        unchanged: runs with a text that is still there.
        changed: for each run with texts that are not, by message: those, and what is there instead.
    """

    unchanged: set[str] = field(default_factory=set)
    changed: dict[str, list[tuple[Texts, Texts]]] = field(default_factory=lambda: defaultdict(list))

    def masked_runs(self) -> set[str]:
        """Return the runs whose texts are masked: others too became the same, or little is left of any of them."""
        former_of = defaultdict(set)
        for former, now in (pair for pairs in self.changed.values() for pair in pairs):
            former_of[now].add(former)
        whole = {run_id: pairs for run_id, pairs in self.changed.items() if run_id not in self.unchanged}
        masked = {
            run_id
            for run_id, pairs in self.changed.items()
            if all(len(former_of[now]) > 1 for _, now in pairs) and (run_id in whole or len(self.compared) > 1)
        }
        pairs = [pair for pairs in whole.values() for pair in pairs]
        if len({former for former, _ in pairs}) > 1 and 2 * _size(now for _, now in pairs) < _size(f for f, _ in pairs):
            masked |= whole.keys()
        return masked

    @property
    def compared(self) -> set[str]:
        """Runs that had a text."""
        return self.unchanged | self.changed.keys()


@dataclass
class ObservedTexts:
    """Texts of messages in a former file, as far as they are compared, and what the source shows in their place."""

    _former: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    _changes: dict[str, _ColumnChanges] = field(default_factory=lambda: defaultdict(_ColumnChanges))

    def add_former(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Note texts of the former file, which come with ``FORMER_TEXTS``, before those of the snapshot are added."""
        for batch in batches:
            there: Any = pc.is_null(batch.column("deleted_at"))
            if "erased" in batch.schema.names:
                erased: Any = batch.column("erased")
                there = pc.and_not(there, erased.fill_null(False))
            self._former.update(_texts_by_run(batch.filter(there)))
            if len(self._former) >= RUNS_COMPARED:
                return

    def only(self, run_ids: "pa.Array[Any]") -> "ObservedTexts":
        """Return the same former texts, of these runs alone."""
        return ObservedTexts({run_id: self._former[run_id] for run_id in run_ids.to_pylist() if run_id in self._former})

    def add(self, batch: pa.RecordBatch) -> None:
        """Compare a batch of the snapshot, as the source gave it; what it marks as deleted may lose its texts."""
        if not self._former:
            return
        run: Any = batch.column("run")
        wanted = pc.is_in(batch.column("run_id"), value_set=pa.array(self._former.keys(), pa.string()))
        wanted = pc.and_not(wanted, pc.fill_null(run.field("is_deleted"), False))
        for run_id, messages in _texts_by_run(batch.filter(wanted), deleted=False).items():
            former = self._former.pop(run_id)
            for message_id, now in messages.items():
                for name, text in former.get(message_id, {}).items():
                    self._compare(run_id, name, text, now.get(name))

    def _compare(self, run_id: str, name: str, former: str, now: str | None) -> None:
        changes = self._changes[name]
        if former == now and run_id in changes.unchanged:
            return
        texts = _texts_in(name, former)
        if not texts:
            return
        shown = texts if former == now else _texts_in(name, now)
        if texts & shown:
            changes.unchanged.add(run_id)
        if texts - shown:
            changes.changed[run_id].append((texts - shown, shown - texts))

    def describe_masked(self) -> str | None:
        """Return in words which texts seem to be masked; None where none are."""
        for name, changes in self._changes.items():
            masked, compared = len(changes.masked_runs()), len(changes.compared)
            few = max(FEW_MASKED, LARGEST_MASKED_SHARE * compared)
            if masked > few or (masked and 2 * masked >= compared and (masked > 1 or compared == 1)):
                return (
                    f"it shows one text, or hardly any, in messages.{name} of {masked} of {compared} runs that were"
                    " looked at, where other texts were captured (a masking view or a column policy)"
                )
        return None


def _texts_by_run(batch: pa.RecordBatch, *, deleted: bool = True) -> dict[str, dict[str, dict[str, str]]]:
    """Return columns with texts by run and message; with ``deleted`` false, without messages that are marked so."""
    messages: Any = batch.column("messages")
    rows: Any = messages.flatten()
    owners: Any = pc.list_parent_indices(messages)
    if not deleted:
        kept = pc.invert(pc.fill_null(rows.field("is_deleted"), False))
        rows, owners = rows.filter(kept), owners.filter(kept)
    run_ids: list[Any] = batch.column("run_id").to_pylist()
    found: dict[str, dict[str, dict[str, str]]] = {run_id: {} for run_id in run_ids}
    there = {each.name for each in rows.type}
    columns = {name: rows.field(name).to_pylist() for name in _COLUMNS if name in there}
    for at, (owner, message_id) in enumerate(zip(owners.to_pylist(), rows.field("id").to_pylist(), strict=True)):
        texts = {name: values[at] for name, values in columns.items() if values[at]}
        found[run_ids[owner]][message_id] = texts
    return found


def _texts_in(name: str, value: str | None) -> Texts:
    """Return the texts that a value holds, each once."""
    if not value:
        return frozenset()
    if name in _TEXT_COLUMNS:
        return frozenset({value})
    try:
        return frozenset(_strings(parse_json(value, "", [])))
    except ConversionError:
        return frozenset({value})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in _NO_TEXT or not isinstance(each, str):
                yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _size(texts: Iterable[Texts]) -> int:
    """Return how much these texts say: what is left of them if repetitions are written once."""
    return len(zlib.compress("\0".join(text for each in texts for text in sorted(each)).encode("utf-8", "replace"), 1))
