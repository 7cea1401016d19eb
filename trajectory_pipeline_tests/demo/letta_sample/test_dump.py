"""Taking pg_dump files apart: semicolons, quotes and comments end nothing they should not, and nothing is lost."""

import gzip

import pytest

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline.demo.letta_sample.load import SAMPLE_FILE


def statements(text: str) -> list[str]:
    return [part.text.strip() for part in dump.parse(text) if isinstance(part, dump.Statement)]


def test_the_sample_taken_apart_and_put_together_is_the_same_text() -> None:
    text = gzip.decompress(SAMPLE_FILE.read_bytes()).decode()
    assert dump.render(dump.parse(text)) == text


@pytest.mark.parametrize(
    "first",
    [
        "SELECT 'a;b';",
        "SELECT 'it''s; so';",
        "SELECT E'it\\'s; so';",
        r"SELECT 'a\';",
        'SELECT "a;b";',
        "SELECT 1 -- one; two\n;",
        "SELECT 1 /* one; /* two; */ three; */;",
        "SELECT $$a;b$$;",
        "SELECT $body$ a; $$ b; $body$;",
        "SELECT type'x;y';",
        "SELECT '-- no comment';",
        "-- it's a comment; with a quote\nSELECT 1;",
    ],
)
def test_only_a_semicolon_outside_quotes_and_comments_ends_a_statement(first: str) -> None:
    assert statements(f"{first}\nSELECT 2;\n") == [first, "SELECT 2;"]


def test_rows_of_a_copy_block_are_data_whatever_they_hold() -> None:
    text = 'COPY public.t (a, "b") FROM stdin;\nit\'s; --\t\\N\n\u2028\x85\t\\\\.\n\\.\n\nSELECT 1;\n'
    block, statement = dump.parse(text)[:2]
    assert isinstance(block, dump.CopyBlock)
    assert (block.table, block.columns) == ("public.t", ("a", "b"))
    assert list(block.records()) == [{"a": "it's; --", "b": None}, {"a": "\u2028\x85", "b": "\\."}]
    assert statement.text.strip() == "SELECT 1;"
    assert dump.render(dump.parse(text)) == text


def test_a_copy_block_without_rows_has_none() -> None:
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
def test_fields_are_unescaped_as_copy_does_it(field: str, value: str | None) -> None:
    assert dump.unescape(field) == value


def test_the_lines_that_newer_pg_dumps_write_for_psql_are_not_sent_to_a_server() -> None:
    text = "--\n-- head\n--\n\n\\restrict abc;'\n\nSELECT 1;\n\n\\unrestrict abc;'\n\n"
    assert statements(text) == ["SELECT 1;"]
    assert dump.render(dump.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT 1;\n\\connect other\n", "line 2: a psql command"),
        ("SELECT 1", "line 1: a statement without its semicolon"),
        ("SELECT 1;\n\nSELECT 'a;\n", "line 3: a quote that is never closed"),
        ("SELECT $a$;\n", r"line 1: \$a\$ is never closed"),
        ("/* SELECT 1;\n", "line 1: a comment that is never closed"),
        ("COPY public.t (a) FROM stdin;\n1\n", "line 1: a COPY block without its end marker"),
        ("COPY public.t (a, b) FROM stdin;\n1\n\\.\n", "public.t, row 1: 1 fields for 2 columns"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused_with_its_place(text: str, says: str) -> None:
    with pytest.raises(dump.DumpError, match=says):
        dump.parse(text)
