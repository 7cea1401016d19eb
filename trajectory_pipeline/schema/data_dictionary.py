"""The pages that are made of declarations: the data dictionary, and the settings.

Belongs here: how declarations are written as Markdown. Does not belong here: any declaration; a page is never edited,
it is made anew: ``python -m trajectory_pipeline.schema.data_dictionary docs``. A test fails when a page is stale.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from trajectory_pipeline.schema.error_classes import ERROR_CLASSES
from trajectory_pipeline.schema.ledger import INVALIDATIONS, PARTITIONS, QUARANTINE, RUN_LOCATIONS
from trajectory_pipeline.schema.limits import RATE_LIMITS
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.spending import SPEND_TOTALS, VERDICT_LOCKS
from trajectory_pipeline.schema.sql import SCHEMA_NAME
from trajectory_pipeline.schema.trajectories import SCHEMA_VERSION, SIGNALS_VERSION, TRAJECTORIES
from trajectory_pipeline.schema.types import Column, ListOf, Scalar, Sink, Struct, Table, Type
from trajectory_pipeline.schema.verdicts import (
    POLICIES,
    REDACTION_KEYS,
    REFINED_OUTCOMES,
    VERDICT_ATTEMPTS,
    VERDICTS,
)
from trajectory_pipeline.settings import setting_rows

TABLES = (
    TERMINAL_RUNS,
    TRAJECTORIES,
    REFINED_OUTCOMES,
    VERDICTS,
    VERDICT_ATTEMPTS,
    SPEND_TOTALS,
    VERDICT_LOCKS,
    RATE_LIMITS,
    POLICIES,
    REDACTION_KEYS,
    PARTITIONS,
    QUARANTINE,
    RUN_LOCATIONS,
    INVALIDATIONS,
)
"""Every dataset and table of the project, in the order in which they are read."""

_MADE = "<!-- Made by `python -m trajectory_pipeline.schema.data_dictionary docs`: change the declarations, not this page. -->"

_VIEWS = (
    (
        "outcomes",
        "one trajectory that is not deleted at the source",
        "Each trajectory with its heuristic outcome and, where there is one, its verdict under the current policy;"
        " without a verdict, the verdict's columns are null.",
    ),
    (
        "chains",
        "one answer to an approval request",
        "Which runs continue a run (there can be several): the other direction of `continues_run_id`.",
    ),
    (
        "agent_comparison",
        "one trajectory that is not deleted at the source",
        "Duration, tokens and tool calls of a run beside its agent's medians.",
    ),
)

_TYPES = (
    (Scalar.STRING, "string", "`text`"),
    (Scalar.INT, "int64", "`bigint`"),
    (Scalar.FLOAT, "double", "`double precision`"),
    (Scalar.BOOL, "bool", "`boolean`"),
    (Scalar.TIMESTAMP, "timestamp, microseconds, UTC", "`timestamptz`"),
    (Scalar.NAIVE_TIMESTAMP, "timestamp, microseconds, without a zone (UTC in fact)", "not there"),
    (Scalar.MONEY, "decimal128(18, 9)", "`numeric(18, 9)`"),
    (Scalar.JSON, "string that holds JSON text", "`jsonb`"),
)


def pages() -> dict[str, str]:
    """Return every page, by the name of its file."""
    return {"data-dictionary.md": data_dictionary(), "settings.md": settings_page()}


def data_dictionary() -> str:
    """Return the page that says what every column of every dataset and table is."""
    sections = [_introduction(), _versions(), _type_table()]
    first_of: dict[Type, str] = {}
    sections.extend(_table_section(table, first_of) for table in TABLES)
    sections.append(_views())
    sections.append(_error_classes())
    return "\n\n".join([*sections]) + "\n"


def settings_page() -> str:
    """Return the page that says what every environment variable means."""
    rows = [[f"`{name}`", meaning] for name, meaning in setting_rows()]
    return (
        "\n\n".join(
            [
                _MADE,
                "# Settings",
                "Every setting is an environment variable. It is read when it is needed, never when a module"
                " is imported;"
                " an empty one counts as unset; a wrong one ends with one sentence that names it."
                " `trajectory-pipeline` also reads a file `.env` in the working directory.",
                "A password in a database URL is percent-encoded: a slash is `%2F`, an `@` is `%40`, a `%` is `%25`.",
                _markdown_table(["variable", "meaning"], rows),
            ]
        )
        + "\n"
    )


def _introduction() -> str:
    rows = [
        [f"[{table.name}](#{_anchor(table.name)})", f"{table.row}", _places(table), table.description]
        for table in TABLES
    ]
    return "\n\n".join(
        [
            _MADE,
            "# Data dictionary",
            "What is in the sinks: Parquet at"
            " `<TRAJECTORY_STORAGE_URI>/<dataset>/hour=YYYY-MM-DDTHH/part-0.parquet`, exactly one file a partition, and"
            f" the schema `{SCHEMA_NAME}` in `TRAJECTORY_DATABASE_URL`. A partition is one UTC hour of the run's end.",
            _markdown_table(["dataset or table", "one row is", "stands in", "what it is"], rows),
            "The labels of a verdict come from closed lists, which the judge's response schema declares"
            " ([`judge/response_schema.py`](../trajectory_pipeline/judge/response_schema.py)): `RequirementStatus`,"
            " `FailureOwner`, `FailureMode` (seeded from MAST and TRAIL), `TaskCategory`, `Complexity`.",
        ]
    )


def _versions() -> str:
    return "\n\n".join(
        [
            "## Versions",
            f"`schema_version` is **{SCHEMA_VERSION}**. It goes up when a column is added, renamed or"
            f" retyped, or when the"
            " same source rows give another value in any column outside `signals`. Parquet of an older version still"
            " reads: what it lacks is null (a list: empty).",
            f"`signals_version` is **{SIGNALS_VERSION}**. It goes up when the same rows give another signal.",
            "A verdict carries a `policy_id`, which stands for the judge's model and parameters and for the versions of"
            " prompt, rubric, response schema, renderer and redaction; the table"
            f" [policies](#{_anchor(POLICIES.name)}) spells each out.",
            '"Since" in the tables below is the `schema_version` that brought a column.',
        ]
    )


def _type_table() -> str:
    rows = [[kind.value, parquet, postgres] for kind, parquet, postgres in _TYPES]
    rows.append(["list of a type without parts", "list", "array"])
    rows.append(["struct, or list of structs", "struct, list of structs", "`jsonb`"])
    return "\n\n".join(
        [
            "## Types",
            _markdown_table(["type", "in Parquet", "in Postgres"], rows),
            'A column without an entry under "null means" is never null; such a list may be empty. A struct may be null'
            " as a whole where it says what that means; the fields of one that is there follow their own entries.",
        ]
    )


def _table_section(table: Table, first_of: dict[Type, str]) -> str:
    columns = table.columns
    facts = [f"One row is {table.row}.", f"Stands in {_places(table)}."]
    if table.keys:
        facts.append(f"Key: {', '.join(f'`{name}`' for name in table.keys)}.")
    if table.indexes and table.in_sink(Sink.POSTGRES):
        facts.append(f"Indexed by {'; '.join(', '.join(f'`{name}`' for name in index) for index in table.indexes)}.")
    if table is REFINED_OUTCOMES:
        parquet_only = [column for column in columns if Sink.PARQUET in column.sinks]
        links = f"{len(parquet_only)} columns, those of [verdicts](#{_anchor(VERDICTS.name)}) that stand in Parquet."
        return "\n\n".join([f"## {table.name}", table.description, " ".join(facts[:2]), links])
    mixed = len({column.sinks for column in columns}) > 1
    # All structs of the table must be known before one column of it can point to them.
    nested = _structs(table, first_of)
    return "\n\n".join(
        [
            f"## {table.name}",
            table.description,
            " ".join(facts),
            _columns(columns, first_of, with_sinks=mixed),
            *(f"### {path}\n\n{_columns(struct.fields, first_of, with_sinks=False)}" for path, struct in nested),
        ]
    )


def _structs(table: Table, first_of: dict[Type, str]) -> list[tuple[str, Struct]]:
    """Return the structs of a table by path, those left out that an earlier place has shown already."""
    found: list[tuple[str, Struct]] = []

    def look(columns: Sequence[Column], path: str) -> None:
        for column in columns:
            struct = column.type.item if isinstance(column.type, ListOf) else column.type
            here = f"{path}{column.name}"
            if isinstance(struct, Struct) and struct not in first_of:
                first_of[struct] = f"{table.name}.{here}"
                found.append((first_of[struct], struct))
                look(struct.fields, f"{here}.")

    look(table.columns, "")
    return found


def _columns(columns: Sequence[Column], first_of: dict[Type, str], *, with_sinks: bool) -> str:
    heads = ["name", "type", "what it is", "unit", "null means", "source", "since"]
    rows = [
        [
            f"`{column.name}`",
            _type_words(column.type, first_of),
            column.description,
            column.unit,
            column.null,
            _code(column.source),
            column.since,
            *([", ".join(sorted(sink.value for sink in column.sinks))] if with_sinks else []),
        ]
        for column in columns
    ]
    return _markdown_table([*heads, "sink"] if with_sinks else heads, rows)


def _type_words(kind: Type, first_of: dict[Type, str]) -> str:
    if isinstance(kind, ListOf):
        return f"list of {_type_words(kind.item, first_of)}"
    if isinstance(kind, Struct):
        path = first_of[kind]
        return f"[{path.rpartition('.')[2]}](#{_anchor(path)})"
    return kind.value


def _views() -> str:
    rows = [[f"`{SCHEMA_NAME}.{name}`", row, words] for name, row, words in _VIEWS]
    return "\n\n".join(["## Views", _markdown_table(["view", "one row is", "what it shows"], rows)])


def _error_classes() -> str:
    rows = [[f"`{one.name}`", one.meaning, one.then, one.status] for one in ERROR_CLASSES]
    return "\n\n".join(
        [
            "## Error classes",
            "What can keep a trajectory from being judged: the values of `error_class`. A verdict gets the class of its"
            " last call. Nothing is clamped, filled in or guessed: without a valid answer there is no score.",
            _markdown_table(["class", "what happened", "what is done about it", "verdict"], rows),
        ]
    )


def _places(table: Table) -> str:
    there = [sink for sink in Sink if table.in_sink(sink)]
    if table is REFINED_OUTCOMES:
        there = [Sink.PARQUET]
    elif table is VERDICTS:
        there = [Sink.POSTGRES]
    words = {Sink.PARQUET: f"Parquet (`{table.name}/`)", Sink.POSTGRES: f"Postgres (`{SCHEMA_NAME}.{table.name}`)"}
    return " and ".join(words[sink] for sink in there)


def _code(source: str) -> str:
    """Return a source with its column names as code: ``runs.id`` and the like."""
    return re.sub(r"\b([a-z_]+\.[a-z_]+(?:\.[a-z_]+)*)\b", r"`\1`", source)


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub, and most others, give a heading."""
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_lines(heads, rows))


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main(arguments: Sequence[str]) -> int:
    """Write the pages into a folder; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m trajectory_pipeline.schema.data_dictionary FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
