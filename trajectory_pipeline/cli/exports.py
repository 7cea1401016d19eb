"""The commands ``exports …``: exported datasets, those that hold a run, and how many pairs there are to export."""

import sys
from typing import TYPE_CHECKING

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.cli.export_filters import ACROSS_AGENTS, describe_passing, filter_options
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.text import pluralize

if TYPE_CHECKING:
    from trajectory_pipeline.pipeline.export_pairs import FamilyPairs
    from trajectory_pipeline.settings import Settings


@click.group("exports")
def command() -> None:
    """List exported datasets, find those that hold a run, and count the pairs there are to export."""


@command.command("list")
def list_command() -> None:
    """List every dataset that was exported, with how many runs it holds that were erased, deleted or pruned since."""
    from trajectory_pipeline.storage.postgres.export_registry import registered_exports

    exports = registered_exports(open_sinks().storage.postgres)
    if not exports:
        out.print("Nothing was exported yet.")
        return
    # Lines, not a table: ids and places must be there whole.
    for one in exports:
        gone = f"{one.erased} erased, {one.deleted} deleted, {one.pruned} pruned since {one.written_at:%Y-%m-%d %H:%M}"
        out.print(f"{one.export_id}  {one.format}  {pluralize(one.runs, 'run')}, {gone}  {one.location}")


@command.command("holding")
@click.argument("run_ids", metavar="RUN_ID...", nargs=-1, required=True)
def holding_command(run_ids: tuple[str, ...]) -> None:
    """List the datasets that hold any of these runs: a line a dataset and run.

    \b
    Exit code 0  there are some
              1  no dataset holds any of them
    """  # noqa: D301 - \b keeps click from rewrapping the text
    from trajectory_pipeline.storage.postgres.export_registry import exports_holding

    found = exports_holding(open_sinks().storage.postgres, run_ids)
    for row in found:
        state = "as it is now" if row["is_current"] else "changed, erased or deleted since"
        state = "pruned since" if row["is_pruned"] else state
        out.print(f"{row['run_id']}  {row['location']}  {row['format']}, {row['split']}, {state}  {row['export_id']}")
    if not found:
        err.print("No exported dataset holds any of them.")
        sys.exit(1)


@command.command("forget")
@click.argument("export_id")
def forget_command(export_id: str) -> None:
    """Forget a dataset that you deleted. Its files, if any, are not touched.

    One that an asset keeps up to date is not forgotten: nothing would tell any more which runs it holds.
    """
    from trajectory_pipeline.storage.postgres.export_registry import forget_export

    opened = open_sinks()
    _require_no_asset(opened.settings, export_id)
    if not forget_export(opened.storage.postgres, export_id):
        raise PipelineError(f"No dataset {export_id} is known: `trajectory-pipeline exports list` shows their ids.")
    out.print(f"{export_id} is forgotten.")


def _require_no_asset(settings: "Settings", export_id: str) -> None:
    from trajectory_pipeline.defs.assets.exports import export_asset_of, export_formats

    for kind in export_formats(settings):
        asset = export_asset_of(settings, kind, None)
        if asset.export.export_id == export_id:
            raise PipelineError(
                f"The asset {asset.name} keeps {export_id} up to date. To end that, take {kind} out of"
                " TRAJECTORY_EXPORTS, restart Dagster, delete the dataset, then forget it."
            )


@command.command("pairs")
@filter_options
@click.option("--pairs-per-task", type=click.IntRange(1, 1000), default=3, show_default=True, help="As for dpo.")
@click.option("--across-agents", is_flag=True, help=ACROSS_AGENTS)
@click.option("--limit", type=click.IntRange(1), default=30, show_default=True, help="Most families to list.")
def pairs_command(filters: ExportFilters, pairs_per_task: int, across_agents: bool, limit: int) -> None:
    """Count, by task family, the pairs of a success and a failure that `export dpo` would write.

    TASKS were asked in the same words, with a success and a failure. PART AT is the mean number of the message where
    pairs part. Runs that were asked in the same words count in the family of the surest success among them. A family
    without an id stands for the runs that are in none.
    """
    from trajectory_pipeline.pipeline.export import ExportOptions, NothingSelectedError, pairs_by_family
    from trajectory_pipeline.storage.export_target import temporary_folder

    opened = open_sinks()
    privacy = opened.settings.privacy
    options = ExportOptions(
        ExportFormat.DPO,
        WriterOptions(across_agents=across_agents),
        redaction_key=privacy.configured_redaction_key,
        pairs_per_task=pairs_per_task,
    )
    with step("Looking for pairs"), temporary_folder() as folder:
        try:
            families = pairs_by_family(opened.storage, filters, options, folder)
        except NothingSelectedError as error:
            err.print(f"{error} {'' if error.passing is None else describe_passing(error.passing)}".rstrip())
            sys.exit(1)
    headers = ("family", "successes", "failures", "tasks", "pairs", "part at")
    print_table(headers, map(_cells, families[:limit]), whole=("family",), numbers=headers[1:])
    families_with = sum(family.pairs > 0 for family in families)
    out.print(
        f"{pluralize(sum(family.pairs for family in families), 'pair')} in {families_with} of {len(families)} families."
    )
    if len(families) > limit:
        out.print(
            f"{pluralize(len(families) - limit, 'more family', 'more families')}: --limit {len(families)} lists all."
        )


def _cells(family: "FamilyPairs") -> list[str]:
    counts = (family.successes, family.failures, family.tasks, family.pairs)
    return [family.family_id or "–", *map(str, counts), "" if family.parted_at is None else f"{family.parted_at:.1f}"]
