"""Loads a sample of a Letta database into Postgres with psycopg alone, and counts what it holds."""

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

from trajectory_pipeline.demo.letta_sample import dump
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres, hide_credentials, normalize_postgres_url, postgres_parameters

_TERMINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})
_MAINTENANCE_DATABASE = "postgres"
_CONNECT_TIMEOUT_SECONDS = 10
# Any constant, the same in every process that loads the sample.
_ADVISORY_LOCK = 0x73616D706C65

Report = Callable[[str], None]


@dataclass(frozen=True)
class SampleCounts:
    """Numbers of rows in the sample; ``partitions`` are the UTC hours in which its terminal runs ended.

    ``deleted`` are its runs that a database, which held it before, does not hold any more.
    """

    organizations: int
    agents: int
    conversations: int
    runs: int
    terminal_runs: int
    steps: int
    messages: int
    partitions: int
    already_loaded: bool = False
    deleted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sample:
    """Rows of a Letta server as a gzipped dump of plain SQL, schema included."""

    file: Path

    def counts(self) -> SampleCounts:
        """Return the counts of the data file."""
        rows = {block.table: len(block.rows) for block in dump.copy_blocks(self.parts)}
        return SampleCounts(
            organizations=rows["public.organizations"],
            agents=rows["public.agents"],
            conversations=rows["public.conversations"],
            runs=rows["public.runs"],
            terminal_runs=len(self.terminal_run_ids()),
            steps=rows["public.steps"],
            messages=rows["public.messages"],
            partitions=len(self.partitions()),
        )

    def terminal_run_ids(self) -> frozenset[str]:
        """Return the ids of the sample's terminal runs."""
        return frozenset(_required(run, "id") for run in self._terminal_runs())

    def partitions(self) -> dict[datetime, int]:
        """Return UTC hour of ``completed_at`` (``created_at`` if null) → number of terminal runs, sorted."""
        ended = Counter(
            _parse_utc(run["completed_at"] or _required(run, "created_at")).replace(minute=0, second=0, microsecond=0)
            for run in self._terminal_runs()
        )
        return dict(sorted(ended.items()))

    def window(self) -> tuple[datetime, datetime]:
        """Return the first and the last partition with a terminal run."""
        hours = list(self.partitions())
        return hours[0], hours[-1]

    def load(self, database_url: str, *, create_database: bool = False, report: Report | None = None) -> SampleCounts:
        """Load the sample, schema and rows, into an empty Postgres 14 to 18 database, in one transaction.

        A database that already holds the sample's runs, or what is left of them after deletions, is left unchanged.
        One that holds anything else in one of the sample's tables is refused.

        Args:
            database_url: ``postgresql://…`` or ``postgres://…``, with or without an SQLAlchemy driver.
            create_database: create the database if it does not exist.
            report: called with a sentence about each action.

        Returns:
            What the database now holds; ``already_loaded`` is set if it held the sample before.

        Raises:
            SourceError: the database cannot be reached, written or used; the text never contains the password.
        """
        report = report or (lambda _: None)
        target = _Target.from_url(database_url)
        if create_database:
            _create_if_missing(target, report)
        counts = self.counts()
        content = f"{counts.runs} runs, {counts.steps} steps and {counts.messages} messages"
        try:
            with target.connect() as connection:
                # A concurrent load waits here, then finds the sample.
                connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", [_ADVISORY_LOCK])
                deleted = self._deleted_since(connection, target)
                if deleted is not None:
                    left = f", without {pluralize(len(deleted), 'deleted run')}" if deleted else ""
                    report(f"The {target.label} already holds the sample ({content}{left}): nothing to do.")
                    return replace(counts, already_loaded=True, deleted=deleted)
                report(f"Loading {content} into the {target.label}.")
                self._copy(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(
                f"The user {target.user} may not load the sample into the {target.label}: {target.first_line(error)}."
                " Nothing was changed. Use a database that this user owns, or grant it CREATE on the schema public."
            ) from error
        except psycopg.Error as error:
            raise SourceError(
                f"The sample could not be loaded into the {target.label}: {target.first_line(error)}. Nothing was"
                " changed. Use an empty database with encoding UTF8 on PostgreSQL 14 to 18 that is not read-only."
            ) from error
        report(f"Loaded. The {counts.terminal_runs} terminal runs ended in {counts.partitions} different hours.")
        return counts

    @functools.cached_property
    def parts(self) -> tuple[dump.Part, ...]:
        """Statements and rows of the file, in order."""
        return dump.read(self.file)

    @functools.cached_property
    def _runs(self) -> tuple[dict[str, str | None], ...]:
        block = next(block for block in dump.copy_blocks(self.parts) if block.table == "public.runs")
        return tuple(block.records())

    def _terminal_runs(self) -> list[dict[str, str | None]]:
        return [run for run in self._runs if run["status"] in _TERMINAL_STATUSES]

    def _deleted_since(self, connection: psycopg.Connection, target: "_Target") -> frozenset[str] | None:
        """Return which runs of the sample a database that holds it lacks; None if it has none of the sample's tables.

        Raises:
            SourceError: a table of the sample exists with other contents.
        """
        tables = [block.table.removeprefix("public.") for block in dump.copy_blocks(self.parts)]
        found = connection.execute(
            "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'public' AND c.relname = ANY(%s) ORDER BY 1",
            [tables],
        )
        existing = [name for (name,) in found]
        if not existing:
            return None
        advice = (
            "It was left unchanged. Use an empty database for the sample; the demonstration's own is made anew by"
            " `trajectory-pipeline demo --reset`."
        )
        if "runs" not in existing:
            raise SourceError(
                f"The {target.label} has no table public.runs, but {', '.join(existing)}, which the sample also"
                f" contains. {advice}"
            )
        columns = connection.execute(
            "SELECT a.attname::text FROM pg_catalog.pg_attribute a"
            " WHERE a.attrelid = 'public.runs'::pg_catalog.regclass AND a.attnum > 0 AND NOT a.attisdropped"
        )
        if missing := sorted({"id", "agent_id", "created_at", "completed_at"} - {name for (name,) in columns}):
            raise SourceError(
                f"The table public.runs of the {target.label} is not Letta's: it lacks {', '.join(missing)} (Dagster's"
                f" own storage has a table of that name too). {advice}"
            )
        expected = {(_required(run, "id"), _parse_utc(_required(run, "created_at"))) for run in self._runs}
        rows = connection.execute(
            "SELECT id::text, created_at FROM public.runs WHERE id::text = ANY(%s)",
            [[run_id for run_id, _ in expected]],
        )
        held = {(run_id, created_at) for run_id, created_at in rows}
        total = connection.execute("SELECT count(*) FROM public.runs").fetchone()
        count = total[0] if total else 0
        if held and held <= expected and count == len(held):
            return frozenset(run_id for run_id, _ in expected - held)
        same = len(held & expected)
        raise SourceError(
            f"The {target.label} already has a table public.runs with {count} rows, of which {same} are"
            f" (by id and created_at) among the sample's {len(expected)} runs. {advice}"
        )

    def _copy(self, connection: psycopg.Connection) -> None:
        with connection.cursor() as cursor:
            for part in self.parts:
                match part:
                    case dump.Statement():
                        cursor.execute(part.text.encode())
                    case dump.CopyBlock():
                        with cursor.copy(part.statement.encode()) as copy:
                            copy.write(part.data)


STORY = Sample(Path(__file__).with_name("story.sql.gz"))
"""The runs of a small parcel firm's agents, which the demonstration shows."""


@dataclass(frozen=True)
class _Target:
    """Where to connect, and how to name it without its password."""

    url: str
    parameters: dict[str, str]

    @classmethod
    def from_url(cls, database_url: str) -> "_Target":
        # psycopg's own message would repeat the whole URL, password included, so it is not passed on.
        try:
            url = normalize_postgres_url(database_url)
        except ValueError as error:
            raise SourceError(f"The sample's database URL {error}.") from None
        return cls(url, postgres_parameters(url) or {})

    @property
    def database(self) -> str:
        return self.parameters["dbname"]

    @property
    def user(self) -> str:
        return self.parameters.get("user", "(of the operating system)")

    @property
    def label(self) -> str:
        return f"database {describe_postgres(self.url)}"

    def first_line(self, error: psycopg.Error) -> str:
        """Return the first line of an error's message, without secrets; hints are on later lines."""
        lines = (error.diag.message_primary or str(error) or type(error).__name__).splitlines()
        text = lines[0].strip().removeprefix("connection failed: ").rstrip(".")
        return hide_credentials(text, self.url)

    def connect(self, *, database: str | None = None, autocommit: bool = False) -> psycopg.Connection:
        """Open a new connection: the dump changes session settings, for example ``search_path``."""
        defaults = {"connect_timeout": str(_CONNECT_TIMEOUT_SECONDS), "application_name": "trajectory-pipeline sample"}
        parameters = {**defaults, **self.parameters, "dbname": database or self.database}
        try:
            return psycopg.connect(autocommit=autocommit, **parameters)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            text = self.first_line(error)
            raise SourceError(f"Cannot connect to the {self.label}: {text}. {_remedy(text)}") from error


def _remedy(text: str) -> str:
    # libpq reports the cause of a failed connection only as text. In another language, the last line applies.
    remedies = {
        r'database ".*" does not exist': "Create the database first, or let it be created (create_database=True).",
        r"password|authentication|role .* does not exist|pg_hba": "Check the user and the password in the URL.",
        r"permission denied for database": "Grant this user CONNECT on the database, or use another user.",
        r"refused|timeout|timed out|No such file|resolve|translate host|unreachable": (
            "Check that the server runs, and the host and the port in the URL."
        ),
    }
    for pattern, remedy in remedies.items():
        if re.search(pattern, text, re.IGNORECASE):
            return remedy
    return "Check the URL, and that the server accepts connections."


def _create_if_missing(target: _Target, report: Report) -> None:
    try:
        maintenance = target.connect(database=_MAINTENANCE_DATABASE, autocommit=True)
    except SourceError:
        # A user without access to the maintenance database may still own the target.
        target.connect().close()
        return
    with maintenance:
        existing = maintenance.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", [target.database])
        if existing.fetchone():
            return
        try:
            # template0: a site's template1 may hold tables, or have another encoding.
            maintenance.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(target.database))
            )
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            return  # another process created it
        except psycopg.Error as error:
            raise SourceError(
                f"Cannot create the {target.label}: {target.first_line(error)}. Create it as another user, or grant"
                f" CREATEDB to the user {target.user}."
            ) from error
    report(f"Created the {target.label}.")


def _parse_utc(value: str) -> datetime:
    parsed = datetime.fromisoformat(value)
    # completed_at is UTC, stored without an offset.
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _required(row: dict[str, str | None], column: str) -> str:
    value = row[column]
    if value is None:
        raise ValueError(f"{column} is NULL in a run of the sample")
    return value
