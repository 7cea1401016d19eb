"""The command ``export``: writes a dataset in a form that other tools read."""

import sys
from collections import Counter
from functools import partial
from importlib.util import find_spec

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out, step
from trajectory_pipeline.cli.export_filters import ACROSS_AGENTS, Share, describe_passing, filter_options
from trajectory_pipeline.cli.signals import interrupt_on_signals
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.exports.endpoint import endpoint_url
from trajectory_pipeline.exports.formats import ExportFormat, WriterOptions
from trajectory_pipeline.exports.splits import SPLITS, SplitShares
from trajectory_pipeline.quality.packages import missing_packages
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.settings import QualitySettings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.verdict_quality import current_policy

_STRAY = 0.1
"""Difference of a split's share of the records from what was asked for that is worth a word."""
_WITH_IMAGES = ", ".join(kind for kind in ExportFormat if kind.form.images)
_VERSIONS = "; ".join(f"{kind}: {' or '.join(kind.versions)}" for kind in ExportFormat if kind.versions)
_HELP = """Write runs as a dataset into TARGET, a new folder or an fsspec URL: all of it, or nothing.

\b
FORMAT  {formats}

\b
Examples:
  trajectory-pipeline export sft good-runs --outcome success --judged
  trajectory-pipeline export atif s3://bucket/all-runs --from 2026-11-01

\b
Exit code 0  the dataset is there
          1  no run passes the filters, or none has a place in the format; nothing was written
          2  an option is wrong, or the target cannot be written; nothing is left of it
        130  it was interrupted: nothing is left of it, or all of it is there (143: by SIGTERM)
""".format(
    formats="\n        ".join(f"{kind:<{max(map(len, ExportFormat))}} {kind.form.about}" for kind in ExportFormat)
)


@click.command("export", help=_HELP)
@click.argument("form", metavar="FORMAT", type=click.Choice([form.value for form in ExportFormat]))
@click.argument("target")
@filter_options
@click.option("--version", "version", help=f"Of the format ({_VERSIONS}). Default: the newest.")
@click.option("--endpoint", metavar="URL", help="Only otel: a collector (OTLP over HTTP) to send to, and no files.")
@click.option(
    "--headers",
    metavar="NAME=VALUE,…",
    envvar="OTEL_EXPORTER_OTLP_HEADERS",
    show_envvar=True,
    default="",
    help="Only otel: of the requests to it, values percent-encoded. Others see a command's options: use the variable.",
)
@click.option("--openinference", is_flag=True, help="Only otel: attributes of OpenInference, not OpenTelemetry's.")
@click.option(
    "--splits",
    nargs=3,
    type=Share(0, 1),
    default=(0.8, 0.1, 0.1),
    show_default=True,
    metavar="TRAIN VAL TEST",
    help="Shares of train, validation and test.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Draws other splits.")
@click.option(
    "--redact",
    type=click.Choice([mode.value for mode in RedactionMode]),
    default=RedactionMode.SECRETS.value,
    show_default=True,
    help="What is replaced in texts.",
)
@click.option("--reasoning", is_flag=True, help="Pass on what models reasoned. Their terms may forbid it.")
@click.option("--images", is_flag=True, help=f"Pass on images, into which no redaction can look ({_WITH_IMAGES}).")
@click.option("--pairs-per-task", type=click.IntRange(1, 1000), default=3, show_default=True, help="Only dpo.")
@click.option("--across-agents", is_flag=True, help=f"Only dpo: {ACROSS_AGENTS}")
@click.option(
    "--near-duplicates",
    type=Share(0.5, 1),
    metavar="SIMILARITY",
    help="Leave out runs whose words are at least so similar to those of an earlier run with the same outcome, such as"
    " 0.9 (Jaccard index of sequences of five words).",
)
def command(
    form: str,
    target: str,
    filters: ExportFilters,
    version: str | None,
    endpoint: str | None,
    headers: str,
    openinference: bool,
    splits: tuple[float, float, float],
    seed: int,
    redact: str,
    reasoning: bool,
    images: bool,
    pairs_per_task: int,
    across_agents: bool,
    near_duplicates: float | None,
) -> None:
    """Write a dataset, and say what it lacks."""
    from trajectory_pipeline.pipeline.export import ExportOptions, NothingSelectedError, export_dataset
    from trajectory_pipeline.runtime.arrow_without_pandas import keep_arrow_from_pandas

    if near_duplicates is not None and find_spec("datasketch") is None:
        raise PipelineError("--near-duplicates needs a package: pip install 'trajectory-pipeline[near-duplicates]'.")
    kind = ExportFormat(form)
    if version is not None:
        kind.check_version(version)
    if kind is not ExportFormat.OTEL and (endpoint is not None or openinference):
        raise PipelineError(f"--endpoint and --openinference are of otel: {form} is written to files.")
    if across_agents and not kind.form.pairs:
        raise PipelineError(f"--across-agents is of dpo: {form} has no pairs.")
    if images and not kind.form.images:
        raise PipelineError(f"--images: {form} has no place for images. These formats have: {_WITH_IMAGES}.")
    writer = WriterOptions(version, openinference, endpoint and endpoint_url(endpoint), headers, across_agents)
    try:
        shares = SplitShares(*splits)
    except ValueError as error:
        raise PipelineError(f"--splits {' '.join(map(str, splits))}: {error}.") from None
    keep_arrow_from_pandas()
    opened = open_sinks()
    privacy = opened.settings.privacy
    options = ExportOptions(
        kind,
        writer,
        shares,
        seed,
        RedactionMode(redact),
        privacy.configured_redaction_key,
        reasoning,
        images,
        pairs_per_task,
        near_duplicates,
    )
    with step(f"Exporting {form}"), interrupt_on_signals():
        try:
            result = export_dataset(
                opened.storage,
                target,
                filters,
                options,
                partial(_policy_status, opened.storage.postgres, opened.settings.quality),
            )
        except NothingSelectedError as error:
            err.print(str(error))
            if error.passing is not None:
                err.print(f"{describe_passing(error.passing)} Nothing was written.")
            sys.exit(1)
        except KeyboardInterrupt as interrupt:
            err.print("Interrupted.")
            sys.exit(128 + interrupt.args[0])
    records = ", ".join(f"{number} {split}" for split, number in sorted(result.records.items())) or "no record"
    out.print(f"{result.selected} runs selected; {records}: {result.location}")
    if stray := _stray_splits(result.records, shares):
        err.print(stray)
    for title, counts in (("left out", result.left_out), ("not in this form", result.losses)):
        for reason, number in sorted((+counts).items()):
            err.print(f"{title}: {number} × {reason}")
    if result.policy_status:
        err.print(result.policy_status)
    if result.simulated:
        err.print("Some verdicts are of a simulated judge: they are no opinion.")


def _stray_splits(records: Counter[str], shares: SplitShares) -> str:
    """Return a sentence where the records of a split are far from its share; empty where none are."""
    total = records.total()
    found = ", ".join(
        f"{records[split]} of {total} in {split}, asked for {share:.0%}"
        for split, share in zip(SPLITS, (shares.train, shares.validation, shares.test), strict=True)
        if abs(records[split] / total - share) > _STRAY
    )
    advice = "Groups are not divided, and there are few; --splits 1 0 0 makes one split."
    return f"splits: {found}. {advice}" if found else ""


def _policy_status(database: TrajectoryDatabase, quality: QualitySettings) -> str:
    """Return whether the current policy has passed its gates, as a sentence."""
    if missing_packages():
        return "Whether the judge can be trusted was not measured."
    policy = current_policy(database)
    if policy is None:
        # Without importing what measures it, which takes two seconds.
        return ""
    from trajectory_pipeline.pipeline.verdict_quality import policy_gates
    from trajectory_pipeline.quality.gates import Bars

    status = policy_gates(database, Bars(**quality.model_dump()), policy)
    if status is None:
        return ""
    return f"The judge's policy {status.policy_id}: gates {status.result.value.replace('_', ' ')}."
