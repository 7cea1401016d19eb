"""The commands ``labels sample``, ``labels import`` and ``labels export``."""

from pathlib import Path

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import err, out
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.maintenance.label_files import LabelFormat, ReadOptions, read_label_file, write_label_file
from trajectory_pipeline.quality.sampling import DESIGNS
from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.storage.artifacts import write_file
from trajectory_pipeline.storage.postgres.label_samples import draw_sample, samples
from trajectory_pipeline.storage.postgres.labels import labellable_runs, read_labels, write_labels

_format = click.option(
    "--format",
    "kind",
    type=click.Choice([kind.value for kind in LabelFormat]),
    default=LabelFormat.CSV.value,
    show_default=True,
    help="Kind of file.",
)


@click.group("labels")
def command() -> None:
    """Draw runs to label; import and export labels. Labelling itself is `trajectory-pipeline label`."""


@command.command("sample")
@click.option("--count", type=click.IntRange(min=1), help="How many runs to draw. Without it, lists the samples.")
@click.option(
    "--design",
    type=click.Choice([design.value for design in DESIGNS]),
    default=SamplingDesign.RANDOM.value,
    show_default=True,
    help="Which runs are preferred: none, where judge and heuristic differ, where a signal speaks of trouble, or where"
    " the judge is unsure. Every run can be drawn.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Draws the same runs again.")
@click.option("--name", help="Name of the sample. Default: design and seed.")
@click.option("--agent", help="Only runs of this agent, by id or name.")
def sample_command(count: int | None, design: str, seed: int, name: str | None, agent: str | None) -> None:
    """Draw runs to label, and store the probability that each had: rates are wrong without it.

    Runs that are labelled, or in a sample, are not drawn again. `trajectory-pipeline label` works through them.
    """
    database = open_sinks().storage.postgres
    if count is not None:
        name = name or f"{design}-{seed}"
        try:
            strata = draw_sample(database, name, SamplingDesign(design), count, seed, agent)
        except ValueError as error:
            raise PipelineError(f"No sample was drawn: {error}.") from None
        out.print(f"{name}: " + ", ".join(f"{number} {stratum}" for stratum, number in strata.items()))
    headers = ("sample", "design", "seed", "runs", "labelled")
    print_table(headers, [[str(row[name]) for name in headers] for row in samples(database)], whole=("sample",))


@command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_format
@click.option("--annotator", help="Who said it, where the file does not tell; needed for scout.")
@click.option(
    "--criterion", default=Criterion.OUTCOME.value, show_default=True, help="What `target` of a Scout file is about."
)
def import_command(file: Path, kind: str, annotator: str | None, criterion: str) -> None:
    """Import labels: all of a file or, where a row is wrong, none, with each wrong row named.

    Importing again changes nothing. A changed label supersedes the one before it; one that is older does not.
    """
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{file} cannot be read as UTF-8 text: {error}.") from None
    database = open_sinks().storage.postgres
    options = ReadOptions(annotator, criterion)
    labels = read_label_file(file.name, text, LabelFormat(kind), options)
    known = labellable_runs(database, sorted({label.run_id for label in labels}))
    # Read again, so that a run that is not there is named with its line.
    labels = read_label_file(file.name, text, LabelFormat(kind), ReadOptions(annotator, criterion, known))
    changes = write_labels(database, labels)
    out.print(
        f"{len(labels)} labels: {changes.added} added, {changes.changed} changed, {changes.withdrawn} withdrawn,"
        f" {changes.unchanged} unchanged, {changes.outdated} older than what is there"
    )


@command.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_format
@click.option("--annotator", help="Only labels of this person; needed for scout where there are several.")
@click.option("--criterion", "criteria", multiple=True, help="Only this criterion; may be given again.")
@click.option("--feedback", is_flag=True, help="What users said of steps in Letta, in place of labels.")
def export_command(file: Path, kind: str, annotator: str | None, criteria: tuple[str, ...], *, feedback: bool) -> None:
    """Export the labels that hold. The file has statements and notes: people wrote them about runs."""
    database = open_sinks().storage.postgres
    sources = [LabelSource.LETTA_FEEDBACK] if feedback else None
    labels = [
        label
        for label in read_labels(database, criteria or None, sources)
        if annotator is None or label.annotator == annotator
    ]
    text, left_out = write_label_file(file.name, labels, LabelFormat(kind))
    try:
        write_file(file, text.encode())
    except OSError as error:
        raise PipelineError(f"{file} cannot be written: {error.strerror}. Name another file.") from error
    out.print(f"{len(labels) - left_out} labels: {file}")
    if left_out:
        err.print(f"{left_out} labels of requirements are left out: the format has no place for them.")
