"""Publishes the report beside the partitions: ``trajectory_report/report.html``, and each of its tables as Parquet."""

import io
import posixpath
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from trajectory_pipeline.report.page import Report, Row
from trajectory_pipeline.storage.artifacts import write_artifact
from trajectory_pipeline.storage.parquet.store import ParquetStore

FOLDER = "trajectory_report"


@dataclass(frozen=True)
class PublishedReport:
    """Where the page is, as it may be shown, and its size."""

    uri: str
    bytes: int


def publish_report(store: ParquetStore, report: Report) -> PublishedReport:
    """Write the page and its tables; a table without rows is left out.

    Raises:
        SinkError: the storage cannot be written.
    """
    for name, rows in report.tables.items():
        if rows:
            write_artifact(store.uri, f"{FOLDER}/{name}.parquet", _parquet(rows))
    html = report.html.encode()
    write_artifact(store.uri, f"{FOLDER}/report.html", html)
    return PublishedReport(posixpath.join(store.shown_uri.rstrip("/"), FOLDER, "report.html"), len(html))


def _parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
