"""The contract of the generated pages: they match the declarations, and every link in them leads to a heading."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.reference_pages import data_dictionary, main, pages, settings_page
from trajectory_pipeline.schema.tables import TABLES
from trajectory_pipeline.schema.types import Column, ListOf, Struct
from trajectory_pipeline.schema.views import VIEWS
from trajectory_pipeline.settings import setting_fields

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.process
def test_pages_in_docs_match_the_declarations(tmp_path: Path) -> None:
    # A process of its own: click keeps the help option of a command as it was first asked for.
    subprocess.run([sys.executable, DOCS / "reference_pages.py", tmp_path], check=True, capture_output=True)
    made = sorted(tmp_path.iterdir())
    assert made
    for page in made:
        written = (DOCS / page.name).read_text(encoding="utf-8")
        assert written == page.read_text(encoding="utf-8"), f"{page.name}: run make docs"


def test_data_dictionary_has_every_column() -> None:
    page = data_dictionary()

    def look(columns: tuple[Column, ...]) -> None:
        for column in columns:
            assert f"| `{column.name}` |" in page
            assert column.description.replace("|", "\\|") in page
            inner = column.type.item if isinstance(column.type, ListOf) else column.type
            if isinstance(inner, Struct):
                look(inner.fields)

    for table in (*TABLES, *VIEWS):
        assert f"\n## {table.name}\n" in page
        look(table.columns)


def test_data_dictionary_links_lead_to_headings() -> None:
    page = data_dictionary()
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings)
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert links
    assert links <= anchors
    for target in re.findall(r"\]\((\.\./[^)]+)\)", page):
        assert (DOCS / target).exists()


def test_pages_tables_have_equally_wide_rows() -> None:
    for page in pages().values():
        for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1


def test_settings_page_has_every_setting() -> None:
    for name, field in setting_fields().items():
        assert f"| `{name}` | {field.description} |" in settings_page()


def test_main_with_folder_writes_both_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "docs")]) == 0
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "docs").iterdir()} == pages()
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_runbook_quotes_words_that_the_code_says() -> None:
    """A symptom in quotes is searched for: it must be what is printed."""
    runbook = (DOCS / "runbook.md").read_text()
    code = "".join(path.read_text() for path in (DOCS.parent / "trajectory_pipeline").rglob("*.py"))
    # Sentences are split over lines of the code.
    said = re.sub(r'"\s+f?"', "", code)
    quoted = re.findall(r'"([^"]+)"', "\n".join(line for line in runbook.splitlines() if line.startswith("| ")))
    pieces = [piece.strip(" ,.:") for phrase in quoted for piece in phrase.split("…")]
    assert len(pieces) > 20
    assert [piece for piece in pieces if piece not in said] == []
