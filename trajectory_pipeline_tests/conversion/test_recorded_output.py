"""A changed output of the conversion makes partitions stale: it needs another ``CONVERSION_VERSION``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trajectory_pipeline.conversion import outcome_rules
from trajectory_pipeline.conversion.convert import convert_batch
from trajectory_pipeline.conversion.document import Document, postgres_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.schema import versions
from trajectory_pipeline.schema.arrow import arrow_schema
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.storage.postgres.copy_writer import copy_lines
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.output_record import check_output, json_digest, parquet_digest
from trajectory_pipeline_tests.conversion.raw_runs import HOUR, batch_of
from trajectory_pipeline_tests.conversion.sample_runs import sample_runs

RECORD = Path(__file__).with_name("recorded_output.json")


def digests(trajectories: pa.RecordBatch, documents: list[Document], folder: Path) -> dict[str, str]:
    # Prices change with genai-prices, whose version makes a partition stale anyway.
    unpriced = trajectories.set_column(
        trajectories.schema.get_field_index("cost_usd"),
        trajectories.schema.field("cost_usd"),
        pa.nulls(trajectories.num_rows, trajectories.schema.field("cost_usd").type),
    )
    lines = b"".join(copy_lines(unpriced, [(None, reason) for _, reason in documents]))
    return {
        "rows": json_digest(unpriced.to_pylist()),
        "documents": json_digest(unpriced_documents(documents)),
        "postgres_columns": json_digest([lines.decode()]),
        "parquet_file": parquet_digest(TRAJECTORIES, [trajectories], folder),
    }


def unpriced_documents(documents: list[Document]) -> Iterator[Any]:
    for text, reason in documents:
        document = json.loads(text or "null")
        if document:
            del document["metadata"]["cost_usd"]
        yield document, reason


def check(output: dict[str, str]) -> None:
    check_output(RECORD, "CONVERSION_VERSION (schema/versions.py)", versions.CONVERSION_VERSION, output)


def check_columnar(folder: Path) -> None:
    conversion = convert_batch(batch_of(*sample_runs(), *made_runs()), HOUR, documents=True)
    check(digests(conversion.trajectories, conversion.documents, folder))


def test_columnar_output_matches_the_record(tmp_path: Path) -> None:
    check_columnar(tmp_path)


def test_reference_output_matches_the_record(tmp_path: Path) -> None:
    rows = [convert_run(raw, HOUR) for raw in batch_of(*sample_runs(), *made_runs()).to_pylist()]
    batch = pa.RecordBatch.from_pylist(rows, schema=arrow_schema(TRAJECTORIES))
    check(digests(batch, list(map(postgres_document, rows)), tmp_path))


def test_check_with_other_output_asks_for_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_rules, "CAUSE_BY_CODE", {})
    with pytest.raises(
        AssertionError, match=r"\(rows, documents, postgres_columns\), but CONVERSION_VERSION .* is still"
    ):
        check_columnar(tmp_path)


def test_check_with_another_version_asks_for_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "CONVERSION_VERSION", versions.CONVERSION_VERSION + 1)
    with pytest.raises(AssertionError, match="write this to"):
        check_columnar(tmp_path)
