"""Reading the sample's data file: nothing is lost, and rows are data whatever they hold."""

import gzip
from collections.abc import Iterator

import pytest

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline_tests.letta_sample import SAMPLE_FILE


def lines_of(parts: tuple[dump.Part, ...]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, dump.CopyBlock):
            yield from (part.statement, *("\t".join(row) for row in part.rows), "\\.")
        else:
            yield from part.text.split("\n")


def test_parse_of_the_sample_keeps_every_line_but_comments() -> None:
    lines = gzip.decompress(SAMPLE_FILE.read_bytes()).decode().split("\n")
    expected = [line for line in lines if line and not line.startswith("--")]
    assert list(lines_of(dump.read(SAMPLE_FILE))) == expected


def test_every_statement_of_the_sample_ends_with_one_semicolon() -> None:
    for part in dump.read(SAMPLE_FILE):
        if isinstance(part, dump.Statement):
            assert part.text.endswith(";")
            assert part.text.count(";") == 1


def test_copy_block_rows_are_data_whatever_they_hold() -> None:
    text = '-- head\nCOPY public.t (a, "b") FROM stdin;\nit\'s; --\t\\N\n\u2028\x85\t\\\\.\n\\.\n\nSELECT\n  1;\n'
    block, statement = dump.parse(text)
    assert isinstance(block, dump.CopyBlock)
    assert (block.table, block.columns) == ("public.t", ("a", "b"))
    assert list(block.records()) == [{"a": "it's; --", "b": None}, {"a": "\u2028\x85", "b": "\\."}]
    assert statement == dump.Statement("SELECT\n  1;")


def test_copy_block_without_rows_is_empty() -> None:
    (block,) = dump.parse("COPY public.t (a) FROM stdin;\n\\.\n")
    assert isinstance(block, dump.CopyBlock)
    assert block.rows == ()
    assert block.data == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (r"\N", None),
        ("", ""),
        (r"a\tb\nc\\d", "a\tb\nc\\d"),
        (r'"\\ud83d"', r'"\ud83d"'),
        (r"\101\x42", "AB"),
        (r"\N\N", "NN"),
    ],
)
def test_unescape_follows_copy_text_format(field: str, value: str | None) -> None:
    assert dump.unescape(field) == value
