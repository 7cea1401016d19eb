"""Golden documents: what they are of, and how they are written again.

    python -m trajectory_pipeline_tests.trajectories.golden

writes the files anew; read the difference before accepting it. `golden/INDEX.md` says which run each is of and what
it shows.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajectory_pipeline.trajectories.document import postgres_document
from trajectory_pipeline.trajectories.reference import convert_run
from trajectory_pipeline_tests.trajectories.sample_runs import partition_of, sample_runs

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


def index() -> list[Golden]:
    lines = (FOLDER / "INDEX.md").read_text(encoding="utf-8").splitlines()
    return [Golden(**match.groupdict()) for line in lines if (match := _LINE.fullmatch(line))]


def golden_text(run_id: str) -> str:
    """What the file of a run holds."""
    raw = next(raw for raw in sample_runs() if raw["run_id"] == run_id)
    row = convert_run(raw, partition_of(raw))
    text, reason = postgres_document(row)
    document: dict[str, Any] = json.loads(text or "null")
    del document["metadata"]["cost_usd"]
    shown = {
        "document": document,
        "data_omitted_reason": reason,
        "escaped": row["escaped"],
        "content_digest": row["content_digest"],
    }
    return json.dumps(shown, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for golden in index():
        golden.path.write_text(golden_text(golden.run_id), encoding="utf-8")
