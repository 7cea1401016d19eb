"""The command ``quality``: measures how far verdicts agree with labels of people, and prints it."""

from dataclasses import asdict

import click

from trajectory_pipeline.cli.connections import open_sinks
from trajectory_pipeline.cli.console import out, step
from trajectory_pipeline.cli.tables import print_table
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.quality import summary
from trajectory_pipeline.quality.packages import INSTALL, missing_packages
from trajectory_pipeline.schema.enums import Criterion


@click.command("quality")
@click.option("--slices", is_flag=True, help="Also by agent, model, length, language and week.")
@click.option("--confusion", is_flag=True, help="Also what people said and what the judge said, value by value.")
def command(*, slices: bool, confusion: bool) -> None:
    """Measure how far the judge agrees with people, with itself, and people among them.

    Writes the tables judge_quality and judge_confusions, as the asset judge_quality does each day. Each number stands
    with its 95 % interval. See docs/labels.md for what the numbers mean.
    """
    if missing := missing_packages():
        raise PipelineError(f"Measuring needs {' and '.join(missing)}: {INSTALL}.")
    from trajectory_pipeline.pipeline.judge_quality import materialize_quality

    opened = open_sinks()
    with step("Measuring"):
        result = materialize_quality(opened.storage)
    if not result.labels:
        raise PipelineError("There are no labels: give some with `trajectory-pipeline label`, or import them.")
    rows = [asdict(row) for row in result.quality]
    names = {policy.policy_id: policy.name for policy in result.policies}
    out.print(f"{result.labels} labels of {result.labelled_runs} runs, {len(result.policies)} policies with verdicts")
    print_table(summary.HEADER, summary.summary_rows(rows, names), whole=("policy",))
    if slices:
        print_table(summary.SLICE_HEADER, summary.slice_rows(rows, names), whole=("policy", "value"))
    if confusion:
        confused = [asdict(row) for row in result.confusions]
        for criterion in (Criterion.OUTCOME, Criterion.FAILURE_OWNER, Criterion.FAILURE_MODE, Criterion.REQUIREMENT):
            out.print(f"\n{criterion}")
            headers = ("policy", "people", "judge", "pairs")
            print_table(headers, summary.confusion_rows(confused, names, criterion), whole=("policy",))
