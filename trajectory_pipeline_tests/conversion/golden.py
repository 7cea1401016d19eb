"""Golden documents: which runs they are of, and how they are written again.

    python -m trajectory_pipeline_tests.conversion.golden

writes the files again; read the difference before you accept it. `golden/INDEX.md` says which run each is of and what
it shows.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory_pipeline.conversion.document import Document, postgres_document
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline_tests.conversion.made_runs import made_runs
from trajectory_pipeline_tests.conversion.raw_runs import Raw, Row
from trajectory_pipeline_tests.conversion.sample_runs import partition_of, sample_runs

FOLDER = Path(__file__).with_name("golden")

_LINE = re.compile(r"- \[(?P<name>[\w-]+)\]\((?P=name)\.json\) `(?P<run_id>[^`]+)`: (?P<shows>.+)")


@dataclass(frozen=True)
class Golden:
    name: str
    run_id: str
    shows: str

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    @property
    def raw(self) -> Raw:
        return next(raw for raw in (*sample_runs(), *made_runs()) if raw["run_id"] == self.run_id)


def index() -> list[Golden]:
    lines = (FOLDER / "INDEX.md").read_text(encoding="utf-8").splitlines()
    return [Golden(**match.groupdict()) for line in lines if (match := _LINE.fullmatch(line))]


def golden_text(row: Row, document: Document) -> str:
    """What the file of a run holds."""
    text, reason = document
    shown: dict[str, Any] = json.loads(text or "null", parse_float=_exact)
    if shown is not None:
        del shown["metadata"]["cost_usd"]
    content = {
        "document": shown,
        "data_omitted_reason": reason,
        "escaped": row["escaped"],
        "content_digest": row["content_digest"],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _exact(number: str) -> float | str:
    return float(number) if repr(float(number)) == number else f"number {number}"


def reference_text(raw: Raw) -> str:
    row = convert_run(raw, partition_of(raw))
    return golden_text(row, postgres_document(row))


if __name__ == "__main__":
    for golden in index():
        golden.path.write_text(reference_text(golden.raw), encoding="utf-8")
