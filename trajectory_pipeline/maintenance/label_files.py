"""Labels as files: CSV, validation files of Inspect Scout, and JSON of Label Studio, read and written.

CSV and Label Studio hold all of a label. A Scout file holds the values of one annotator, and no statements or notes.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

import yaml

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.schema.labels import RATINGS, Label, check_label, requirement_item

Row = Mapping[str, Any]
_COLUMNS = (
    *("run_id", "criterion", "value", "statement", "evidence", "note", "annotator", "source", "labelled_at", "split"),
    *("sampling_design", "inclusion_probability"),
)
_REQUIRED = ("run_id", "criterion", "value")
_SHOWN_PROBLEMS = 20


class LabelFormat(StrEnum):
    """The kind of a file of labels."""

    CSV = "csv"
    SCOUT = "scout"
    LABEL_STUDIO = "label-studio"


@dataclass(frozen=True)
class ReadOptions:
    """What a file may not say itself.

    Attributes:
        annotator: of labels without one; of all labels where the format has none.
        criterion: of a Scout file's column ``target``.
        known_runs: runs that labels may be about; None for any.
    """

    annotator: str | None = None
    criterion: str = Criterion.OUTCOME
    known_runs: frozenset[str] | None = None


def read_label_file(name: str, text: str, kind: LabelFormat, options: ReadOptions) -> list[Label]:
    """Return the labels of a file; ``name`` is its name, whose ending tells how a Scout file is written.

    Raises:
        PipelineError: a row is wrong; names the place of each wrong row, and why. Nothing of the file is to be used.
    """
    readers: dict[LabelFormat, Callable[[str, str, ReadOptions], Iterator[tuple[str, Label | str]]]] = {
        LabelFormat.CSV: _read_csv,
        LabelFormat.SCOUT: _read_scout,
        LabelFormat.LABEL_STUDIO: _read_label_studio,
    }
    labels: list[Label] = []
    places: dict[tuple[str, ...], str] = {}
    problems: list[str] = []
    for place, found in readers[kind](name, text, options):
        problem = found if isinstance(found, str) else _problem(found, options)
        if problem is None and isinstance(found, Label):
            if found.key in places:
                problem = f"what it says of the run stands at {places[found.key]} already"
            else:
                places[found.key] = place
                labels.append(found)
        if problem is not None:
            problems.append(f"{place}: {problem}")
    if problems:
        rest = f"\n… and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        listed = "\n".join(problems[:_SHOWN_PROBLEMS])
        raise PipelineError(f"{name} has wrong labels, so nothing was written:\n{listed}{rest}")
    return labels


def write_label_file(name: str, labels: Sequence[Label], kind: LabelFormat) -> tuple[str, int]:
    """Return the text of a file of labels, and how many labels it cannot hold.

    Raises:
        PipelineError: a Scout file is to hold labels of several annotators.
    """
    if kind is LabelFormat.CSV:
        return _write_csv(labels), 0
    if kind is LabelFormat.LABEL_STUDIO:
        return _write_label_studio(labels), 0
    return _write_scout(name, labels)


def _problem(label: Label, options: ReadOptions) -> str | None:
    try:
        check_label(label)
    except ValueError as error:
        return str(error)
    if options.known_runs is not None and label.run_id not in options.known_runs:
        return f"there is no trajectory of {label.run_id}: check the id, or capture its hour first"
    return None


def _label(values: Row, source: LabelSource, options: ReadOptions) -> Label | str:
    """Return a label of texts by column, or what is wrong with them."""
    text = {name: str(value) for name, value in values.items() if value not in (None, "")}
    missing = [name for name in _REQUIRED if name not in text]
    if missing:
        return f"{', '.join(missing)} is missing"
    annotator = text.get("annotator", options.annotator)
    if annotator is None:
        return "annotator is missing: name one with --annotator"
    moment = text.get("labelled_at")
    design = text.get("sampling_design")
    try:
        labelled_at = datetime.fromisoformat(moment) if moment else None
        probability = float(text["inclusion_probability"]) if "inclusion_probability" in text else None
        stated_source = LabelSource(text["source"]) if "source" in text else source
        stated_design = SamplingDesign(design) if design else None
    except ValueError as error:
        return str(error)
    statement = text.get("statement")
    return Label(
        run_id=text["run_id"],
        criterion=text["criterion"],
        annotator=annotator,
        source=stated_source,
        value=text["value"],
        item=requirement_item(statement) if statement and text["criterion"] == Criterion.REQUIREMENT else "",
        statement=statement,
        evidence=tuple(text.get("evidence", "").split()),
        note=text.get("note"),
        labelled_at=labelled_at,
        split=text.get("split"),
        sampling_design=stated_design,
        inclusion_probability=probability,
    )


def _texts(label: Label) -> dict[str, str]:
    values = {
        **{name: getattr(label, name) for name in _COLUMNS},
        "evidence": " ".join(label.evidence),
        "labelled_at": label.labelled_at.isoformat() if label.labelled_at else "",
        "inclusion_probability": "" if label.inclusion_probability is None else repr(label.inclusion_probability),
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}


# ---- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(_: str, text: str, options: ReadOptions) -> Iterator[tuple[str, Label | str]]:
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    before = 1
    try:
        header = reader.fieldnames or []
        unknown = [column for column in header if column not in _COLUMNS]
        missing = [column for column in _REQUIRED if column not in header]
        if unknown or missing:
            problem = [f"unknown columns {', '.join(map(repr, unknown))}"] if unknown else []
            problem += [f"missing columns {', '.join(missing)}"] if missing else []
            yield "line 1", f"{'; '.join(problem)}; the columns are {', '.join(_COLUMNS)}"
            return
        for row in reader:
            place, before = f"line {before + 1}", reader.line_num
            if None in row or None in row.values():
                yield place, f"it has not {len(header)} cells, as the first line has"
            else:
                yield place, _label(row, LabelSource.CSV, options)
    except csv.Error as error:
        yield f"line {reader.line_num}", str(error)


def _write_csv(labels: Iterable[Label]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_texts(label) for label in labels)
    return file.getvalue()


# ---- Inspect Scout --------------------------------------------------------------------------------------------------


def _read_scout(name: str, text: str, options: ReadOptions) -> Iterator[tuple[str, Label | str]]:
    try:
        cases = list(_scout_cases(name, text))
    except (ValueError, csv.Error, yaml.YAMLError) as error:
        yield "the file", f"it cannot be read: {str(error).splitlines()[0]}"
        return
    for place, case in cases:
        if not isinstance(case, Mapping) or "id" not in case:
            yield place, "it is no case: it has no id"
            continue
        run_id = case["id"]
        if not isinstance(run_id, str) or "," in run_id or run_id.startswith("["):
            yield place, "a label is about one run: id is not one id"
            continue
        targets = dict(_scout_targets(case, options.criterion))
        if not targets:
            yield place, "it has neither target nor labels"
        for criterion, target in targets.items():
            if isinstance(target, Mapping | list):
                yield place, f"{criterion} is no single value"
                continue
            value = {True: "true", False: "false"}.get(target, target) if isinstance(target, bool) else target
            row = {"run_id": run_id, "criterion": criterion, "value": value, "split": case.get("split")}
            if options.annotator is None:
                yield place, "the format has no annotator: name one with --annotator"
            else:
                yield place, _label(row, LabelSource.SCOUT, options)


def _scout_cases(name: str, text: str) -> Iterator[tuple[str, Any]]:
    ending = name.rpartition(".")[2].lower()
    if ending == "csv":
        yield from _scout_csv(text)
        return
    if ending == "jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield f"line {number}", json.loads(line)
        return
    # JSON is YAML too, but its errors are clearer.
    data = json.loads(text) if ending == "json" else yaml.safe_load(text) if ending in ("yaml", "yml") else None
    if not isinstance(data, list):
        reason = "a Scout file ends in .csv, .json, .jsonl, .yaml or .yml, and is a list of cases"
        raise ValueError(reason)  # noqa: TRY004 - as for all that is wrong with a file
    for number, case in enumerate(data, start=1):
        if isinstance(case, Mapping) and "id" not in case and isinstance(case.get("cases"), list):
            for inner, nested in enumerate(case["cases"], start=1):
                if isinstance(nested, Mapping):
                    yield f"case {inner} of split {case.get('split')}", {**nested, "split": case.get("split")}
                else:
                    yield f"case {inner} of split {case.get('split')}", nested
        else:
            yield f"case {number}", case


def _scout_csv(text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    before = 0
    for cells in reader:
        line, before = before + 1, reader.line_num
        if not cells:
            continue
        if header is None:
            if "id" in cells:
                header = cells
                continue
            # Two columns without names, as in the simplest validation sets.
            header = ["id", "target"]
        if len(cells) != len(header):
            yield f"line {line}", None
        else:
            yield f"line {line}", {key: cell for key, cell in zip(header, cells, strict=True) if cell != ""}


def _scout_targets(case: Row, criterion: str) -> Iterator[tuple[str, Any]]:
    target = case.get("target")
    if isinstance(target, Mapping):
        yield from target.items()
    elif target is not None:
        yield criterion, target
    labels = case.get("labels")
    if isinstance(labels, Mapping):
        yield from labels.items()
    for name, value in case.items():
        for prefix in ("target_", "label_"):
            if name.startswith(prefix) and value is not None:
                yield name.removeprefix(prefix), value


def _write_scout(name: str, labels: Sequence[Label]) -> tuple[str, int]:
    annotators = sorted({label.annotator for label in labels})
    if len(annotators) > 1:
        raise PipelineError(
            f"A Scout file has one target for each run, and these labels are by {', '.join(annotators)}: choose one"
            " with --annotator."
        )
    kept = [label for label in labels if not label.item]
    cases: dict[tuple[str, str | None], dict[str, Any]] = defaultdict(dict)
    for label in kept:
        value: Any = int(label.value) if label.criterion in RATINGS else label.value
        cases[label.run_id, label.split][label.criterion] = value
    rows = [
        {"id": run_id, "target": targets, **({"split": split} if split else {})}
        for (run_id, split), targets in cases.items()
    ]
    if not name.lower().endswith(".csv"):
        if name.lower().endswith((".yaml", ".yml")):
            return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), len(labels) - len(kept)
        if name.lower().endswith(".jsonl"):
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), len(labels) - len(kept)
        return json.dumps(rows, indent=2, ensure_ascii=False) + "\n", len(labels) - len(kept)
    criteria = sorted({label.criterion for label in kept})
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", *(f"target_{criterion}" for criterion in criteria), "split"])
    for (run_id, split), targets in cases.items():
        writer.writerow([run_id, *(targets.get(criterion, "") for criterion in criteria), split or ""])
    return file.getvalue(), len(labels) - len(kept)


# ---- Label Studio ---------------------------------------------------------------------------------------------------

_NOTE = "note"
"""Name of the text area whose text is the note on the outcome."""


def _read_label_studio(_: str, text: str, options: ReadOptions) -> Iterator[tuple[str, Label | str]]:
    try:
        tasks = json.loads(text)
    except ValueError as error:
        yield "the file", f"it is no JSON: {error}"
        return
    if not isinstance(tasks, list):
        yield "the file", "it is no list of tasks: export from Label Studio as JSON"
        return
    for number, task in enumerate(tasks, start=1):
        place = f"task {number}"
        data = task.get("data") if isinstance(task, Mapping) else None
        run_id = data.get("run_id") if isinstance(data, Mapping) else None
        if not isinstance(run_id, str):
            yield place, "its data has no run_id"
            continue
        annotations = task.get("annotations")
        if not isinstance(annotations, list):
            yield place, "it has no list of annotations: JSON-MIN is not read, export as JSON"
            continue
        for index, annotation in enumerate(annotations, start=1):
            where = f"{place}, annotation {index}"
            if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
                yield where, "it has no list of results"
            elif not annotation.get("was_cancelled"):
                yield from _annotation_labels(where, run_id, annotation, options)


def _annotation_labels(
    where: str, run_id: str, annotation: Row, options: ReadOptions
) -> Iterator[tuple[str, Label | str]]:
    common = {
        "run_id": run_id,
        "annotator": _label_studio_user(annotation.get("completed_by"), options),
        "labelled_at": annotation.get("updated_at") or annotation.get("created_at"),
    }
    results = annotation["result"]
    notes = [
        _joined(result["value"].get("text"))
        for result in results
        if _is_result(result) and result.get("type") == "textarea" and result["from_name"] == _NOTE
    ]
    for number, result in enumerate(results, start=1):
        place = f"{where}, result {number}"
        if not _is_result(result):
            yield place, "it has no from_name and value"
            continue
        if result.get("type") == "textarea":
            if result["from_name"] != _NOTE:
                yield place, f"the text {result['from_name']!r} is no label: only {_NOTE!r} is read"
            continue
        value = _label_studio_value(result)
        if value is None:
            yield place, "it is neither one choice nor a rating"
            continue
        meta = result.get("meta") if isinstance(result.get("meta"), Mapping) else {}
        note = _joined(meta.get("text")) or (notes[0] if notes and result["from_name"] == Criterion.OUTCOME else None)
        evidence = meta.get("evidence") or []
        extra = {key: meta[key] for key in ("statement", "source", "split") if key in meta}
        extra |= {key: meta[key] for key in ("sampling_design", "inclusion_probability", "labelled_at") if key in meta}
        row = {**common, **extra, "criterion": result["from_name"], "value": value, "note": note}
        label = _label(row, LabelSource.LABEL_STUDIO, options)
        yield place, label if isinstance(label, str) else replace(label, evidence=tuple(map(str, evidence)))


def _is_result(result: object) -> bool:
    return (
        isinstance(result, Mapping)
        and isinstance(result.get("from_name"), str)
        and isinstance(result.get("value"), Mapping)
    )


def _label_studio_value(result: Row) -> str | None:
    choices = result["value"].get("choices")
    if isinstance(choices, list) and len(choices) == 1:
        return str(choices[0])
    rating = result["value"].get("rating")
    return str(rating) if isinstance(rating, int) and not isinstance(rating, bool) else None


def _label_studio_user(user: object, options: ReadOptions) -> str | None:
    """Return who made an annotation: ``completed_by`` is an id, or an object with an e-mail address."""
    if options.annotator is not None:
        return options.annotator
    if isinstance(user, Mapping):
        user = user.get("email") or user.get("id")
    return f"user {user}" if isinstance(user, int) else str(user) if user else None


def _joined(text: object) -> str | None:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text) if text else None


def _write_label_studio(labels: Sequence[Label]) -> str:
    tasks: dict[str, dict[str, list[Label]]] = defaultdict(lambda: defaultdict(list))
    for label in labels:
        tasks[label.run_id][label.annotator].append(label)
    return (
        json.dumps(
            [
                {
                    "data": {"run_id": run_id},
                    "annotations": [
                        {"completed_by": {"email": annotator}, "result": [_result(label) for label in given]}
                        for annotator, given in people.items()
                    ],
                }
                for run_id, people in tasks.items()
            ],
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
    )


def _result(label: Label) -> dict[str, Any]:
    is_rating = label.criterion in RATINGS
    texts = _texts(label)
    names = ("statement", "source", "labelled_at", "split", "sampling_design", "inclusion_probability")
    meta: dict[str, Any] = {name: texts[name] for name in names if texts[name]}
    if label.note is not None:
        meta["text"] = [label.note]
    if label.evidence:
        meta["evidence"] = list(label.evidence)
    return {
        "from_name": label.criterion,
        "to_name": "trajectory",
        "type": "rating" if is_rating else "choices",
        "value": {"rating": int(label.value)} if is_rating else {"choices": [label.value]},
        **({"meta": meta} if meta else {}),
    }
