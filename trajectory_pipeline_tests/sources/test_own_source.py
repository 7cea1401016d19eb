"""The source that ``docs/sources.md`` shows passes the suite, and the settings can name it."""

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.partition_keys import source_run_id
from trajectory_pipeline.settings import SourceSpec
from trajectory_pipeline.sources.kinds import Access, open_source
from trajectory_pipeline_tests.sources.conformance import FIRST, PLAIN, Shape, SourceConformance, World

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
NAME = "notes"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the page."""
    (code,) = re.findall(r"```python\n(\"\"\"runs_in_lines.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("runs_in_lines")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "runs_in_lines", module)
    return module


class LinesWorld(World):
    """A file for each run."""

    def __init__(self, module: Any, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.source = open_source(SourceSpec(NAME, "runs_in_lines.LinesSource", str(folder)), Access())

    def write(self, key: str, *lines: object) -> None:
        (self.folder / f"{key}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def write_run(self, key: str, asked: str, answered: str, at: datetime, shape: Shape = PLAIN) -> None:
        start = (at - shape.took).isoformat()
        self.write(
            key,
            {"role": "user", "text": asked, "at": start, **({shape.extra: "odd"} if shape.extra else {})},
            {"role": "assistant", "text": answered, "at": at.isoformat()},
            {"end": "ok"},
        )

    def run_id(self, key: str) -> str:
        return source_run_id(NAME, key)

    def remove_run(self, key: str) -> None:
        (self.folder / f"{key}.jsonl").unlink()

    def begin_run(self, key: str, asked: str, at: datetime) -> None:
        self.write(key, {"role": "user", "text": asked, "at": at.isoformat()})

    def cut_run(self, key: str, share: float) -> None:
        path = self.folder / f"{key}.jsonl"
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    def break_run(self, key: str) -> str:
        self.write(key, {"role": "user", "text": "x", "at": FIRST.isoformat()}, 5, {"end": "ok"})
        return f"{key}.jsonl: line 2 is no object"

    def vanish(self) -> None:
        self.folder.rename(self.folder.with_name("gone"))

    def return_(self) -> None:
        self.folder.with_name("gone").rename(self.folder)


@pytest.fixture
def world(module: ModuleType, tmp_path: Path) -> LinesWorld:
    return LinesWorld(module, tmp_path / "notes")


@pytest.mark.heavy
class TestOwnSource(SourceConformance):
    """The suite, but for what such a source has not: tools and images."""

    uses_tools = False
    uses_images = False


@pytest.mark.parametrize("kind", ["nothing", "no.such.Class", "json.Nothing"])
def test_unknown_kind_is_refused_with_those_that_there_are(kind: str) -> None:
    with pytest.raises(SettingsError, match="letta_code, atif, letta_api"):
        open_source(SourceSpec(NAME, kind, "/x"), Access())
