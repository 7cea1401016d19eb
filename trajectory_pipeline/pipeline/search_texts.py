"""Makes the search texts of partitions that are missing or stale."""

import hashlib
from collections.abc import Sequence
from itertools import islice

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.redaction.redactor import REDACTION_VERSION, Redactor
from trajectory_pipeline.judge.transcript.context import Document
from trajectory_pipeline.pipeline.documents import MissingDocumentError, shown_documents
from trajectory_pipeline.schema.versions import SEARCH_TEXT_VERSION
from trajectory_pipeline.search.search_text import Judged, render_search_text
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection
from trajectory_pipeline.storage.postgres.search_texts import (
    RenderedText,
    TextSource,
    reduced_documents,
    save_texts,
    stale_texts,
)

_TEXTS_AT_ONCE = 200


def rendering_version(redactor: Redactor) -> str:
    """Return what a text depends on beside its trajectory and verdict: versions of rendering and redaction."""
    return f"{SEARCH_TEXT_VERSION}-{REDACTION_VERSION}-{redactor.mode}"


def render_stale_texts(
    connection: RetryingConnection, store: ParquetStore, partition_keys: Sequence[str], redactor: Redactor
) -> int:
    """Make and store the texts of partitions that are missing or stale; returns how many.

    Raises:
        SinkError: a sink cannot be read or written; what is stored stays.
        PipelineError: the document of a run is in neither sink.
    """
    made = 0
    waiting = iter(stale_texts(connection, partition_keys, rendering_version(redactor)))
    while sources := list(islice(waiting, _TEXTS_AT_ONCE)):
        rows = reduced_documents(connection, sorted({run_id for one in sources for run_id in one.task_run_ids}))
        try:
            texts = [
                _rendered(one, shown_documents(one.task_run_ids, one.partition_key, rows, store), redactor)
                for one in sources
            ]
        except MissingDocumentError as error:
            raise PipelineError(f"{error}.") from None
        made += save_texts(connection, texts)
    return made


def _rendered(source: TextSource, documents: Sequence[Document], redactor: Redactor) -> RenderedText:
    judged = Judged(source.summary, source.lesson) if source.verdict_key is not None else None
    text = render_search_text(documents, judged, redactor)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return RenderedText(source, text, digest, rendering_version(redactor))
