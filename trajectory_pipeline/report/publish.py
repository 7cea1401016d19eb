"""Makes the report and publishes it as ``trajectory_report/report.html``, with each of its tables as Parquet."""

import io
import posixpath
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.report.page import Report, Row, build_report
from trajectory_pipeline.report.quality import update_quality
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.settings import QualitySettings
from trajectory_pipeline.storage.artifacts import write_artifact
from trajectory_pipeline.storage.parquet.store import ParquetStore
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.redaction_key import redaction_key

FOLDER = "trajectory_report"


@dataclass(frozen=True)
class PublishedReport:
    """Where the page is, as it may be shown, and its size."""

    uri: str
    bytes: int


def make_report(
    database: TrajectoryDatabase,
    mode: RedactionMode,
    configured_key: bytes | None,
    first: datetime | None = None,
    after_last: datetime | None = None,
    quality: QualitySettings | None = None,
) -> Report:
    """Return the report on a range of hours, redacted as for the judge; see ``build_report``.

    Calibration maps and the registry of failure modes are brought up to date before.
    """
    redact = Redactor(mode, redaction_key(database, configured_key))
    update_quality(database, redact)
    return build_report(database, redact, first, after_last, quality)


def publish_report(store: ParquetStore, report: Report) -> PublishedReport:
    """Write the page and its tables; a table without rows is left out.

    Raises:
        SinkError: the storage cannot be written.
    """
    for name, rows in report.tables.items():
        if rows:
            write_artifact(store, f"{FOLDER}/{name}.parquet", _parquet(rows))
    html = report.html.encode()
    write_artifact(store, f"{FOLDER}/report.html", html)
    return PublishedReport(posixpath.join(store.shown_uri.rstrip("/"), FOLDER, "report.html"), len(html))


def _parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
