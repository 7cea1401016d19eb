"""The hand-written labels of the sample: as they stand in the file, and as rows of the table ``labels``."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.schema.labels import NO_STEP, RATINGS, Label, requirement_item

LABELS_FILE = Path(__file__).parent / "labels.jsonl"

FIRST_ANNOTATOR, SECOND_ANNOTATOR = "A", "B"
"""The first labelled every terminal run by every criterion, the second some of them again by outcome."""

_DRAWN = {
    FIRST_ANNOTATOR: (SamplingDesign.CENSUS, 1.0),
    # 40 runs, drawn from the 145 that there were before the last seven were added.
    SECOND_ANNOTATOR: (SamplingDesign.RANDOM, 40 / 145),
}


@functools.cache
def label_records(annotator: str, file: Path = LABELS_FILE) -> Mapping[str, Mapping[str, Any]]:
    """Return run id → what an annotator wrote of the run."""
    rows = (orjson.loads(line) for line in file.read_bytes().splitlines())
    return {row["run_id"]: row for row in rows if row["annotator"] == annotator}


def sample_labels() -> list[Label]:
    """Return every label of both annotators."""
    return [
        label
        for annotator in (FIRST_ANNOTATOR, SECOND_ANNOTATOR)
        for record in label_records(annotator).values()
        for label in _labels_of(record)
    ]


def _labels_of(record: Mapping[str, Any]) -> Iterator[Label]:
    label = functools.partial(_label, record)
    yield label(Criterion.OUTCOME, record["outcome"], note=record["rationale"])
    if "requirements" not in record:
        return
    for requirement in record["requirements"]:
        statement = requirement["statement"]
        yield label(
            Criterion.REQUIREMENT,
            requirement["status"],
            item=requirement_item(statement),
            statement=statement,
            evidence=tuple(requirement["evidence"]),
        )
    yield label(Criterion.FAILURE_OWNER, record["failure_owner"])
    yield label(Criterion.FAILURE_MODE, record["failure_mode"], note=record.get("other_mode"))
    yield label(Criterion.FIRST_WRONG_STEP, record["first_wrong_step"] or NO_STEP)
    for rating in RATINGS:
        yield label(rating, str(record["learning"][rating]))


def _label(record: Mapping[str, Any], criterion: str, value: str, **more: Any) -> Label:
    design, probability = _DRAWN[record["annotator"]]
    return Label(
        run_id=record["run_id"],
        criterion=criterion,
        annotator=record["annotator"],
        source=LabelSource.DEMONSTRATION,
        value=value,
        sampling_design=design,
        inclusion_probability=probability,
        **more,
    )
