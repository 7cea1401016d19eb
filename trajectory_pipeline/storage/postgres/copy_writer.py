"""A batch of trajectories as lines of Postgres' COPY text format, made column by column."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.document import Document
from trajectory_pipeline.runtime.threads import WriteBehind
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Sink

_SET_BY_DATABASE = ("first_captured_at", "updated_at")
_DATA = "data"
STAGED = tuple(
    sorted(
        (column for column in TRAJECTORIES.in_sink(Sink.POSTGRES) if column.name not in _SET_BY_DATABASE),
        key=lambda column: column.name == _DATA,
    )
)
"""The columns that a materialization writes, the document last."""

# The backslash first: later it would escape what the others made.
_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))

PIECE_BYTES = 2**20
"""Bytes of a COPY that are handed to the driver at once."""


class CopyWriter:
    """An open COPY into the staging table; the server reads a batch while the next one is made."""

    def __init__(self, copy: psycopg.Copy, behind: WriteBehind) -> None:
        self._copy = copy
        self._behind = behind
        self.rows = 0

    def add_batch(self, trajectories: pa.RecordBatch, documents: Sequence[Document]) -> None:
        """Stage trajectories, each with its document, or the reason why it has none."""
        if trajectories.num_rows:
            self._behind(self._write, trajectories, documents)
            self.rows += trajectories.num_rows

    def _write(self, trajectories: pa.RecordBatch, documents: Sequence[Document]) -> None:
        # In pieces: a document may have a hundred megabytes, and the driver copies what it is given.
        for piece in in_pieces(copy_lines(trajectories, documents)):
            self._copy.write(piece)


def copy_lines(trajectories: pa.RecordBatch, documents: Sequence[Document]) -> Iterator[bytes]:
    """Yield trajectories, part by part, as lines of COPY's text format, with the columns ``STAGED``."""
    texts, reasons = zip(*documents, strict=True)
    columns = [
        _text(pa.array(reasons, pa.string()) if name == "data_omitted_reason" else trajectories.column(name))
        for name in (column.name for column in STAGED if column.name != _DATA)
    ]
    heads: Any = pc.binary_join_element_wise(*columns, "\t")
    for head, text in zip(heads.cast(pa.binary()).to_pylist(), texts, strict=True):
        yield head
        yield b"\t"
        yield _document(text)
        yield b"\n"


def in_pieces(parts: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Yield the same bytes in pieces of about ``PIECE_BYTES``; a larger part is divided without a copy."""
    small: list[bytes] = []
    size = 0
    for part in parts:
        if size + len(part) > PIECE_BYTES and small:
            yield b"".join(small)
            small, size = [], 0
        if len(part) > PIECE_BYTES:
            large = memoryview(part)
            yield from (large[at : at + PIECE_BYTES] for at in range(0, len(part), PIECE_BYTES))
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)


def _document(text: bytes | None) -> bytes:
    if text is None:
        return b"\\N"
    for plain, escaped in _ESCAPES:
        text = text.replace(plain.encode(), escaped.encode())
    return text


def _text(column: Any) -> Any:
    r"""Return a column as COPY's text: escaped, a null as ``\N``."""
    kind = column.type
    if pa.types.is_struct(kind):
        texts = [None if value is None else orjson.dumps(value).decode() for value in column.to_pylist()]
        column = pa.array(texts, pa.string())
    elif pa.types.is_list(kind):
        column = pa.array(list(map(_array, column.to_pylist())), pa.string())
    elif pa.types.is_timestamp(kind):
        column = pc.binary_join_element_wise(column.cast(pa.timestamp("us")).cast(pa.string()), "+00", "")
    column = column.cast(pa.string())
    if pa.types.is_string(kind) or pa.types.is_nested(kind):
        for plain, escaped in _ESCAPES:
            column = pc.replace_substring(column, plain, escaped)
    return pc.fill_null(column, "\\N")


def _array(values: list[str] | None) -> str | None:
    """Return strings as an array of Postgres."""
    if values is None:
        return None
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{value}"' for value in quoted) + "}"
