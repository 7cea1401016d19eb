"""The command ``search``: finds runs by words and meaning, and contrasts successes with failures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import click

from trajectory_pipeline.cli.connections import Sinks, open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.cli.filter_options import COMPLETED_FROM, COMPLETED_TO, option_names
from trajectory_pipeline.cli.render_trajectory import indented, plain_text
from trajectory_pipeline.errors import PipelineError, QueryError
from trajectory_pipeline.partition_keys import parse_timestamp
from trajectory_pipeline.pipeline.configured_models import build_embedder, build_redactor
from trajectory_pipeline.pipeline.query_embedding import QueryEmbedding, embed_query
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.search.found_by_meaning import found_by_meaning_alone
from trajectory_pipeline.search.query import check_query
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.search import SearchHit, SearchMode, contrast, search, unknown_names
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.search_texts import has_texts
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres

_OUTCOMES = click.Choice([outcome.value for outcome in Outcome])
_OPTIONS = (
    click.option("--agent", "agent_ids", multiple=True, metavar="ID", help="Of this agent."),
    click.option("--organization", "organization_ids", multiple=True, metavar="ID", help="Of this organization."),
    click.option("--project", "project_ids", multiple=True, metavar="ID", help="Of this project."),
    COMPLETED_FROM,
    COMPLETED_TO,
    click.option("--outcome", "outcomes", multiple=True, type=_OUTCOMES, help="With a verdict that says so."),
    click.option("--heuristic-outcome", "heuristic_outcomes", multiple=True, type=_OUTCOMES, help="By rule."),
    click.option("--tool", "tools", multiple=True, metavar="NAME", help="In which this tool ran."),
    click.option("--model", "models", multiple=True, metavar="NAME", help="With this model."),
    click.option("--failure-mode", "failure_modes", multiple=True, metavar="LABEL", help="That failed in this way."),
    click.option("--tag", "tags", multiple=True, help="With this tag, of the agent or of the verdict."),
    click.option("--family", "task_family", metavar="ID", help="Of this task family."),
    click.option("--source", "sources", multiple=True, metavar="NAME", help="From this source; letta is the database."),
)


def _filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command("search")
@click.argument("query")
@click.option("--k", default=10, show_default=True, type=click.IntRange(1, 1000), help="Most runs; of each side.")
@click.option(
    "--mode",
    default="hybrid",
    show_default=True,
    type=click.Choice(get_args(SearchMode)),
    help="By words, by meaning, or both.",
)
@click.option("--contrast", "contrasting", is_flag=True, help="Runs that succeeded, and runs that failed.")
@_filter_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all that is known of each run.")
def command(
    query: str,
    k: int,
    mode: SearchMode,
    completed_from: str | None,
    completed_to: str | None,
    *,
    contrasting: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Find the runs that QUERY describes: by words, and by meaning where there are embeddings.

    A text has any of the words. What is in quotation marks must stand in it, what has a minus before it must not. An
    option given several times allows any of its values. See docs/search.md.

    \b
    Examples:
      trajectory-pipeline search 'refund refused' --outcome failure
      trajectory-pipeline search '"out for delivery" address -express' --from 2026-11-01
      trajectory-pipeline search 'change of an address' --contrast --k 3
    """  # noqa: D301 - \b keeps click from rewrapping the text
    first = None if completed_from is None else parse_timestamp(completed_from)
    after_last = None if completed_to is None else parse_timestamp(completed_to)
    if first and after_last and first >= after_last:
        raise PipelineError(f"--completed-from ({completed_from}) must be before --completed-to ({completed_to}).")
    allowed = SearchFilters(completed_from=first, completed_to=after_last, **filters)
    opened = open_sinks()
    database = opened.storage.postgres
    # Refused before a provider is asked.
    check_query(query)
    embedding = QueryEmbedding(None) if mode == "words" else _embedding(opened, query)
    words_only, vector = embedding.reason, None if embedding.vector is None else embedding.vector.tolist()
    if mode == "meaning" and vector is None:
        raise QueryError(words_only)
    with database.connect() as connection, translating_database_errors(database.url, "Searching"):
        if unknown := unknown_names(connection, allowed):
            raise PipelineError(_unknown(unknown))
        if contrasting:
            both = contrast(connection, query, k, allowed, mode=mode, query_vector=vector)
            found = {"successes": both.successes, "failures": both.failures}
        else:
            found = {"runs": search(connection, query, k, allowed, mode=mode, query_vector=vector)}
        nothing_to_find = not any(found.values()) and not has_texts(connection)
    if nothing_to_find:
        err.print(
            f"{describe_postgres(database.url)} holds no search text: materialize trajectory_embeddings, or name"
            " another database by TRAJECTORY_DATABASE_URL (TRAJECTORY_DATA_FOLDER for the embedded one)."
        )
    remark = found_by_meaning_alone([hit for hits in found.values() for hit in hits], mode)
    if as_json:
        shown = {name: [asdict(hit) for hit in hits] for name, hits in found.items()}
        out.print_json(
            json.dumps({"words_only": words_only or None, "remark": remark, **shown}, default=str, ensure_ascii=False)
        )
        return
    if words_only:
        err.print(f"By words only. {words_only}")
    if remark:
        err.print(remark)
    for name, hits in found.items():
        _print(name, hits, titled=contrasting)


def _unknown(names: Mapping[str, Sequence[str]]) -> str:
    """Return a sentence about names that no run has, by parameter."""
    options = option_names(command)
    told = " and ".join(f"{options[name]} {', '.join(values)}" for name, values in names.items())
    return f"No run has {told}: check the spelling. What a run has, `search QUERY --json` and `show RUN` say."


def _embedding(opened: Sinks, query: str) -> QueryEmbedding:
    """Return the query's embedding by the model that the settings name; or None, and why there is none."""
    settings, storage = opened.settings, opened.storage
    embedder, reason = build_embedder(settings.embedding, settings.judge, settings.privacy, settings.budget)
    redactor = build_redactor(settings.privacy, storage)
    return embed_query(storage.postgres, embedder, redactor, query, disabled_reason=reason)


def _print(name: str, hits: Sequence[SearchHit], *, titled: bool) -> None:
    if titled:
        out.print(name.capitalize(), style="bold")
    if not hits:
        out.print("None was found.")
        return
    for hit in hits:
        # Not in a table: an id may be longer than a terminal is wide.
        out.print(f"{hit.rank}. ", plain_text(hit.run_id, style="bold"), sep="")
        agent = hit.agent_name or hit.agent_id
        out.print("   ", plain_text(f"{_outcome(hit)}, {_ended(hit)}, {agent} from {hit.source}"), sep="")
        for text in filter(None, (hit.summary or hit.snippet, hit.lesson and f"Lesson: {hit.lesson}")):
            out.print(indented(text, 3), soft_wrap=False)


def _ended(hit: SearchHit) -> str:
    return "no recorded end" if hit.end_time is None else f"ended {hit.end_time:%Y-%m-%d %H:%M}"


def _outcome(hit: SearchHit) -> str:
    if hit.judged_outcome is None:
        return f"{hit.heuristic_outcome}, by rule"
    confidence = "" if hit.confidence is None else f" {hit.confidence:.2f}"
    by = "simulated" if hit.simulated else "judged"
    return f"{hit.judged_outcome}{confidence}, {by}, {pluralize(len(hit.evidence), 'quote')}"
